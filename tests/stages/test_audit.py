"""`pipeline audit`: each clip is read by a model that has not seen it; tables, resuming, and models of others."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from model.checkpoints import load_checkpoint
from model.training.training_data import OnBatch, TrainingJob
from pipeline.params import read_mapping
from shards.errors import CheckpointError, ConfigError
from shards.files import read_table
from shards.packs import Pack, Packs
from shards.schema import AUDIT
from stages import train as train_module
from stages.audit import BlindModel, audit, given_model, train_folds
from stages.train import train
from tests.support.in_process import pipeline
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.ranks import together
from tests.support.trainings import MODEL, assert_same_weights, job_in

ROOT = Path(__file__).parents[2]
NUM_TRAIN = 14


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(NUM_TRAIN, 2, frames_a_char=4))


def audited_job(folder: Path, packed: Packed, where: str = "", **changes: object) -> TrainingJob:
    job = job_in(folder, packed, **{"num_epochs": 1, "ctc_weight": 1.0, **changes})
    pack = Pack("", packed.samples, packed.store, further={"audit": folder / "audit.parquet"})
    return replace(job, packs=Packs([pack], where))


def rows_of(path: Path) -> list[dict[str, object]]:
    return read_table(path, AUDIT, "pipeline audit").to_pylist()


@pytest.fixture(scope="module")
def finished(
    packed: Packed, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingJob, list[BlindModel]]:
    """The trained folds, and the table of their audit."""
    job = audited_job(tmp_path_factory.mktemp("audited"), packed)
    models = train_folds(job, 3)
    progress: list[tuple[int, int]] = []
    audit(job, models, on_progress=lambda done, total: progress.append((done, total)))
    assert progress[-1] == (NUM_TRAIN, NUM_TRAIN)
    return job, models


def test_each_clip_is_read_once_by_a_model_that_has_not_seen_it(
    finished: tuple[TrainingJob, list[BlindModel]],
) -> None:
    job, models = finished
    rows = rows_of(job.packs.packs[0].further["audit"])
    labels = {row["clip_id"]: row["label"] for row in job.packs.read("train").to_pylist()}
    assert {row["clip_id"]: row["label"] for row in rows} == labels and len(rows) == NUM_TRAIN
    for model in models:
        held_out = set(model.packs.read("train")["clip_id"].to_pylist())
        assert held_out == {row["clip_id"] for row in rows if row["fold"] == model.fold}
        learnt = replace(job, packs=Packs(job.packs.packs, fold=replace(model.packs.fold, is_held_out=False)))
        identity = load_checkpoint(model.checkpoint)["plan_identity"]
        assert identity["samples"] == learnt.packs.training_hash
        assert held_out.isdisjoint(learnt.packs.read("train")["clip_id"].to_pylist())
    assert len(list(job.runs.glob("*/commands.json"))) == 3, "a run for each fold"
    for row in rows:
        assert row["contradiction"] == pytest.approx(row["reading_score"] - row["label_score"], abs=1e-5)
    order = [(not row["is_doubtful"], -row["contradiction"]) for row in rows]
    assert order == sorted(order), "the worst first"


def test_a_finished_audit_is_the_same_table_and_trains_nothing(
    finished: tuple[TrainingJob, list[BlindModel]],
) -> None:
    job, _ = finished
    table = job.packs.packs[0].further["audit"]
    before = table.read_bytes()
    table.unlink()
    batches: list[object] = []
    audit(job, train_folds(job, 3, lambda fold: lambda *figures: batches.append(figures)))
    assert batches == [] and table.read_bytes() == before


class Killed(Exception):
    """Ends a training without saving a checkpoint."""


def test_a_killed_audit_continues_in_its_fold_bit_identically(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"num_epochs": 2, "batch_size": 2, "accumulation_steps": 1}
    whole, stopped = (audited_job(tmp_path / name, packed, **changes) for name in ("whole", "stopped"))
    audit(whole, train_folds(whole, 2))
    monkeypatch.setattr(train_module, "SAVE_EVERY_S", 0.0)
    done: list[tuple[int, int, int]] = []

    def recorded(fold: int) -> OnBatch:
        def on_batch(epoch: int, batches_done: int, *_: object) -> None:
            done.append((fold, epoch, batches_done))
            if len(done) == 11:
                raise Killed

        return on_batch

    with pytest.raises(Killed):
        train_folds(stopped, 2, recorded)
    models = train_folds(stopped, 2, recorded)
    assert done[10:12] == [(1, 0, 3), (1, 0, 3)], "after the last saved batch, in the second fold"
    audit(stopped, models)
    assert (tmp_path / "whole/audit.parquet").read_bytes() == (
        tmp_path / "stopped/audit.parquet"
    ).read_bytes()
    best = Path("runs/audit/fold_1/checkpoints/best_model.pt")
    assert_same_weights(tmp_path / "whole" / best, tmp_path / "stopped" / best)


def test_folds_learn_what_a_condition_keeps_but_every_clip_is_read(tmp_path: Path, packed: Packed) -> None:
    job = audited_job(tmp_path, packed, "num_chars > 2")
    kept = set(job.packs.read("train")["clip_id"].to_pylist())
    assert 2 < len(kept) < NUM_TRAIN
    learnt: list[set[str]] = []
    for model in train_folds(job, 2):
        fold = replace(model.packs.fold, is_held_out=False)
        packs = Packs(job.packs.packs, "num_chars > 2", fold)
        assert load_checkpoint(model.checkpoint)["plan_identity"]["samples"] == packs.training_hash
        learnt.append(set(packs.read("train")["clip_id"].to_pylist()))
    assert learnt[0] | learnt[1] == kept and learnt[0].isdisjoint(learnt[1])
    audit(job, train_folds(job, 2))
    assert len(rows_of(tmp_path / "audit.parquet")) == NUM_TRAIN


def test_a_model_of_other_clips_reads_all_without_training(tmp_path: Path, packed: Packed) -> None:
    elsewhere = job_in(
        tmp_path / "elsewhere", pack_clips(tmp_path / "other", toy_clips(8, 2, seed=9)), num_epochs=1
    )
    train(elsewhere)
    checkpoint = elsewhere.checkpoints / "best_model.pt"
    job = audited_job(tmp_path, packed)
    summary = audit(job, given_model(checkpoint, job.packs), num_shown=3)
    rows = rows_of(tmp_path / "audit.parquet")
    assert {row["fold"] for row in rows} == {None} and len(rows) == NUM_TRAIN
    assert [row["clip_id"] for row in summary.worst] == [row["clip_id"] for row in rows[:3]]
    assert summary.exchanged_share is None and "read too badly to judge" in summary.warnings[0]
    assert summary.num_doubtful == 0 and not job.runs.exists()


@pytest.mark.parametrize("where", ["", "num_chars > 2"])
def test_a_model_that_learnt_from_the_clips_is_refused(tmp_path: Path, packed: Packed, where: str) -> None:
    job = audited_job(tmp_path, packed, where)
    train(job)
    with pytest.raises(CheckpointError, match=r"was trained on these clips.* without --checkpoint"):
        given_model(job.checkpoints / "best_model.pt", job.packs)


def test_each_pack_gets_its_own_table(tmp_path: Path, packed: Packed) -> None:
    other = pack_clips(tmp_path / "b", toy_clips(6, 2, seed=5, frames_a_char=4))
    job = audited_job(tmp_path, packed)
    packs = [
        Pack(name, one.samples, one.store, further={"audit": tmp_path / f"{name}.parquet"})
        for name, one in (("a", packed), ("b", other))
    ]
    job = replace(job, packs=Packs(packs))
    summary = audit(job, train_folds(job, 2), num_shown=NUM_TRAIN + 6)
    assert sorted(row["clip_id"] for row in rows_of(tmp_path / "a.parquet")) == [
        f"train_{number:03d}" for number in range(NUM_TRAIN)
    ]
    assert len(rows_of(tmp_path / "b.parquet")) == 6
    assert {row["clip_id"] for row in summary.worst} == set(job.packs.read("train")["clip_id"].to_pylist())
    unnamed = replace(job, packs=Packs([packs[0], replace(packs[1], further={})]))
    with pytest.raises(ConfigError, match=r"train\.data, pack b: names no table for the audit; add `audit: "):
        train_folds(unnamed, 2)


def trained_together(job: TrainingJob) -> list[int]:
    """Returns the number of processes that each checkpoint names; the first process publishes them."""
    models = train_folds(job, 2)
    if os.environ["RANK"] != "0":
        return []
    return [load_checkpoint(model.checkpoint)["plan_identity"]["world_size"] for model in models]


def test_processes_of_torchrun_train_each_fold_together(tmp_path: Path, packed: Packed) -> None:
    assert together(trained_together, audited_job(tmp_path, packed)) == [[2, 2], []]


def test_the_command_writes_a_table_that_queries_and_conditions_read(tmp_path: Path, packed: Packed) -> None:
    shutil.copytree(packed.shards, tmp_path / "data/shards")
    shutil.copy(packed.samples, tmp_path / "data/samples.parquet")
    params = read_mapping(ROOT / "params.yaml")
    params["machine"] |= {"threads": 1, "device": "cpu"}
    params["model"] = MODEL.model_dump(mode="json")
    params["train"] |= {"num_epochs": 1, "mixed_precision": False}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    missing = pipeline(tmp_path, ["train", "--set", "train.where=not is_doubtful"])
    assert missing.returncode == 2 and "run `pipeline" in missing.stderr
    done = pipeline(tmp_path, ["audit", "--folds", "2", "--clips", "4"])
    assert done.returncode == 0, done.stderr
    assert "fold 2 of 2, epoch 0 of 1" in done.stderr and "14/14 clips" in done.stderr
    assert done.stdout.count("train_0") == 4 and "0 of 14 labels are doubtful" in done.stdout
    again = pipeline(tmp_path, ["--quiet", "audit", "--folds", "2", "--json"])
    assert json.loads(again.stdout)["num_clips"] == 14 and len(json.loads(again.stdout)["worst"]) == 14
    found = pipeline(
        tmp_path, ["query", "SELECT count(*) AS n FROM audit WHERE contradiction > -9", "--format", "csv"]
    )
    assert found.stdout.split() == ["n", "14"]
    assert pipeline(tmp_path, ["audit", "--folds", "1"]).returncode == 2
