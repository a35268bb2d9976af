"""Complete params.yaml files; `pipeline init --recipe NAME` writes one."""
