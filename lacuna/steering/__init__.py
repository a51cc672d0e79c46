"""From weights to activations and back: contrast vectors, the shift of a step, steering, and what both are worth."""
