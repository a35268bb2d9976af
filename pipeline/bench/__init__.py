"""Measurements of the pipeline on the machine at hand: every speed or memory figure of the docs comes from here."""
