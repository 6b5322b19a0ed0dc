"""Queries and keys turned by their positions, keys and values into the cache."""
