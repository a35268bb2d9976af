"""Writes the tables of small corpora, in the layout of Chinese-LiPS or as one table; no videos."""

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.settings import CorpusParams

HEADER = "ID,TOPIC,WAV,PPT,FACE,TEXT"

ID = "012_25_F_KJ_003"


def chinese_lips(
    root: Path,
    train: str = "",
    valid: str = "",
    test: str = "",
    header: str = HEADER,
    encoding: str = "utf-8-sig",
) -> CorpusParams:
    root.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", train), ("valid", valid), ("test", test)):
        (root / f"meta_{split}.csv").write_bytes(f"{header}\r\n{rows}".encode(encoding))
    return CorpusParams(root=str(root))


def row(clip_id: str = ID, face: str = "", text: str = "你好,世界。") -> str:
    return f'{clip_id},KJ,w.wav,p.mp4,{face},"{text}"\r\n'


def table(root: Path, columns: dict[str, Any], suffix: str = "csv", **params: Any) -> CorpusParams:
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"clips.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    return CorpusParams(kind="table", root=str(root), table=path.name, **params)
