"""A drawn miniature of each corpus layout goes through all commands, from its recipe and videos to a report."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.project import write_recipe
from tests.support.crop_runs import forked_workers
from tests.support.in_process import pipeline
from tests.support.layouts import LAYOUTS

SMALL = {
    "corpus.media_kind": "mouth",
    "crop.min_frames": 8,
    "model.preset": "cnn3d_bilstm_attention",
    "model.frame_height": 24,
    "model.frame_width": 24,
    "model.sizes": "{channels: [4, 4, 4, 4], hidden_dim: 8, num_lstm_layers: 1, pool_grid: 1}",
    "train.num_epochs": 1,
    "train.warmup_epochs": 0,
    "train.ema_decay": 0.0,
    "report.resamples": 100,
    "machine.workers": 1,
    "machine.num_workers": 0,
    "machine.threads": 1,
    "machine.device": "cpu",
    "machine.trackers": "[]",
}
# split, speaker, label and frames of each packed clip; a drawn video has 24 frames, and 0.48 s are 12
EXPECTED = {
    "cmlr": [
        ("train", "s1", "你好", 24),
        ("train", "s2", "我们", 24),
        ("valid", "s1", "好的", 24),
        ("test", "s2", "你们", 24),
    ],
    "cnvsrc": [
        ("train", "n001", "你好", 24),
        ("train", "s00001", "我们好", 24),
        ("valid", None, "我们", 24),
        ("test", "cnvsrc-single", "你们", 24),
    ],
    "lrs2": [
        ("train", None, "so we go", 24),
        ("train", None, "hello", 24),
        ("valid", None, "its on", 24),
        ("test", None, "we go", 24),
    ],
    "lrs3": [
        ("train", "0Fi83BHQsMA", "so we go", 24),
        ("train", "0Fi83BHQsMA", "hello", 24),
        ("valid", "-a_b-c_d-e_", "its on", 24),
        ("test", "zzzzzzzzzzz", "we go", 24),
    ],
    "manifest": [
        ("train", "anna", "hello", 24),
        ("train", "7", "so", 12),
        ("train", "7", "we", 12),
        ("valid", "bob", "its", 10),
        ("test", None, "go", 24),
    ],
    "kaldi": [
        ("train", "anna", "so we", 12),
        ("train", "anna", "go", 12),
        ("valid", "bob", "hello", 24),
        ("test", None, "its", 24),
    ],
}
LANGUAGES = {"cmlr": "zh", "cnvsrc": "zh", "lrs2": "en", "lrs3": "en"}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_miniature_goes_from_videos_to_a_report(kind: str, tmp_path: Path) -> None:
    corpus = LAYOUTS[kind](tmp_path / "corpus")
    write_recipe(kind, tmp_path / "params.yaml", "corpus", force=False)
    values = SMALL | {"corpus.table": corpus.table, "corpus.valid_fraction": corpus.valid_fraction}
    settings = [f"--set={key}={value}" for key, value in values.items()]

    def run(verb: str) -> None:
        done = pipeline(tmp_path, [verb, *settings])
        assert done.returncode == 0, done.stderr

    with forked_workers():
        run("preprocess")
    run("train")
    run("report")
    rows = pq.read_table(tmp_path / "data" / "samples.parquet").to_pylist()
    found = [(row["split"], row["speaker"], row["label"], row["num_frames"]) for row in rows]
    assert sorted(found, key=repr) == sorted(EXPECTED[kind], key=repr)
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text("utf-8"))
    test = [label for split, _, label, _ in EXPECTED[kind] if split == "test"]
    assert (metrics["num_clips"], metrics["num_rejected"]) == (1, 0)
    assert metrics["num_chars"] == sum(map(len, test))
    # of the four official splits, only that of CMLR shares people between training and test
    assert metrics["speaker_overlap"] == {"cmlr": 1, "cnvsrc": 0, "lrs3": 0}.get(kind)
    card = (tmp_path / "data" / "shards" / "README.md").read_text("utf-8")
    assert f"- {LANGUAGES[kind]}\n" in card if kind in LANGUAGES else "language:" not in card
