"""Weights of fewer bits than the checkpoint has: the schemes that there are, and what they do to a matrix."""
