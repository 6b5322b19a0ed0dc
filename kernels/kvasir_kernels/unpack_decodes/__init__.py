"""The inputs of a step of decodes, unpacked on the device."""
