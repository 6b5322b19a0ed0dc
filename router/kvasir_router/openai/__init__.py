"""OpenAI's HTTP interface: bodies in, answers out."""
