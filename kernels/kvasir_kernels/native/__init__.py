"""The C++ kernels for CPUs: built once for this machine, then loaded and called through ctypes."""
