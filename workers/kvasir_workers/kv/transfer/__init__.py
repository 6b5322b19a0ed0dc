"""Pages on their way: pushed by the replica that prefilled, taken in by the replica that decodes."""
