"""Pages: who holds which, what they contain, and how they travel."""
