"""The gates of SwiGLU and GeGLU feed-forward layers."""
