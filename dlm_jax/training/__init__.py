"""Training: optimizer, state, one step, checkpoints, metrics, and the loop that runs them."""
