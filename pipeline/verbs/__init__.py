"""The verbs of `pipeline`: options and help, thin."""
