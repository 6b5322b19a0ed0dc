"""Pages copied from one memory to another, both on the host."""
