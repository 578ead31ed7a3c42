"""Training: one step, one loop, checkpoints and logs, for any method that keeps the contract in `method`."""
