"""Video files in: where their bytes are, and gray and colour pictures with times out."""
