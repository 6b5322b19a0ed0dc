"""Where pages go that the device has no room for: host memory, and from there disk."""
