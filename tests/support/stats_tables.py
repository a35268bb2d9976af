"""Tables of small corpora for stage stats, and its results."""

import csv
import json
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from shards.files import table_from_rows, write_table
from shards.schema import CLIPS, CROPS, SAMPLES
from stages.statistics.tables import print_stats
from stages.stats import stats

JSON_FILES = (
    "splits",
    "rejections",
    "topics",
    "vocabulary",
    "annotations",
    "overlap",
    "histograms",
    "shards",
)
Row = dict[str, Any]


def clip(clip_id: str, split: str, label: str, speaker: str | None = None, topic: str | None = None) -> Row:
    return dict.fromkeys(CLIPS.names) | {
        "clip_id": clip_id,
        "split": split,
        "speaker": speaker,
        "topic": topic,
        "media": f"{clip_id}.mp4",
        "text": label,
        "label": label,
        "num_chars": len(label),
    }


def crop(clip_id: str, num_frames: int, reason: str | None = None) -> Row:
    return dict.fromkeys(CROPS.names) | {
        "clip_id": clip_id,
        "status": "rejected" if reason else "ok",
        "reason": reason,
        "num_frames": num_frames,
        "duration_s": num_frames / 25,
    }


def sample(row: Row) -> Row:
    numbers = {name: 0 for name in SAMPLES.names if name.endswith(("offset", "size", "frames"))}
    texts = {"shard": "train/train-000000.tar", "sha256": "0", "codec": "raw"}
    return {name: row.get(name) for name in SAMPLES.names} | numbers | texts


CLIP_ROWS = [
    clip("a", "train", "今天好", "s1", "KJ"),
    clip("b", "train", "今天天", "s2", "KJ"),
    clip("c", "train", "罕", "s2", "TY"),
    clip("d", "test", "罕见好", "s1", "TY"),
    clip("e", "test", "见e\u0301", "s3"),
    clip("f", "unseen", "", None),
    clip("g", "valid", "好", "s4", "KJ"),
]
for _row, _kind in zip(CLIP_ROWS, ("face", "mouth", None, "face", "face", "mouth", "face"), strict=True):
    _row["media_kind"] = _kind
CROP_ROWS = [
    crop("a", 75),
    crop("b", 100),
    crop("c", 5, "too_short"),
    crop("d", 75),
    crop("e", 50),
    crop("f", 30, "empty_text"),
    crop("g", 79),
]


def write(
    folder: Path, clips: list[Row], crops: list[Row] | None, samples: list[Row] | None
) -> list[Path | None]:
    paths: list[Path | None] = []
    for name, rows, schema in (
        ("clips", clips, CLIPS),
        ("crops", crops, CROPS),
        ("samples", samples, SAMPLES),
    ):
        paths.append(None if rows is None else folder / f"{name}.parquet")
        if rows is not None:
            write_table(folder / f"{name}.parquet", table_from_rows(rows, schema), schema)
    return paths


def run(folder: Path, clips: list[Row], crops: list[Row] | None, samples: list[Row] | None) -> dict[str, Any]:
    clips_path, crops_path, samples_path = write(folder, clips, crops, samples)
    assert clips_path is not None
    summary = stats(clips_path, crops_path, samples_path, folder / "stats")
    for name in JSON_FILES:
        assert json.loads((folder / "stats" / f"{name}.json").read_text("utf-8")) == summary[name]
    return summary


def plot(path: Path) -> dict[int, int]:
    with path.open(encoding="utf-8") as file:
        return {int(x): int(y) for x, y in list(csv.reader(file))[1:]}


def printed(summary: dict[str, Any]) -> str:
    """Returns what `pipeline stats` prints."""
    out = StringIO()
    print_stats(summary, Console(file=out, width=200))
    return out.getvalue()
