"""Training: the loop, its data, its state, its ranks, and what it shows."""
