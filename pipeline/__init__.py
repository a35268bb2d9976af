"""The `pipeline` command, the typed parameters, the demo corpus and the doctor."""

__version__ = "0.1.0"
