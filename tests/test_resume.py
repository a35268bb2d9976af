"""A position (epoch, step) is all that going on needs: what comes after it is bit for bit what would have come."""

import itertools
import logging
import os
import shlex
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from model import runs
from model.checkpoints import CHECKPOINT_VERSION, load_checkpoint
from model.job import TrainingJob
from model.settings import DecodeParams, TextParams
from model.trainer import train
from pipeline.params import check, load_params, params_text, read_mapping
from pipeline.training import job_of
from shards.errors import CheckpointError, Interrupted
from shards.plan import plan_epoch, read_samples
from shards.settings import LoaderParams, MachineParams
from shards.store import FolderStore
from shards.stream import ClipBatch, ShardStream
from tests.packed import Codec, Packed, pack_clips, toy_clip, toy_clips
from tests.test_trainer import MODEL, TRAIN, assert_same_weights, job_in

NUM_EPOCHS = 2
PARAMS = LoaderParams(frame_budget=200, window_shards=2, seed=3)

Position = tuple[int, int]
Flat = tuple[object, ...]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(num_train=23, num_valid=2))


def stream_of(packed: Packed, num_workers: int) -> ShardStream:
    machine = MachineParams(num_workers=num_workers, prefetch=2)
    return ShardStream(packed.store, read_samples(packed.samples, "train"), machine)


def run_from(stream: ShardStream, packed: Packed, position: Position) -> Iterator[tuple[Position, Flat]]:
    """The position after each batch, and all of the batch, as a process that starts at `position` sees it."""
    samples = read_samples(packed.samples, "train")
    for epoch in range(position[0], NUM_EPOCHS):
        plan = plan_epoch(samples, PARAMS, 4, epoch)
        first = position[1] if epoch == position[0] else 0
        for step, batch in enumerate(stream.batches(plan.batches, first), first):
            yield (epoch, step + 1), flat(batch)


def flat(batch: ClipBatch) -> Flat:
    video = batch.video_BTHW
    frames = tuple(batch.num_frames_B.tolist())
    return (tuple(video.shape), video.numpy().tobytes(), frames, batch.clip_ids, batch.labels, batch.rows)


def test_stopped_anywhere_once_or_twice_the_rest_is_the_same(packed: Packed) -> None:
    """All pairs of stops in two epochs; the runs before and after a stop have 0 and 2 threads in turn."""
    whole = list(run_from(stream_of(packed, 0), packed, (0, 0)))
    assert len(whole) > 12
    assert len({batch for _, batch in whole}) == len(
        whole
    )  # so that no two batches can be taken for each other
    streams = [stream_of(packed, 2), stream_of(packed, 0)]
    for first, second in itertools.combinations(range(len(whole) + 1), 2):
        seen: list[tuple[Position, Flat]] = []
        position = (0, 0)
        for number, stop in enumerate((first, second, len(whole))):
            part = run_from(streams[number % 2], packed, position)
            seen += itertools.islice(part, stop - len(seen))
            part.close()  # type: ignore[attr-defined]
            position = seen[-1][0] if seen else (0, 0)
        assert [p for p, _ in seen] == [p for p, _ in whole]
        assert all(ours == theirs for (_, ours), (_, theirs) in zip(seen, whole, strict=True))


@pytest.mark.realdata
@pytest.mark.parametrize("codec", ["raw", "jpeg", "h264", "ffv1"])
def test_it_holds_for_real_clips_of_every_codec(realdata: Path, tmp_path: Path, codec: Codec) -> None:
    clips = []
    for number, path in enumerate(sorted((realdata / "grid" / "video").rglob("*.mpg"))[:10]):
        video, frames = cv2.VideoCapture(str(path)), []
        while (read := video.read())[0] and len(frames) < 20 + 5 * number:
            frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2GRAY)[150:246, 130:226])
        video.release()
        clips.append((f"grid_{number}", "train", np.stack(frames), "一二"))
    packed = pack_clips(tmp_path, clips, clips_a_shard=3, codec=codec)
    whole = list(run_from(stream_of(packed, 0), packed, (0, 0)))
    for number, (position, _) in enumerate(whole):
        rest = list(run_from(stream_of(packed, 2), packed, position))
        assert rest == whole[number + 1 :]
    if codec in ("raw", "ffv1"):
        lengths = {clip_id: len(clip_THW) for clip_id, _, clip_THW, _ in clips}
        shape, pixels, frames, ids, *_ = whole[0][1]
        video_BTHW = np.frombuffer(pixels, np.uint8).reshape(shape)  # type: ignore[call-overload]
        for number, clip_id in enumerate(ids):  # type: ignore[arg-type]
            clip_THW = next(clip for name, _, clip, _ in clips if name == clip_id)
            np.testing.assert_array_equal(video_BTHW[number, : lengths[clip_id]], clip_THW)


# -- the trainer ------------------------------------------------------------------------------------------


def stopping_at(job: TrainingJob, epoch: int, batches_done: int) -> TrainingJob:
    """The same job, which is sent SIGTERM when it stands there."""

    def tell(now: int, done: int, _: int) -> None:
        if (now, done) == (epoch, batches_done):
            os.kill(os.getpid(), signal.SIGTERM)

    return replace(job, on_batch=tell)


def stopped_in(folder: Path, packed: Packed) -> Path:
    """The checkpoint of a run that stands in the middle of epoch 1."""
    with pytest.raises(Interrupted, match="epoch 1 after 2 batches"):
        train(stopping_at(job_in(folder, packed), 1, 2))
    (last,) = (folder / "runs").glob("*/last.pt")
    return last


def test_a_checkpoint_within_an_epoch_goes_on_elsewhere_exactly(tmp_path: Path, packed: Packed) -> None:
    last = stopped_in(tmp_path / "stopped", packed)
    threads = MachineParams(threads=1, device="cpu", num_workers=2)
    train(replace(job_in(tmp_path / "resumed", packed), resume=last, machine=threads))
    train(job_in(tmp_path / "whole", packed))
    name = "checkpoints/checkpoint_epoch_2.pt"
    assert_same_weights(tmp_path / "whole" / name, tmp_path / "resumed" / name)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"loader": LoaderParams(frame_budget=200, seed=1)}, r"loader\.seed is 1, the checkpoint has 0"),
        ({"loader": LoaderParams(frame_budget=180)}, r"loader\.frame_budget is 180, the checkpoint has 200"),
        ({"batch_size": 3}, r"train\.batch_size 3 here, 4 there"),
        ({"clips": 22}, "other clips: samples.parquet"),
    ],
)
def test_another_plan_is_refused_with_what_differs_and_the_flag(
    tmp_path: Path, packed: Packed, change: dict, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    last = stopped_in(tmp_path / "a", packed)
    if "clips" in change:
        packed = pack_clips(tmp_path / "fewer", toy_clips(change["clips"], 2))
    job = replace(job_in(tmp_path / "b", packed), resume=last)
    if "loader" in change:
        job = replace(job, loader=change["loader"])
    if "batch_size" in change:
        job = replace(job, train=job.train.model_copy(update=change))
    with pytest.raises(CheckpointError, match=rf"(?s){told}.*--accept-new-plan.*epoch 1 anew"):
        train(job)
    steps: list[Position] = []
    accepted = replace(job, accept_new_plan=True, on_batch=lambda epoch, done, _: steps.append((epoch, done)))
    with caplog.at_level(logging.INFO, "pipeline.train"):
        assert train(accepted).epochs == 3
    assert "epoch 1 starts anew from its first batch, not after batch 2" in caplog.text
    assert steps[0] == (1, 2)  # the first window of the epoch: two batches
    state = load_checkpoint(tmp_path / "b/checkpoints/checkpoint_epoch_2.pt")
    assert state["progress"]["epoch"] == 3
    # its own plan from now on: the same command without the flag goes on, or finds itself finished
    assert train(replace(job, resume=None)).already_done


def test_bad_samples_allowed_later_are_no_other_plan(tmp_path: Path, packed: Packed) -> None:
    last = stopped_in(tmp_path / "a", packed)
    loader = LoaderParams(frame_budget=200, max_bad_fraction=0.1)
    job = replace(job_in(tmp_path / "a", packed), loader=loader)
    assert not train(job).already_done
    assert load_checkpoint(last)["progress"]["epoch"] == 3
    assert len(list((tmp_path / "a/runs").iterdir())) == 1


def test_a_checkpoint_of_version_1_is_refused_by_its_version(tmp_path: Path, packed: Packed) -> None:
    train(job_in(tmp_path, packed, num_epochs=1))
    path = tmp_path / "checkpoints/best_model.pt"
    state = load_checkpoint(path)
    del state["plan_identity"]
    torch.save(state | {"version": 1, "plan_hash": "0" * 64}, path)
    with pytest.raises(CheckpointError, match=f"version 1, this program reads {CHECKPOINT_VERSION}"):
        load_checkpoint(path)


def test_a_fresh_run_tells_of_one_that_waits(
    tmp_path: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "pipeline.train"):
        last = stopped_in(tmp_path, packed)
        assert "fresh run" not in caplog.text
        train(job_in(tmp_path, packed, num_epochs=1, learning_rate=0.005))
    (line,) = [message for message in caplog.messages if "fresh run" in message]
    assert f"though {last.parent} stands unfinished in epoch 1 of 3" in line
    assert "train.learning_rate: 0.01 there, 0.005 here; train.num_epochs: 3 there, 1 here" in line
    assert line.endswith(f"pipeline train --params {last.parent / 'config.yaml'}")
    caplog.clear()
    fewer = pack_clips(tmp_path / "fewer", toy_clips(20, 2))
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(job_in(tmp_path, fewer, num_epochs=1))
    (line,) = [message for message in caplog.messages if "fresh run" in message]
    assert "other clips" in line and line.endswith(f"--resume {last} --accept-new-plan")
    caplog.clear()
    # gone on with and finished, it is told of no more
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(job_in(tmp_path, packed))
        train(job_in(tmp_path, packed, num_epochs=1, seed=5))
    assert "fresh run" not in caplog.text


@pytest.mark.parametrize("other", ["nothing", "valid clips", "decode", "text"])
def test_a_best_model_chosen_by_other_clips_or_otherwise_starts_anew(
    tmp_path: Path, packed: Packed, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The old best is made so good that no model could take its place."""
    last = stopped_in(tmp_path / "a", packed)
    for path in (last, last.with_name("best_model.pt")):
        state = load_checkpoint(path)
        state["progress"] |= {"best_val_cer": -1.0, "best_val_loss": -1.0}
        torch.save(state, path)
    job = replace(job_in(tmp_path / "b", packed), resume=last)
    if other == "valid clips":
        job = replace(job, samples=pack_clips(tmp_path / "more", toy_clips(23, 3)).samples)
        job = replace(job, shards=FolderStore(tmp_path / "more/shards"))
    elif other == "decode":
        job = replace(job, decode=DecodeParams(decoder="attention"))
    elif other == "text":
        job = replace(job, text=TextParams(case_fold=False))
    with caplog.at_level(logging.INFO, "pipeline.train"):
        summary = train(job)
    best = load_checkpoint(tmp_path / "b/checkpoints/best_model.pt")
    if other == "nothing":
        assert (summary.best_epoch, summary.best_val_cer, best["epoch"]) == (0, -1.0, 0)
        assert "starts anew" not in caplog.text
        return
    assert summary.best_epoch in (1, 2) and best["epoch"] == summary.best_epoch
    assert summary.best_val_cer == best["val_cer"] >= 0 and best["best_val_loss"] > 0
    told = {"valid clips": "other valid clips", "decode": "decode.decoder: ctc there, attention here"}
    told |= {"text": "text.case_fold: True there, False here"}
    (line,) = [message for message in caplog.messages if "the best model starts anew" in message]
    assert told[other] in line


def test_a_finished_checkpoint_with_other_valid_clips_is_published_without_a_cer(
    tmp_path: Path, packed: Packed
) -> None:
    train(job_in(tmp_path / "a", packed, num_epochs=1))
    more = pack_clips(tmp_path / "more", toy_clips(23, 3))
    resume = tmp_path / "a/checkpoints/checkpoint_epoch_0.pt"
    summary = train(replace(job_in(tmp_path / "b", more, num_epochs=1), resume=resume))
    assert (summary.already_done, summary.best_val_cer, summary.best_epoch) == (True, None, 0)


# -- what a fresh run tells of one that waits ------------------------------------------------------------


def told_job(params: Path, packed: Packed, arguments: list[str]) -> TrainingJob:
    """What `pipeline train --params FILE [--resume FILE [--accept-new-plan]]` would be asked to do."""
    return replace(
        job_of(load_params(params)),
        samples=packed.samples,
        shards=packed.store,
        resume=Path(arguments[arguments.index("--resume") + 1]) if "--resume" in arguments else None,
        accept_new_plan="--accept-new-plan" in arguments,
    )


@pytest.mark.parametrize(
    ("other", "options"),
    [
        ("parameters", []),
        ("valid clips", ["--resume"]),
        ("program", ["--resume"]),
        ("train clips and model", ["--resume", "--accept-new-plan"]),
        ("vocabulary", None),
        ("crops", None),
    ],
)
def test_the_command_that_a_fresh_run_tells_goes_on(
    tmp_path: Path,
    packed: Packed,
    other: str,
    options: list[str] | None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "my runs"
    sections = read_mapping(Path(__file__).parents[1] / "params.yaml")
    sections["paths"] |= {name: str(folder / name) for name in ("runs", "checkpoints", "logs")}
    sections["model"] |= MODEL.model_dump(mode="json")
    sections["train"] |= TRAIN.model_dump(mode="json") | {"num_epochs": 1}
    sections["loader"] |= {"frame_budget": 200}
    sections["decode"] |= {"decoder": "ctc"}
    sections["machine"] |= {"threads": 1, "device": "cpu", "num_workers": 0}
    params = tmp_path / "params.yaml"
    params.write_text(params_text(check(sections, "params")), "utf-8")
    with pytest.raises(Interrupted):
        train(stopping_at(told_job(params, packed, []), 0, 2))
    (last,) = (folder / "runs").glob("*/last.pt")
    now = packed
    changes: dict = {}
    if other == "parameters":
        changes = {"train": TRAIN.model_copy(update={"learning_rate": 0.5})}
    elif other == "valid clips":
        now = pack_clips(tmp_path / "now", toy_clips(23, 3))
    elif other == "program":
        monkeypatch.setattr(runs, "TRAIN_VERSION", runs.TRAIN_VERSION + 1)
    elif other == "train clips and model":
        now = pack_clips(tmp_path / "now", toy_clips(20, 2))
        changes = {"model": MODEL.model_copy(update={"hidden_dim": 24})}
    elif other == "vocabulary":
        now = pack_clips(
            tmp_path / "now", [*toy_clips(23, 2), ("train_new", "train", toy_clip("一二", 9), "五二")]
        )
    else:
        small = [(name, split, clip[:, 8:-8, 8:-8], label) for name, split, clip, label in toy_clips(23, 2)]
        now = pack_clips(tmp_path / "now", small)
        changes = {"model": MODEL.model_copy(update={"window_px": 64})}
    with caplog.at_level(logging.INFO, "pipeline.train"), pytest.raises(Interrupted):
        train(stopping_at(replace(told_job(params, now, []), **changes), 0, 2))
    (line,) = [message for message in caplog.messages if "fresh run" in message]
    differs = {
        "parameters": "train.learning_rate: 0.01 there, 0.5 here",
        "valid clips": "(other valid clips)",
        "program": "(by another version of the program)",
        "train clips and model": "other clips: samples.parquet was packed anew",
        "vocabulary": "only there '', only here '五'",
        "crops": "model.window_px 96 is more than the 80 px of the packed crops",
    }
    assert differs[other] in line
    if options is None:
        assert "it cannot be gone on with" in line and "pipeline train" not in line
        return
    arguments = shlex.split(line.split("go on with that one: ")[1])
    assert arguments[:3] == ["pipeline", "train", "--params"]
    assert [argument for argument in arguments[4:] if argument.startswith("--")] == options
    caplog.clear()
    steps: list[Position] = []
    job = told_job(Path(arguments[3]), now, arguments)
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(replace(job, on_batch=lambda epoch, done, _: steps.append((epoch, done))))
    assert f"Going on from {last}" in caplog.text and "fresh run" not in caplog.text
    assert steps[0] == ((0, 2) if "--accept-new-plan" in options else (0, 4))


# -- left out as bad ---------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(tmp_path: Path) -> Packed:
    """The clips of `packed`, the first shard of train not where it belongs."""
    packed = pack_clips(tmp_path / "spoilt", toy_clips(23, 2))
    (packed.shards / "train/train-000000.tar").rename(tmp_path / "away.tar")
    return packed


def mend(packed: Packed) -> None:
    shutil.move(packed.samples.parents[1] / "away.tar", packed.shards / "train/train-000000.tar")


def allowing(job: TrainingJob, fraction: float) -> TrainingJob:
    return replace(job, loader=job.loader.model_copy(update={"max_bad_fraction": fraction}))


def test_a_finished_run_that_lacks_clips_says_so_and_how_to_start_afresh(
    tmp_path: Path, spoilt: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    job = job_in(tmp_path, spoilt, num_epochs=2)
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(allowing(job, 0.5))
    (run,) = (tmp_path / "runs").iterdir()
    assert len((run / "quarantine.jsonl").read_bytes().splitlines()) == 10
    told = f"left out clips as bad 10 times in its 2 epochs; {run / 'quarantine.jsonl'} names them"
    assert caplog.text.count(told) == 1
    mend(spoilt)
    caplog.clear()
    with caplog.at_level(logging.INFO, "pipeline.train"):
        assert train(job).already_done
    (line,) = [record for record in caplog.records if told in record.getMessage()]
    assert line.levelno == logging.WARNING and f"remove {run} and train again" in line.getMessage()
    shutil.rmtree(run)
    caplog.clear()
    with caplog.at_level(logging.INFO, "pipeline.train"):
        assert not train(job).already_done
        assert train(job).already_done
    assert "left out" not in caplog.text


def test_over_mended_shards_the_same_run_goes_on_and_still_tells_what_it_lacks(
    tmp_path: Path, spoilt: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped within an epoch that has left out more than is allowed now."""
    job = job_in(tmp_path, spoilt, num_epochs=1)
    with pytest.raises(Interrupted):
        train(stopping_at(allowing(job, 0.5), 0, 4))
    (last,) = (tmp_path / "runs").glob("*/last.pt")
    num_bad = load_checkpoint(last)["progress"]["bad_clips"]
    assert num_bad > 0
    mend(spoilt)
    with caplog.at_level(logging.INFO, "pipeline.train"):
        assert train(job).epochs == 1
    assert f"Epoch 0: {num_bad} of 23 clips" in caplog.text
    assert f"left out clips as bad {num_bad} times in its 1 epochs" in caplog.text


@pytest.mark.parametrize("with_names", [True, False])
def test_the_names_of_bad_clips_come_along_into_another_run(
    tmp_path: Path, spoilt: Packed, caplog: pytest.LogCaptureFixture, with_names: bool
) -> None:
    job = allowing(job_in(tmp_path / "a", spoilt, num_epochs=2), 0.5)
    with pytest.raises(Interrupted):
        train(stopping_at(job, 1, 4))
    (last,) = (tmp_path / "a/runs").glob("*/last.pt")
    num_bad = load_checkpoint(last)["progress"]["bad_clips"]
    assert num_bad > 0
    if not with_names:
        last = last.rename(tmp_path / "alone.pt")
    elsewhere = allowing(job_in(tmp_path / "b", spoilt, num_epochs=2, learning_rate=0.02), 0.5)
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(replace(elsewhere, resume=last))
    file = next((tmp_path / "b/runs").iterdir()) / "quarantine.jsonl"
    num_named = len(file.read_bytes().splitlines()) if file.exists() else 0
    assert num_named == (10 if with_names else 5 - num_bad)
    names = {
        True: f"{file} names them",
        False: f"{file} names {num_named} of them, the others were left out before",
    }
    assert f"Epoch 1: 5 of 23 clips (21.74 %) were bad and left out; {names[with_names]}" in caplog.text
    assert f"left out clips as bad 10 times in its 2 epochs; {names[with_names]}" in caplog.text
