"""One folder per operation: the reference in torch beside the kernels, chosen in dispatch.py."""
