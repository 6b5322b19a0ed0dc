"""The gate of a SwiGLU feed-forward layer."""
