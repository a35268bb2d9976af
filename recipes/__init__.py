"""Complete params.yaml files; `pipeline init --recipe NAME` writes one."""

from collections.abc import Mapping

LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "cmlr": {"root": "CMLR", "license": "LicenseRef-CMLR-research-use", "speaker_overlap": "warn"},
    "cnvsrc": {"root": "CNVSRC", "license": "LicenseRef-CNVSRC-agreement", "speaker_overlap": "warn"},
    "lrs2": {"root": "LRS2", "license": "LicenseRef-LRS2-BBC-agreement", "split_long": "true"},
    "lrs3": {"root": "LRS3", "license": "LicenseRef-LRS3-agreement", "split_long": "true"},
    "manifest": {"table": "manifests/*.jsonl"},
    "kaldi": {"table": "data/*"},
}
"""Recipes that are the recipe `table`, with the corpus.kind of their name and these values."""

FILES = ("demo", "grid", "chinese_lips", "chinese_lips_conformer", "table")
RECIPES = (*FILES, "blend", *LAYOUTS)
