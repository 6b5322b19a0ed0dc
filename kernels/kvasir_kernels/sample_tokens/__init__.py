"""The next token of each sequence from its logits."""
