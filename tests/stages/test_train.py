"""Training on toy clips: it learns, resumes from a checkpoint, and rejects invalid inputs."""

import csv
import json
import logging
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoints import OLDER_KEYS, load_checkpoint
from model.decoding.reader import LipReader
from model.device import Precision
from model.metrics import total_counts
from model.runs import RunFolder
from model.settings import DecodeParams, ModelParams
from model.training.run_messages import log_left_out
from model.training.training_data import TrainingSummary
from shards.errors import CheckpointError, ConfigError, TrainingError
from shards.plan import plan_epoch
from shards.samples import read_samples
from shards.settings import LoaderParams, MachineParams
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clip, toy_clips
from tests.support.trainings import MODEL, assert_same_weights, job_in, read_test_clips, with_sizes


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, packed: Packed) -> tuple[Path, TrainingSummary]:
    """A run of three epochs, which tests only read or copy."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(job_in(folder, packed))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, packed: Packed) -> Path:
    """A run of one epoch, which tests only read or copy."""
    folder = tmp_path_factory.mktemp("short")
    train(job_in(folder, packed, num_epochs=1))
    return folder


def test_a_run_writes_the_files_of_the_older_trainer(
    tmp_path: Path, packed: Packed, whole: tuple[Path, TrainingSummary]
) -> None:
    summary = whole[1]
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoints"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.yaml",
        "tokenizer.json",
        "published.json",
        "best_model.pt",
        "model.safetensors",
        "config.json",
        "checkpoint_epoch_0.pt",
        "checkpoint_epoch_2.pt",
    }
    state = torch.load(folder / "checkpoint_epoch_2.pt", weights_only=True)
    assert state.keys() >= set(OLDER_KEYS)
    assert state["epoch"] == 2 and summary.epochs == 3
    assert json.loads((folder / "tokenizer.json").read_text())["characters"] == list("一三二四")
    log = (tmp_path / "logs" / "training.log").read_text()
    for line in ("Train samples: 24", "Val samples: 6", "Vocabulary size: 8", "Total parameters: "):
        assert line in log
    assert f"{summary.num_parameters:,}" in log
    assert log.count("train_loss=") == 3
    with (tmp_path / "logs/curves.csv").open(newline="", encoding="utf-8") as file:
        rows = [
            {name: float(value) if value else None for name, value in row.items()}
            for row in csv.DictReader(file)
        ]
    metrics = json.loads((tmp_path / "logs/metrics.json").read_text("utf-8"))
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert metrics == {**rows[-1], "best_val_cer": min(row["val_cer"] for row in rows)}
    # a finished run is not trained again, but its outputs, which DVC has removed, are written again
    shutil.rmtree(tmp_path / "logs")
    again = train(job_in(tmp_path, packed))
    assert again.already_done and again.epochs == 3
    assert json.loads((tmp_path / "logs/metrics.json").read_text("utf-8")) == metrics


def test_both_decoders_learn_to_read_and_blind_reading_fails(tmp_path: Path) -> None:
    packed = pack_clips(tmp_path, toy_clips(60, 8, frames_a_char=4))
    changes = {
        "num_epochs": 24,
        "batch_size": 6,
        "accumulation_steps": 1,
        "learning_rate": 5e-3,
        "valid_every": 8,
    }
    job = job_in(tmp_path, packed, ctc_weight=0.3, teacher_forcing_end=1.0, **changes)
    summary = train(replace(job, model=with_sizes(hidden_dim=48)))
    reader = LipReader.from_checkpoint(tmp_path / "checkpoints/checkpoint_epoch_23.pt", torch.device("cpu"))
    samples = read_samples(packed.samples, "test")

    def cer(decoder: str, blind: bool) -> float:
        scored = read_test_clips(reader, packed, DecodeParams(decoder=decoder), blind)
        assert [clip.clip_id for clip in scored] == samples["clip_id"].to_pylist()
        return total_counts((clip.reference, clip.hypothesis) for clip in scored).cer

    assert summary.best_val_cer <= 0.05
    assert cer("ctc", blind=False) <= 0.05
    assert cer("attention", blind=False) <= 0.2
    assert cer("ctc", blind=True) >= 0.6


def test_resuming_from_an_epochs_checkpoint_is_exact(
    tmp_path: Path, packed: Packed, whole: tuple[Path, TrainingSummary]
) -> None:
    resumed = replace(
        job_in(tmp_path / "resumed", packed), resume=whole[0] / "checkpoints/checkpoint_epoch_0.pt"
    )
    summary = train(resumed)
    assert summary.epochs == 3 and not summary.already_done
    name = "checkpoints/checkpoint_epoch_2.pt"
    assert_same_weights(whole[0] / name, tmp_path / "resumed" / name)


def test_a_checkpoint_of_another_model_or_vocabulary_is_rejected_with_the_difference(
    tmp_path: Path, packed: Packed, short: Path
) -> None:
    checkpoint = short / "checkpoints/checkpoint_epoch_0.pt"
    other = replace(job_in(tmp_path / "b", packed), resume=checkpoint, model=with_sizes(hidden_dim=32))
    with pytest.raises(CheckpointError, match="hidden_dim: 16 there, 32 here"):
        train(other)
    extra = [*toy_clips(), ("train_new", "train", toy_clip("一二", 9), "五二")]
    other_packed = pack_clips(tmp_path / "other", extra)
    with pytest.raises(CheckpointError, match="only here '五'"):
        train(replace(job_in(tmp_path / "c", other_packed), resume=checkpoint))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x80\x02K\x01."])
def test_a_damaged_or_pickled_checkpoint_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        load_checkpoint(path)


def test_a_checkpoint_that_would_run_code_is_rejected(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"epoch": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_a_label_that_ctc_cannot_spell_is_named_before_the_first_step(tmp_path: Path) -> None:
    clips = [*toy_clips(4, 2), ("train_dense", "train", toy_clip("一", 0), "一二三四一二三四")]
    with pytest.raises(TrainingError, match="train_dense"):
        train(job_in(tmp_path, pack_clips(tmp_path, clips)))


def test_other_parameters_are_another_run(tmp_path: Path, packed: Packed, short: Path) -> None:
    shutil.copytree(short, tmp_path, dirs_exist_ok=True)
    train(job_in(tmp_path, packed, num_epochs=1, seed=1))
    assert len(list((tmp_path / "runs").iterdir())) == 2


def fake_run(tmp_path: Path, name: str, epochs: list[int]) -> RunFolder:
    run = RunFolder(tmp_path / "runs", name)
    run.start("a: 1\n", {"characters": []})
    for path in (run.best, *map(run.epoch_checkpoint, epochs)):
        path.write_bytes(b"weights")
    return run


def test_publishing_replaces_only_published_files(tmp_path: Path) -> None:
    published = tmp_path / "checkpoints"
    fake_run(tmp_path, "first", [4, 9]).publish(published)
    (published / "notes.txt").write_text("mine")
    fake_run(tmp_path, "second", [4]).publish(published)
    assert sorted(path.name for path in published.iterdir()) == [
        "best_model.pt",
        "checkpoint_epoch_4.pt",
        "config.yaml",
        "notes.txt",
        "published.json",
        "tokenizer.json",
    ]


def test_checkpoints_of_another_program_are_not_overwritten(tmp_path: Path, packed: Packed) -> None:
    theirs = tmp_path / "checkpoints/checkpoint_epoch_50.pt"
    theirs.parent.mkdir()
    theirs.write_bytes(b"a week of work")
    with pytest.raises(CheckpointError, match="checkpoint_epoch_50"):
        train(job_in(tmp_path, packed))
    assert theirs.read_bytes() == b"a week of work"


def test_other_valid_clips_are_another_run(tmp_path: Path) -> None:
    """The valid clips are part of the run; else the best model of other clips would be published."""
    clips = toy_clips(8, 4)
    train(job_in(tmp_path, pack_clips(tmp_path / "a", clips), num_epochs=1))
    fewer = [clip for clip in clips if clip[0] != "valid_003"]
    assert not train(job_in(tmp_path, pack_clips(tmp_path / "b", fewer), num_epochs=1)).already_done


def test_without_valid_clips_the_last_model_is_the_best(tmp_path: Path) -> None:
    clips = [clip for clip in toy_clips(8, 2) if clip[1] != "valid"]
    summary = train(job_in(tmp_path, pack_clips(tmp_path, clips), num_epochs=2))
    assert summary.best_val_cer is None and summary.best_epoch == 1
    assert load_checkpoint(tmp_path / "checkpoints/best_model.pt")["epoch"] == 1


def test_a_finished_checkpoint_can_be_resumed_in_another_folder(
    tmp_path: Path, packed: Packed, short: Path
) -> None:
    checkpoint = Path(shutil.copy(short / "checkpoints/checkpoint_epoch_0.pt", tmp_path / "alone.pt"))
    summary = train(replace(job_in(tmp_path / "b", packed, num_epochs=1), resume=checkpoint))
    assert summary.already_done
    assert_same_weights(checkpoint, tmp_path / "b/checkpoints/best_model.pt")


def test_a_resumed_run_uses_the_new_weight_decay(tmp_path: Path, packed: Packed, short: Path) -> None:
    checkpoint = short / "checkpoints/checkpoint_epoch_0.pt"
    train(replace(job_in(tmp_path / "b", packed, num_epochs=2, weight_decay=0.2), resume=checkpoint))
    state = load_checkpoint(tmp_path / "b/checkpoints/best_model.pt")
    groups = state["optimizer_state_dict"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.2}, "0 for biases and normalisations"


def test_precision_is_float32_when_not_mixed() -> None:
    assert Precision.choose(False, torch.device("cpu")).dtype is None


@pytest.mark.gpu
def test_training_on_the_gpu(tmp_path: Path, packed: Packed, cuda: str) -> None:
    job = job_in(tmp_path, packed, mixed_precision=True)
    assert train(replace(job, machine=MachineParams(device=cuda))).epochs == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_a_conformer_with_all_heads_is_validated_in_each_precision(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype | None
) -> None:
    monkeypatch.setattr(Precision, "choose", classmethod(lambda cls, mixed, device: cls(dtype)))
    sizes = {
        "channels": (4, 4, 8, 8),
        "hidden_dim": 16,
        "num_heads": 2,
        "feed_forward_dim": 32,
        "num_encoder_layers": 1,
    }
    model = ModelParams.model_validate(
        {**MODEL.model_dump(exclude={"sizes", "preset"}), "preset": "conformer_tiny", "sizes": sizes}
    )
    job = job_in(
        tmp_path, packed, num_epochs=1, reverse_weight=0.3, syllable_weight=0.2, mixed_precision=True
    )
    summary = train(replace(job, model=model, decode=DecodeParams(decoder="attention")))
    assert summary.best_val_cer is not None


def test_a_decoder_without_a_trained_head_is_rejected_before_training(tmp_path: Path, packed: Packed) -> None:
    job = job_in(tmp_path, packed, ctc_weight=1.0)
    steps: list[int] = []
    job = replace(job, decode=DecodeParams(decoder="attention"), on_batch=lambda *figures: steps.append(1))
    with pytest.raises(ConfigError, match="has not learnt attention; set it to ctc"):
        train(job)
    assert not steps


def test_the_training_time_is_measured(tmp_path: Path, packed: Packed) -> None:
    start = time.monotonic()
    summary = train(job_in(tmp_path, packed, num_epochs=1))
    assert 0 < summary.seconds <= time.monotonic() - start


def test_left_out_clips_are_logged_with_the_reason(
    tmp_path: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    """Clips of 12, 18 and 24 frames; a curriculum from 12 frames to all of them in two epochs."""
    lengths = read_samples(packed.samples, "train")["num_frames"].to_pylist()
    loader = LoaderParams(frame_budget=200, curriculum_epochs=2, curriculum_frames=12)
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(replace(job_in(tmp_path, packed), loader=loader))
    messages = [message for message in caplog.messages if "left out" in message]
    assert len(messages) == 2
    for message, epoch, limit in zip(messages, (0, 1), (12, 18), strict=True):
        assert f"epoch {epoch}: {sum(length > limit for length in lengths)} clips" in message
        assert f"limit of {limit} frames (loader.max_frames, loader.curriculum_epochs)" in message


def test_clips_left_out_for_equal_ranks_are_logged_separately(
    packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    samples = read_samples(packed.samples, "train").slice(0, 7)
    lengths = samples["num_frames"].to_pylist()
    params = LoaderParams(frame_budget=24, max_frames=18)
    plan = plan_epoch(samples, params, 1, 0, world_size=3)
    num_long = sum(length > 18 for length in lengths)
    num_even = (len(lengths) - num_long) % 3
    assert num_long and num_even
    with caplog.at_level(logging.INFO, "pipeline.train"):
        log_left_out(plan, samples, params, 4)
    long, even = caplog.messages
    assert f"epoch 4: {num_long} clips" in long and "limit of 18 frames" in long
    assert f"epoch 4: {num_even} clips" in even and "all ranks have the same number" in even
