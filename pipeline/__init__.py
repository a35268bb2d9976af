"""The `pipeline` command, the typed view of params.yaml, the demo corpus, the doctor."""

__version__ = "0.1.0"
