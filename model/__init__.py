"""Text, networks, losses, trainer, checkpoints, decoding, metrics. Imports only `shards`."""
