"""Weights that others have trained and published, turned into ours: which names, sizes and characters match."""
