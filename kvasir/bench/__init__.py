"""What `kvasir bench` measures."""
