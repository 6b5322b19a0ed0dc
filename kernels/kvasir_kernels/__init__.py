"""One folder per operation: the reference in torch beside the Triton kernel, chosen in dispatch.py."""
