"""Ways of writing the items of a history as tokens."""
