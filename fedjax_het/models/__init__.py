"""Networks as two pure functions, `Model(init, apply)`."""
