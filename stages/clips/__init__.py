"""Many clips at once: what a worker does with each, processes and clusters, and the cache."""
