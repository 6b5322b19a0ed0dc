"""Small sums over the GPUs of one host, in one launch on each."""
