"""Use 1 of curvature, precondition: optimizers as optax transforms."""
