"""How the heads' log-probabilities become text: a file a decoder. What is for exported models imports no torch."""
