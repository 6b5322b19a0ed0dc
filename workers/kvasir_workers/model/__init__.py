"""One decoder, many specs: from a checkpoint to logits."""
