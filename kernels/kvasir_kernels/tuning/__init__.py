"""Which tiles the kernels take: measured on the device, written down, looked up at launch."""
