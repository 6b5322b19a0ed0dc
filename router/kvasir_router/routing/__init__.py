"""Which replicas serve a request: load as it is known here, and pure policies over it."""
