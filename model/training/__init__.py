"""Training: its data, state, steps, ranks and logs."""
