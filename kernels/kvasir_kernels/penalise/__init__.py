"""Penalties for tokens that were seen before."""
