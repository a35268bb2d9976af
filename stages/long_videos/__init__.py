"""Videos of any length, cut into what a model can read at once."""
