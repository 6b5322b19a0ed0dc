"""Matrix products of float8 with float8."""
