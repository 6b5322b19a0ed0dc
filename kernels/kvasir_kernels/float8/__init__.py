"""Numbers of 8 bits, e4m3 (Micikevicius et al., 2022): how tensors are quantized to them, and what they are worth."""
