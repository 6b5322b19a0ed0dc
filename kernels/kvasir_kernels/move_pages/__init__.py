"""Parts of pages brought together and put back: what another layout of heads or layers wants of them."""
