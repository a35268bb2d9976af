"""A trained network as a file that others run, and the reader of such a file. The reader imports no torch."""
