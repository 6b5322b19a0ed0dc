"""What grammars forbid, taken out of the logits."""
