"""Exports a trained network as a file for other programs, and reads such files. The reader imports no torch."""
