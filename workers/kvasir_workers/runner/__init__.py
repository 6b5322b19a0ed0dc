"""From a plan to sampled tokens: batch, forward pass, sampling."""
