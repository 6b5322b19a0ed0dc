"""One folder per operation, the reference in torch beside the kernels; dispatch.py and sampling_dispatch.py choose."""
