"""A model made ready for one layout of ranks: `kvasir build` writes such a directory, a start only reads it."""
