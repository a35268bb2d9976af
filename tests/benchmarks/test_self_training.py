"""`python -m benchmarks.self_training` hides labels, trains every variant, and computes the gap that it closes."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from benchmarks.self_training import (
    ALL,
    FEW,
    SELF,
    SOUND,
    SelfTrainingBench,
    Trained,
    bench_self_training,
    hide_labels,
    print_bench,
)
from pipeline.params import recipe_text
from shards.errors import ConfigError
from tests.support.packed import pack_clips, toy_clips

SMALL = (
    "model.preset=cnn3d_bilstm_attention",
    "model.sizes={channels: [4, 8, 8, 12], hidden_dim: 16, num_lstm_layers: 1, pool_grid: 3}",
    "model.frame_height=24",
    "model.frame_width=24",
    "train.batch_size=4",
    "train.mixed_precision=false",
    "machine.device=cpu",
    "machine.threads=1",
    "machine.num_workers=0",
)


def test_a_tiny_run_gives_every_figure_and_is_not_trained_again(tmp_path: Path) -> None:
    packed = pack_clips(tmp_path / "packed", toy_clips(24, 2))
    params = tmp_path / "params.yaml"
    params.write_text(recipe_text("grid"))
    paths = (f"paths.samples={packed.samples}", f"paths.shards={packed.shards}")
    options = {
        "chosen": [FEW, ALL, SELF],
        "seeds": [0],
        "num_labelled": 8,
        "epoch_clips": 16,
        "num_epochs": 4,
        "assignments": [*SMALL, *paths],
    }
    result = bench_self_training(params, tmp_path / "out", lambda _: None, **options)  # type: ignore[arg-type]
    assert [one.variant for one in result.runs] == [FEW, ALL, SELF]
    assert {one.passes for one in result.runs} == {64} and result.num_hidden == 16
    few, _, ours = result.runs
    # labels at the start of epochs 2 and 3, in two views
    assert (few.readings, ours.readings) == (0, 2 * 2 * 16)
    assert [labelling["epoch"] for labelling in ours.labellings] == [2, 3]
    assert all("pseudo_cer" in labelling for labelling in ours.labellings)
    written = (tmp_path / "out/results.json").read_text()
    assert json.loads(written)["summary"].keys() == {FEW, ALL, SELF}
    states = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/runs/*/last.pt")}
    assert len(states) == 3
    bench_self_training(params, tmp_path / "out", lambda _: None, **options)  # type: ignore[arg-type]
    assert {path: path.stat().st_mtime_ns for path in states} == states
    assert (tmp_path / "out/results.json").read_text() == written
    text = io.StringIO()
    print_bench(result, Console(file=text, width=120))
    assert "8 clips with labels, 16 without" in text.getvalue() and SELF in text.getvalue()


def test_only_training_clips_are_hidden_and_a_seed_draws_them(tmp_path: Path) -> None:
    packed = pack_clips(tmp_path, toy_clips(24, 3))
    assert hide_labels(packed.samples, tmp_path / "0.parquet", 10, 0) == 14
    hide_labels(packed.samples, tmp_path / "1.parquet", 10, 1)
    before, *after = (
        pq.read_table(path) for path in (packed.samples, tmp_path / "0.parquet", tmp_path / "1.parquet")
    )
    labelled = []
    for table in after:
        assert table.drop_columns("split").equals(before.drop_columns("split"))
        splits = list(zip(before["split"].to_pylist(), table["split"].to_pylist(), strict=True))
        assert {pair for pair in splits if pair[0] != "train"} == {("valid", "valid"), ("test", "test")}
        assert [splits.count(("train", split)) for split in ("train", "unlabelled")] == [10, 14]
        labelled.append(table.filter(table["split"].to_numpy(zero_copy_only=False) == "train")["clip_id"])
    assert labelled[0] != labelled[1]
    with pytest.raises(ConfigError, match="has 24 training clips; --labelled must be less"):
        hide_labels(packed.samples, tmp_path / "2.parquet", 24, 0)


def test_the_gap_closed_is_a_share_of_that_between_the_means() -> None:
    cers = {FEW: [0.30, 0.20], ALL: [0.06, 0.04], SELF: [0.17, 0.19], SOUND: [0.15, 0.15]}
    runs = [
        Trained(name, seed, cer, None, 1, 0) for name, all_ in cers.items() for seed, cer in enumerate(all_)
    ]
    result = SelfTrainingBench({}, 80, 720, runs)
    assert result.gap_closed(SELF) == pytest.approx((0.25 - 0.18) / (0.25 - 0.05))
    assert result.summary()[FEW]["lowest"] == 0.2 and result.summary()[FEW]["highest"] == 0.3
    by_name = {goal["name"]: goal for goal in result.goals()}
    assert by_name[f"{SELF}: share of the gap closed"]["is_reached"]
    sound = by_name[f"{SOUND}: CER as a share of that of {FEW}"]
    assert sound["figure"] == pytest.approx(0.6) and sound["is_reached"]
    assert SelfTrainingBench({}, 80, 720, runs[:2]).goals() == []
