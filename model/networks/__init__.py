"""Frontends, encoders and decoders of the network, and the whole network."""
