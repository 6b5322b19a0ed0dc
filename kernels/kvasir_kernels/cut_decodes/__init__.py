"""The cut of decode attention, found on the device."""
