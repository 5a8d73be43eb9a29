"""What the Router does, one module per operation, on top of its ports."""
