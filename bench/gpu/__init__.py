"""What the GPU kernels reach of what the device can do, beside torch's own: `python -m bench.gpu --out FOLDER`."""
