"""The corpus of a table, and the parameters with which tests ingest it."""

import csv
from pathlib import Path

from model.settings import TextParams
from stages.settings import CorpusParams, CropParams

TEXT, CROP = TextParams(), CropParams()


def corpus_of(root: Path, rows: list[tuple[str, str, str, str, str]], overlap: str = "error") -> CorpusParams:
    root.mkdir(parents=True, exist_ok=True)
    with (root / "clips.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("clip_id", "split", "speaker", "media", "text"))
        writer.writerows(rows)
    return CorpusParams.model_validate({"kind": "table", "root": str(root), "speaker_overlap": overlap})
