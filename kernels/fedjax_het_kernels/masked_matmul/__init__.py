"""Products with weights under a packed mask, and the masks' training step."""
