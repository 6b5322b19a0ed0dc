"""A step through a whole plain decoder as one operation."""
