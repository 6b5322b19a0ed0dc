"""Matrix products with weights, which may be packed once for many steps."""
