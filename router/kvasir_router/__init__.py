"""The front door: HTTP, tokens in and out, routing and dispatch."""
