"""The likeliest token of each row."""
