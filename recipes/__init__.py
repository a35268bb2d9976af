"""Complete params.yaml files; `pipeline init --recipe NAME` writes one."""

RECIPES = ("demo", "grid", "chinese_lips", "chinese_lips_conformer", "table")
