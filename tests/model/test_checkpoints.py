"""Checkpoint files that are damaged, truncated, missing or of another version."""

import ast
import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoints import CHECKPOINT_VERSION, load_checkpoint, save_checkpoint
from model.decoding.reader import LipReader
from model.runs import RunFolder
from model.settings import TextParams
from model.training.last_checkpoint import load_last, newest_intact, save_last
from model.training.run_choice import run_of
from model.training.training_data import TrainingData
from shards.errors import CheckpointError, Interrupted
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.resuming import state_of, stopping_at
from tests.support.trainings import assert_same_weights, job_in

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(12, 2))


@pytest.fixture(scope="module")
def state(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The state of a training of small networks before its first step."""
    return state_of(job_in(tmp_path_factory.mktemp("state"), packed, ema_decay=0.9)).as_checkpoint(None)


def run_with(folder: Path, state: dict[str, Any], *num_batches: int) -> RunFolder:
    """Returns a run that saved last.pt after each of these numbers of batches."""
    run = RunFolder(folder / "runs", "run")
    for number in num_batches:
        save_last(run, state | {"progress": state["progress"] | {"batches_done": number}})
    return run


def batches_done(path: Path) -> int:
    return int(load_checkpoint(path)["progress"]["batches_done"])


# -- damage --------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_refused_or_harmless_wherever_it_is(tmp_path: Path, state: dict[str, Any]) -> None:
    """torch.load itself reads a flipped weight without an error."""
    small = state | {"model_state_dict": {"a": torch.arange(60.0)}, "training_state_dict": None}
    small |= {"optimizer_state_dict": {}, "random_state": torch.zeros(1, 3, dtype=torch.uint8)}
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    save_checkpoint(good, small)
    content = good.read_bytes()
    expected = load_checkpoint(good)
    num_refused = 0
    for position in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        bad.write_bytes(flipped)
        try:
            found = load_checkpoint(bad)
        except CheckpointError as error:
            assert "bad.pt" in str(error)
            num_refused += 1
            continue
        assert torch.equal(found["model_state_dict"]["a"], expected["model_state_dict"]["a"]), position
        assert found["progress"] == expected["progress"], position
    assert num_refused > len(content) / 3 / 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_when_a_checkpoint_is_opened(
    tmp_path: Path, state: dict[str, Any], value: float
) -> None:
    """Greedy decoding would not fail: it would give an empty text, and a confidence that JSON cannot express."""
    weights = {name: tensor.clone() for name, tensor in state["model_state_dict"].items()}
    path = tmp_path / "best_model.pt"
    save_checkpoint(path, state | {"model_state_dict": weights})
    LipReader.from_checkpoint(path, torch.device("cpu"))
    weights["ctc_head.weight"].view(-1)[-1] = value
    weights["ctc_head.bias"][0] = value
    save_checkpoint(path, state | {"model_state_dict": weights})
    with pytest.raises(
        CheckpointError, match=r"best_model\.pt.*not finite.*ctc_head\.weight, ctc_head\.bias"
    ) as caught:
        LipReader.from_checkpoint(path, torch.device("cpu"))
    assert "train.learning_rate" in str(caught.value)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused(tmp_path: Path, state: dict[str, Any], share: float) -> None:
    path = tmp_path / "truncated.pt"
    save_checkpoint(path, state)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    for mapped in (False, True):
        with pytest.raises(CheckpointError, match=r"truncated\.pt is damaged"):
            load_checkpoint(path, mapped)


@pytest.mark.parametrize("version", [1, 2])
def test_a_checkpoint_of_another_version_is_refused_with_both_versions(
    tmp_path: Path, state: dict[str, Any], version: int
) -> None:
    older = {key: value for key, value in state.items() if key not in ("heads", "averaged_steps")}
    torch.save(older | {"version": version}, tmp_path / "older.pt")
    message = f"version {version}, this program reads {CHECKPOINT_VERSION}; train again"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "older.pt")


def test_checkpoints_of_older_normalisers_are_read(tmp_path: Path, state: dict[str, Any]) -> None:
    """Version 1 had neither digits nor simplify. Without them version 2 makes the same labels, version 3 nearly all."""
    text = {key: value for key, value in state["text_params"].items() if key not in ("digits", "simplify")}
    save_checkpoint(tmp_path / "older.pt", state | {"normaliser_version": 1, "text_params": text})
    assert LipReader.from_checkpoint(tmp_path / "older.pt", torch.device("cpu")).text == TextParams()
    save_checkpoint(tmp_path / "second.pt", state | {"normaliser_version": 2})
    assert "(version 2)" in LipReader.from_checkpoint(tmp_path / "second.pt", torch.device("cpu")).normaliser
    save_checkpoint(tmp_path / "newer.pt", state | {"normaliser_version": 99})
    with pytest.raises(CheckpointError, match="normaliser version 99, this program reads 1, 2, 3"):
        load_checkpoint(tmp_path / "newer.pt")


def test_no_code_loads_a_checkpoint_without_weights_only() -> None:
    calls = []
    for folder in ("model", "stages", "pipeline", "shards", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text("utf-8")
            # parsing all files takes a second
            for call in ast.walk(ast.parse(text)) if "load" in text and "torch" in text else ():
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "torch.load":
                    calls.append((path.name, {k.arg: ast.unparse(k.value) for k in call.keywords}))
    assert calls
    assert [name for name, keywords in calls if keywords.get("weights_only") != "True"] == []


# -- the last and the previous checkpoint -----------------------------------------------------------------


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        # in the largest tensor, where only the checksum shows it
        weights = max(load_checkpoint(path)["model_state_dict"].values(), key=torch.numel)
        content[content.index(weights.numpy().tobytes()) + 5] ^= 16
        path.write_bytes(content)


DAMAGES = ["missing", "truncated", "empty", "flipped"]


@pytest.mark.parametrize("how", DAMAGES)
def test_training_falls_back_to_the_previous_checkpoint_if_the_last_is_damaged(
    tmp_path: Path, state: dict[str, Any], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_with(tmp_path, state, 2, 4, 6)
    assert (batches_done(run.before_last), batches_done(run.last)) == (4, 6)
    spoil(run.last, how)
    with caplog.at_level(logging.WARNING, "pipeline.train"):
        found = load_last(run)
    assert found is not None
    assert (found[0]["progress"]["batches_done"], found[1]) == (4, run.before_last)
    (message,) = caplog.messages
    assert str(run.last) in message and ("missing" if how == "missing" else "damaged") in message
    assert f"resuming from the previous checkpoint {run.before_last}: epoch 0 after 4 batches" in message
    # the damaged file does not replace the previous checkpoint until the next one is complete
    save_last(run, found[0] | {"progress": state["progress"] | {"batches_done": 5}})
    assert (batches_done(run.before_last), batches_done(run.last)) == (4, 5)
    save_last(run, found[0] | {"progress": state["progress"] | {"batches_done": 7}})
    assert (batches_done(run.before_last), batches_done(run.last)) == (5, 7)


@pytest.mark.parametrize(
    ("modified", "problem"),
    [
        ({"epoch": "5"}, r"progress\.epoch is '5'"),
        ({"batches_done": None}, r"progress\.batches_done is None"),
        ({"epoch": torch.zeros(3)}, r"progress\.epoch is tensor"),
        ({"other": 1}, "unexpected keyword argument 'other'"),
    ],
)
def test_wrong_progress_in_the_previous_checkpoint_is_reported(
    tmp_path: Path, state: dict[str, Any], modified: dict[str, Any], problem: str
) -> None:
    run = run_with(tmp_path, state, 2, 4)
    spoil(run.last, "truncated")
    save_checkpoint(run.before_last, state | {"progress": state["progress"] | modified})
    with pytest.raises(CheckpointError, match=rf"{run.before_last} was modified.*{problem}"):
        load_last(run)


def test_progress_without_newer_fields_gets_their_defaults(
    tmp_path: Path, state: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    run = run_with(tmp_path, state, 2, 4)
    spoil(run.last, "missing")
    save_checkpoint(run.before_last, state | {"progress": {"epoch": 3}})
    assert load_last(run) is not None
    assert f"{run.before_last}: epoch 3 after 0 batches" in caplog.text


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("with_epoch", [False, True])
def test_if_both_checkpoints_are_damaged_the_error_names_the_fix(
    tmp_path: Path, state: dict[str, Any], how: str, with_epoch: bool
) -> None:
    run = run_with(tmp_path, state, 2, 4)
    spoil(run.last, how)
    spoil(run.before_last, "truncated")
    if with_epoch:
        save_checkpoint(run.epoch_checkpoint(0), state)
    with pytest.raises(CheckpointError) as caught:
        load_last(run)
    message = str(caught.value)
    assert str(run.last) in message and str(run.before_last) in message
    assert f"remove {run.folder} to train from scratch" in message
    assert (f"--resume {run.epoch_checkpoint(0)}" in message) == with_epoch


def test_training_does_not_start_over_if_its_only_checkpoint_is_damaged(
    tmp_path: Path, state: dict[str, Any]
) -> None:
    run = run_with(tmp_path, state, 2)
    spoil(run.last, "flipped")
    with pytest.raises(CheckpointError, match="the checksum of"):
        load_last(run)
    assert newest_intact(RunFolder(tmp_path / "runs", "another")) is None


@pytest.fixture(scope="module")
def whole(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("whole")
    train(job_in(folder, packed, ema_decay=0.9))
    return folder


@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_a_training_that_falls_back_gives_the_same_model(
    tmp_path: Path,
    packed: Packed,
    whole: Path,
    how: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stages.train.SAVE_EVERY_S", -1.0)
    job = job_in(tmp_path, packed, ema_decay=0.9)
    with pytest.raises(Interrupted):
        train(stopping_at(job, 1, 2))
    run = run_of(job, TrainingData(job))
    spoil(run.last, how)
    # another training names this unfinished run
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(job_in(tmp_path, packed, num_epochs=1, seed=7))
    reported = any(f"{run.folder} is unfinished, in epoch 1 of 3" in message for message in caplog.messages)
    assert reported and "previous checkpoint" not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(job)
    assert f"resuming from the previous checkpoint {run.before_last}" in caplog.text
    for name in ("best_model.pt", "checkpoint_epoch_2.pt"):
        assert_same_weights(tmp_path / "checkpoints" / name, whole / "checkpoints" / name)


def test_old_partial_files_of_killed_processes_are_removed(tmp_path: Path, state: dict[str, Any]) -> None:
    run = run_with(tmp_path, state, 2)
    old, young = run.folder / ".last.pt.old.tmp", run.folder / ".last.pt.young.tmp"
    for path in (old, young):
        path.write_bytes(b"partial")
    os.utime(old, (time.time() - 3600,) * 2)
    run.start("", {})
    assert (old.exists(), young.exists(), run.last.exists()) == (False, True, True)


# -- train.init_from and --resume ------------------------------------------------------------------------


def test_the_content_of_the_init_from_file_is_part_of_the_run_fingerprint(
    tmp_path: Path, packed: Packed
) -> None:
    """Weights and their average start from the file; other content under the same name starts another run."""
    train(job_in(tmp_path / "first", packed, num_epochs=1))
    file = tmp_path / "first/checkpoints/best_model.pt"
    job = job_in(tmp_path / "second", packed, init_from=str(file), ema_decay=0.9, seed=4)
    state = state_of(job)
    run = run_of(job, TrainingData(job))
    assert state.restore(run) is None
    first = load_checkpoint(file)["model_state_dict"]
    assert state.average is not None
    for network in (state.network, state.average.network):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, first[name]), name
    train(job_in(tmp_path / "first", packed, num_epochs=1, seed=1))
    assert run_of(job, TrainingData(job)).folder != run.folder
    file.unlink()
    with pytest.raises(CheckpointError, match=r"train\.init_from: .*best_model\.pt is missing"):
        run_of(job, TrainingData(job))


def test_a_checkpoint_that_cannot_be_resumed_is_refused_with_a_hint_to_init_from(
    tmp_path: Path, packed: Packed
) -> None:
    train(job_in(tmp_path / "first", packed, num_epochs=1))
    file = tmp_path / "first/checkpoints/best_model.pt"
    job = replace(job_in(tmp_path / "second", packed, freeze=("frontend",)), resume=file)
    with pytest.raises(CheckpointError, match=rf"train\.freeze.*--set train\.init_from={file}"):
        train(job)
    save_checkpoint(file, load_checkpoint(file) | {"optimizer_state_dict": None})
    with pytest.raises(CheckpointError, match=rf"no training to resume.*train\.init_from={file}"):
        train(replace(job_in(tmp_path / "third", packed), resume=file))
