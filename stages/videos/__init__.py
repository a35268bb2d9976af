"""Reads video files: finds their bytes, and gives gray and colour pictures with times."""
