"""`python -m benchmarks.audit`: exchanged labels of clips that a small network learns are found."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.audit import LEFT_OUT, AuditBench, bench_audit, exchange_labels, print_audit_bench
from model.settings import AugmentParams
from model.training.training_data import TrainingJob
from shards.files import read_table
from shards.schema import SAMPLES
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.trainings import job_in, with_sizes


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    clips = toy_clips(60, 4, frames_a_char=4)
    return pack_clips(tmp_path_factory.mktemp("packed"), clips, clips_a_shard=60)


def bench(folder: Path, packed: Packed, num_epochs: int, trains: bool, share: float = 0.3) -> AuditBench:
    job: TrainingJob = job_in(
        folder,
        packed,
        num_epochs=num_epochs,
        ctc_weight=1.0,
        learning_rate=1e-2,
        batch_size=8,
        accumulation_steps=1,
        valid_every=20,
        augment=AugmentParams(flip=False),
    )
    model = with_sizes(hidden_dim=48).model_copy(update={"dropout": 0.0})
    return bench_audit(replace(job, model=model), folder, share, 2, 0, trains, lambda _: None)


def test_labels_are_exchanged_among_the_drawn_training_clips(tmp_path: Path, packed: Packed) -> None:
    drawn = [exchange_labels(packed.samples, tmp_path / "a.parquet", 0.3, seed) for seed in (1, 1, 0)]
    assert drawn[0] == drawn[1] != drawn[2] and 15 <= len(drawn[2]) <= 18
    before, after = (
        {row["clip_id"]: row for row in read_table(path, SAMPLES, "pipeline pack").to_pylist()}
        for path in (packed.samples, tmp_path / "a.parquet")
    )
    changed = {clip_id for clip_id, row in after.items() if row["label"] != before[clip_id]["label"]}
    assert changed == drawn[2] and all(clip_id.startswith("train_") for clip_id in changed)
    for clip_id, row in after.items():
        same = before[clip_id] | {"label": row["label"], "num_chars": len(row["label"])}
        assert row == same, "nothing else changes"


def test_most_exchanged_labels_are_found_and_few_others(tmp_path: Path, packed: Packed) -> None:
    result = bench(tmp_path, packed, num_epochs=12, trains=False)
    assert result.recall >= 0.8 and result.precision >= 0.8
    assert min(result.ranking.values()) >= 0.8
    assert result.estimated_share == pytest.approx(result.num_exchanged / result.num_clips, abs=0.1)


def test_a_tiny_run_gives_every_figure(tmp_path: Path, packed: Packed) -> None:
    result = bench(tmp_path, packed, num_epochs=1, trains=True)
    assert result.test_cer.keys() == {"clean", "exchanged", LEFT_OUT}
    text = io.StringIO()
    print_audit_bench(result, Console(file=text, width=120))
    assert "of 60 labels exchanged, estimated: " in text.getvalue()
    assert f"labels {LEFT_OUT}: CER on test" in text.getvalue()
