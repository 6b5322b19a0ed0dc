"""Every Triton kernel against its reference, as cases that run on a GPU or, in Triton's interpreter, on the CPU.

Memory that a kernel has to fill is NaN before, and so are all pages outside of a context.
"""
