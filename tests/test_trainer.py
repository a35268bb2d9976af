"""Training on toy clips: it learns, it can be killed, it refuses what does not fit."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoints import OLDER_KEYS, load_checkpoint
from model.device import Precision
from model.metrics import total_counts
from model.reader import LipReader
from model.runs import RunFolder
from model.scoring import score_split
from model.settings import AugmentParams, DecodeParams, ModelParams, TextParams, TrainParams
from model.training.job import Progress, TrainingJob
from model.training.step import StepFigures, TrainingStep
from model.training.stopping import StopSignals
from model.training.trainer import train
from model.training.training_words import tell_left_out
from shards.errors import CheckpointError, ConfigError, TrainingError
from shards.plan import plan_epoch, read_samples
from shards.settings import LoaderParams, MachineParams
from tests.packed import Packed, pack_clips, toy_clip, toy_clips

MODEL = ModelParams(
    frame_height=24,
    frame_width=24,
    sizes={"channels": (4, 8, 8, 12), "hidden_dim": 16, "num_lstm_layers": 1, "pool_grid": 3},
    dropout=0.1,
)


def with_sizes(**sizes: object) -> ModelParams:
    values = MODEL.model_dump()
    return ModelParams.model_validate({**values, "sizes": {**values["sizes"], **sizes}})


TRAIN = TrainParams(
    batch_size=4,
    accumulation_steps=2,
    learning_rate=1e-2,
    num_epochs=3,
    warmup_epochs=1,
    ctc_weight=0.5,
    teacher_forcing_end=0.8,
    mixed_precision=False,
    checkpoint_every=2,
    augment=AugmentParams(speed_change=0.1, gain_sigma=0.05),
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips())


def job_in(folder: Path, packed: Packed, **changes: object) -> TrainingJob:
    return TrainingJob(
        samples=packed.samples,
        shards=packed.store,
        runs=folder / "runs",
        checkpoints=folder / "checkpoints",
        logs=folder / "logs",
        text=TextParams(),
        model=MODEL,
        train=TRAIN.model_copy(update=changes),
        loader=LoaderParams(frame_budget=200),
        decode=DecodeParams(decoder="ctc"),
        machine=MachineParams(threads=1, device="cpu"),
        config_text="made: by a test\n",
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path)["model_state_dict"]


def assert_same_weights(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_leaves_what_the_older_trainer_left(tmp_path: Path, packed: Packed) -> None:
    summary = train(job_in(tmp_path, packed))
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
    # trained once, it is not trained again
    again = train(job_in(tmp_path, packed))
    assert again.already_done and again.epochs == 3


def test_it_learns_to_read_with_both_decoders_and_nothing_when_blind(tmp_path: Path) -> None:
    packed = pack_clips(tmp_path, toy_clips(60, 8))
    changes = {"num_epochs": 30, "accumulation_steps": 1, "learning_rate": 5e-3, "valid_every": 10}
    job = job_in(tmp_path, packed, ctc_weight=0.3, teacher_forcing_end=1.0, **changes)
    summary = train(replace(job, model=with_sizes(hidden_dim=48)))
    reader = LipReader.from_checkpoint(tmp_path / "checkpoints/checkpoint_epoch_29.pt", torch.device("cpu"))
    samples = read_samples(packed.samples, "test")

    def cer(decoder: str, blind: bool) -> float:
        scored = score_split(
            reader,
            samples,
            packed.store,
            batch_size=4,
            loader=LoaderParams(),
            machine=MachineParams(),
            decode=DecodeParams(decoder=decoder),
            blind=blind,
        )
        assert [clip.clip_id for clip in scored] == samples["clip_id"].to_pylist()
        return total_counts((clip.reference, clip.hypothesis) for clip in scored).cer

    assert summary.best_val_cer <= 0.05
    assert cer("ctc", blind=False) <= 0.05
    assert cer("attention", blind=False) <= 0.2
    assert cer("ctc", blind=True) >= 0.6


def test_resume_from_an_epochs_checkpoint_goes_on_exactly(tmp_path: Path, packed: Packed) -> None:
    train(job_in(tmp_path / "whole", packed))
    resumed = replace(
        job_in(tmp_path / "resumed", packed), resume=tmp_path / "whole/checkpoints/checkpoint_epoch_0.pt"
    )
    summary = train(resumed)
    assert summary.epochs == 3 and not summary.already_done
    name = "checkpoints/checkpoint_epoch_2.pt"
    assert_same_weights(tmp_path / "whole" / name, tmp_path / "resumed" / name)


def test_a_checkpoint_of_another_model_or_vocabulary_is_refused_by_difference(
    tmp_path: Path, packed: Packed
) -> None:
    train(job_in(tmp_path, packed, num_epochs=1))
    checkpoint = tmp_path / "checkpoints/checkpoint_epoch_0.pt"
    other = replace(job_in(tmp_path / "b", packed), resume=checkpoint, model=with_sizes(hidden_dim=32))
    with pytest.raises(CheckpointError, match="hidden_dim: 16 there, 32 here"):
        train(other)
    extra = [*toy_clips(), ("train_new", "train", toy_clip("一二", 9), "五二")]
    other_packed = pack_clips(tmp_path / "other", extra)
    with pytest.raises(CheckpointError, match="only here '五'"):
        train(replace(job_in(tmp_path / "c", other_packed), resume=checkpoint))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x80\x02K\x01."])
def test_a_damaged_or_pickled_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        load_checkpoint(path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
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


def test_other_parameters_are_another_run(tmp_path: Path, packed: Packed) -> None:
    train(job_in(tmp_path, packed, num_epochs=1))
    train(job_in(tmp_path, packed, num_epochs=1, seed=1))
    assert len(list((tmp_path / "runs").iterdir())) == 2


def fake_run(tmp_path: Path, name: str, epochs: list[int]) -> RunFolder:
    run = RunFolder(tmp_path / "runs", name)
    run.start("a: 1\n", {"characters": []})
    for path in (run.best, *map(run.epoch_checkpoint, epochs)):
        path.write_bytes(b"weights")
    return run


def test_publishing_replaces_what_was_published_and_touches_nothing_else(tmp_path: Path) -> None:
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


def test_ctrl_c_to_the_whole_group_stops_and_goes_on_exactly_with_loader_threads(
    tmp_path: Path, packed: Packed
) -> None:
    """As a terminal sends it; threads read ahead meanwhile."""
    train(job_in(tmp_path / "whole", packed, num_epochs=2))
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, time, pathlib\n"
        "from dataclasses import replace\n"
        "from shards.settings import MachineParams\n"
        "from shards.errors import Interrupted\n"
        "from tests.packed import Packed\n"
        "from tests.test_trainer import job_in\n"
        "from model.training.trainer import train\n"
        "def told(epoch, done, total, loss):\n"
        "    print(epoch, done, flush=True)\n"
        "    time.sleep(0.3)\n"
        "if __name__ == '__main__':\n"
        "    folder, packed = pathlib.Path(sys.argv[1]), Packed.at(pathlib.Path(sys.argv[2]))\n"
        "    job = job_in(folder, packed, num_epochs=2)\n"
        "    machine = MachineParams(threads=1, device='cpu', num_workers=2)\n"
        "    try:\n"
        "        train(replace(job, on_batch=told, machine=machine))\n"
        "    except Interrupted as error:\n"
        "        sys.exit(f'interrupted: {error}')\n"
    )
    command = [
        sys.executable,
        str(script),
        str(tmp_path / "stopped"),
        str(packed.samples.parent),
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        assert process.stdout and process.stderr
        for line in process.stdout:
            if line.strip() == "0 4":
                os.killpg(process.pid, signal.SIGINT)
                break
        stderr = process.stderr.read()
        assert process.wait(60) == 1, stderr
    assert "interrupted: stopped in epoch 0" in stderr, stderr
    train(job_in(tmp_path / "stopped", packed, num_epochs=2))
    name = "checkpoints/best_model.pt"
    assert_same_weights(tmp_path / "whole" / name, tmp_path / "stopped" / name)


def test_other_valid_clips_are_another_run(tmp_path: Path) -> None:
    """What the best model is chosen by is part of the run: else an old choice would be published again."""
    clips = toy_clips(8, 4)
    train(job_in(tmp_path, pack_clips(tmp_path / "a", clips), num_epochs=1))
    fewer = [clip for clip in clips if clip[0] != "valid_003"]
    assert not train(job_in(tmp_path, pack_clips(tmp_path / "b", fewer), num_epochs=1)).already_done


def test_without_valid_clips_the_last_model_is_taken(tmp_path: Path) -> None:
    clips = [clip for clip in toy_clips(8, 2) if clip[1] != "valid"]
    summary = train(job_in(tmp_path, pack_clips(tmp_path, clips), num_epochs=2))
    assert summary.best_val_cer is None and summary.best_epoch == 1
    assert load_checkpoint(tmp_path / "checkpoints/best_model.pt")["epoch"] == 1


def test_a_finished_checkpoint_can_be_resumed_into_a_new_place(tmp_path: Path, packed: Packed) -> None:
    train(job_in(tmp_path / "a", packed, num_epochs=1))
    checkpoint = tmp_path / "a/checkpoints/checkpoint_epoch_0.pt"
    checkpoint = checkpoint.rename(tmp_path / "alone.pt")
    summary = train(replace(job_in(tmp_path / "b", packed, num_epochs=1), resume=checkpoint))
    assert summary.already_done
    assert_same_weights(checkpoint, tmp_path / "b/checkpoints/best_model.pt")


def test_a_resumed_run_takes_the_new_weight_decay(tmp_path: Path, packed: Packed) -> None:
    train(job_in(tmp_path / "a", packed, num_epochs=1))
    checkpoint = tmp_path / "a/checkpoints/checkpoint_epoch_0.pt"
    train(replace(job_in(tmp_path / "b", packed, num_epochs=2, weight_decay=0.2), resume=checkpoint))
    state = load_checkpoint(tmp_path / "b/checkpoints/best_model.pt")
    groups = state["optimizer_state_dict"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.2}, "none of biases and normalisations"


def test_precision_is_float32_when_not_mixed() -> None:
    assert Precision.choose(False, torch.device("cpu")).dtype is None


@pytest.mark.gpu
def test_training_on_the_gpu(tmp_path: Path, packed: Packed, cuda: str) -> None:
    job = job_in(tmp_path, packed, mixed_precision=True)
    assert train(replace(job, machine=MachineParams(device=cuda))).epochs == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_a_conformer_with_every_head_is_validated_in_any_precision(
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


def test_a_decoder_that_is_not_learnt_is_refused_before_training(tmp_path: Path, packed: Packed) -> None:
    job = job_in(tmp_path, packed, ctc_weight=1.0)
    steps: list[int] = []
    job = replace(job, decode=DecodeParams(decoder="attention"), on_batch=lambda *figures: steps.append(1))
    with pytest.raises(ConfigError, match="has not learnt attention, it has ctc"):
        train(job)
    assert not steps


def test_time_is_counted(tmp_path: Path, packed: Packed) -> None:
    start = time.monotonic()
    summary = train(job_in(tmp_path, packed, num_epochs=1))
    assert 0 < summary.seconds <= time.monotonic() - start


def test_clips_left_out_are_told_with_the_reason(
    tmp_path: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    """Clips of 12, 18 and 24 frames; a curriculum from 12 frames to all of them in two epochs."""
    lengths = read_samples(packed.samples, "train")["num_frames"].to_pylist()
    loader = LoaderParams(frame_budget=200, curriculum_epochs=2, curriculum_frames=12)
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(replace(job_in(tmp_path, packed), loader=loader))
    told = [message for message in caplog.messages if "left out" in message]
    why = "(loader.max_frames, loader.curriculum_epochs)"
    assert told == [
        f"epoch {epoch}: {sum(length > limit for length in lengths)} clips are left out, longer than this epoch's "
        f"limit of {limit} frames {why}"
        for epoch, limit in ((0, 12), (1, 18))
    ]


def test_clips_left_out_to_come_out_even_are_told_apart(
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
        tell_left_out(plan, samples, params, 4)
    assert [message.split(" (")[0] for message in caplog.messages] == [
        f"epoch 4: {num_long} clips are left out, longer than this epoch's limit of 18 frames",
        f"epoch 4: {num_even} clips are left out, to come out even over the ranks",
    ]


# -- ended early -------------------------------------------------------------------------------------------


def test_training_ends_when_the_cer_gets_no_better(
    tmp_path: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    """At a learning rate of next to nothing, where only the statistics of batches change."""
    job = job_in(tmp_path, packed, num_epochs=40, learning_rate=1e-12, patience=2, valid_every=2)
    with caplog.at_level(logging.INFO, "pipeline.train"):
        summary = train(job)
    (last,) = (tmp_path / "runs").glob("*/last.pt")
    cers = [curve["val_cer"] for curve in load_checkpoint(last)["progress"]["curves"][::2]]
    assert len(cers) >= 3 and min(cers[-2:]) >= min(cers[:-2])
    for number in range(1, len(cers) - 1):
        assert min(cers[number - 1 : number + 1]) < min([2.0, *cers[: number - 1]])
    epoch = summary.epochs - 1
    assert epoch == 2 * (len(cers) - 1) < 39
    assert "2 validations without a better CER than" in caplog.text
    assert (tmp_path / f"checkpoints/checkpoint_epoch_{epoch}.pt").exists()
    caplog.clear()
    with caplog.at_level(logging.INFO, "pipeline.train"):
        again = train(job)
    assert again.already_done and again.epochs == summary.epochs
    assert f"finished already: {summary.epochs} epochs, for want of a better CER" in caplog.text


def test_patience_counts_validations_since_the_best() -> None:
    progress, params = Progress(), TRAIN.model_copy(update={"patience": 2})
    cers = (0.9, 0.8, 0.8, 0.7, 0.75, 0.7)
    bests, ends = zip(
        *((progress.take_validated(1.0, cer), progress.stopped_early(params)) for cer in cers), strict=True
    )
    assert bests == (True, True, True, True, False, True)
    assert ends == (False,) * 5 + (True,)
    assert not progress.stopped_early(TRAIN)


class Poisoned(TrainingStep):
    """A step whose losses are no numbers in some windows."""

    windows: frozenset[int] = frozenset()
    num_windows = 0

    def __call__(self, window, epoch: int, epochs_done: float) -> StepFigures:
        Poisoned.num_windows += 1
        return super().__call__(window, epoch, epochs_done)

    def batch_loss_B(self, network, batch, epoch: int) -> torch.Tensor:
        loss_B = super().batch_loss_B(network, batch, epoch)
        return loss_B * float("nan") if Poisoned.num_windows in self.windows else loss_B


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    def poison(windows: set[int]) -> None:
        monkeypatch.setattr(Poisoned, "windows", frozenset(windows))
        monkeypatch.setattr(Poisoned, "num_windows", 0)
        monkeypatch.setattr("model.training.set_up.TrainingStep", Poisoned)

    return poison


def test_three_steps_in_a_row_without_a_finite_loss_end_training_by_their_clips(
    tmp_path: Path, packed: Packed, poisoned: Callable[[set[int]], None]
) -> None:
    poisoned({2, 3, 4})
    plan = plan_epoch(read_samples(packed.samples, "train"), LoaderParams(frame_budget=200), 4, 0)
    ids = read_samples(packed.samples, "train")["clip_id"].to_pylist()
    windows = [[ids[row] for batch in plan.batches[n : n + 2] for row in batch] for n in (2, 4)]
    with pytest.raises(TrainingError, match="3 steps in a row had no finite loss") as caught:
        train(job_in(tmp_path, packed))
    for window in windows:
        assert ", ".join(window) in str(caught.value)


def test_two_skipped_steps_are_counted_and_forgotten_by_the_next_one(
    tmp_path: Path, packed: Packed, poisoned: Callable[[set[int]], None]
) -> None:
    poisoned({1, 2, 4, 5})
    train(job_in(tmp_path, packed))
    state = load_checkpoint(tmp_path / "checkpoints/checkpoint_epoch_2.pt")
    progress = state["progress"]
    assert (progress["skipped_steps"], progress["skipped_in_a_row"]) == (4, [])
    assert progress["steps"] == Poisoned.num_windows - 4
    assert [curve["skipped"] for curve in progress["curves"]] == [2, 2, 0]
    assert all(math.isfinite(curve["train_loss"]) for curve in progress["curves"])
    assert "2 steps skipped" in (tmp_path / "logs/training.log").read_text()


def test_sigterm_twice_is_one_stop_and_ctrl_c_twice_is_not() -> None:
    """The batch system sends SIGTERM to every process, and torchrun to its own once more."""
    stop = StopSignals()
    with stop.noted():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.has_come
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
