"""Crops many clips at once: the work for one clip, local processes, Ray clusters, and the cache."""
