"""Eyes, encoders and decoders of the network, and how they are put together."""
