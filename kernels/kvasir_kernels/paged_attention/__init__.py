"""Causal attention of the new tokens over the pages of their sequences."""
