"""A replica of several ranks: who has which part of the model, and how the parts make one step."""
