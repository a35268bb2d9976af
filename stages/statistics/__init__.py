"""The figures of stage stats, and their tables."""
