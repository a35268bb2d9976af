"""Self-training: the model labels unlabelled clips, trains on the labels it keeps, and resumes with the same labels."""

import csv
import json
import logging
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jiwer
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from model.checkpoints import load_checkpoint
from model.decoding.reader import LipReader
from model.settings import AugmentParams, DecodeParams, LmParams, SelfTrainingParams
from model.training.augment import training_input
from model.training.pseudo_labels import PseudoLabels
from model.training.step import TrainingStep, black_clip
from model.training.training_data import TrainingData, TrainingJob, teacher_of
from shards.errors import CheckpointError, ConfigError, Interrupted, ShardError, TableError
from shards.files import sha256_of
from shards.packs import Pack, Packs
from shards.stream import ClipBatch
from stages.lm import make_language_model
from stages.train import train
from tests.support.killed_runs import INTERRUPTED, Kill, job_in_folder, run, steps_of
from tests.support.packed import Packed, pack_clips, toy_clip, toy_clips
from tests.support.ranks import together
from tests.support.resuming import last_of, stopping_at
from tests.support.self_trainings import (
    NUM_LABELLED,
    NUM_UNLABELLED,
    PARAMS,
    hidden_clips,
    pack_with_hidden,
    self_training_job,
)
from tests.support.trainings import (
    assert_same_weights,
    job_in,
    read_test_clips,
    with_sizes,
)

FILES = ("best_model.pt", "checkpoint_epoch_0.pt", "checkpoint_epoch_2.pt", "checkpoint_epoch_4.pt")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_with_hidden(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def undisturbed(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted training of five epochs, in a process of its own."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(self_training_job(folder, packed), folder, save_every_s=60) == 0
    return folder


def label_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "runs").glob("*/pseudo_labels/*"))}


def curves(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs/curves.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def columns_of_labels(folder: Path) -> list[list[str]]:
    return [
        [value for name, value in curve.items() if name.startswith("pseudo_")] for curve in curves(folder)
    ]


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert label_files(ours) == label_files(theirs)
    assert columns_of_labels(ours) == columns_of_labels(theirs)
    for name in FILES:
        assert_same_weights(ours / "checkpoints" / name, theirs / "checkpoints" / name)
    ours_last, theirs_last = (load_checkpoint(last_of(folder)) for folder in (ours, theirs))
    for key in ("labels_epoch", "labels_sha256", "best_val_cer", "steps"):
        assert ours_last["progress"][key] == theirs_last["progress"][key]


# -- resuming ----------------------------------------------------------------------------------------------


def test_a_training_that_stops_after_every_step_equals_an_undisturbed_one(
    tmp_path: Path, packed: Packed, undisturbed: Path
) -> None:
    job, stops = self_training_job(tmp_path, packed), 0
    seen: set[tuple[int, int]] = set()

    def stop_once(epoch: int, batches_done: int, *_: float) -> None:
        nonlocal stops
        if (epoch, batches_done) not in seen:
            seen.add((epoch, batches_done))
            stops += 1
            signal.raise_signal(signal.SIGTERM)

    while True:
        try:
            train(replace(job, on_batch=stop_once))
            break
        except Interrupted:
            continue
    assert stops == len(steps_of(undisturbed)) >= 12
    assert_same_run(tmp_path, undisturbed)


KILLS = {
    # 60: saves at the end of an epoch and after labelling, so each kill goes back to one of them
    "after labelling": (60.0, [Kill("step", 3), Kill("step", 5)]),
    # epoch 1 and epoch 3 read 14 clips in two views, after each validation of two clips
    "within labelling": (60.0, [Kill("validation", 4), Kill("validation", 11)]),
    "while checkpoints and labels are written": (
        -1.0,
        [Kill("write", 6), Kill("rename", 2), Kill("write", 4)],
    ),
    "by SIGTERM within labelling": (60.0, [Kill("validation", 5, signal.SIGTERM)]),
}


@pytest.mark.parametrize("name", KILLS)
def test_a_killed_training_uses_the_very_same_labels(
    tmp_path: Path, packed: Packed, undisturbed: Path, name: str
) -> None:
    job = job_in_folder(self_training_job(tmp_path, packed), tmp_path)
    save_every_s, kills = KILLS[name]
    for kill in kills:
        assert run(job, tmp_path, kill, save_every_s) == (
            -kill.by if kill.by == signal.SIGKILL else INTERRUPTED
        )
    assert run(job, tmp_path, save_every_s=save_every_s) == 0
    expected = {tuple(step["position"]): step for step in steps_of(undisturbed)}
    steps = steps_of(tmp_path)
    assert {tuple(step["position"]) for step in steps} == expected.keys()
    assert all(step == expected[tuple(step["position"])] for step in steps)
    assert_same_run(tmp_path, undisturbed)


def test_the_checkpoint_names_the_file_of_the_labels(tmp_path: Path, packed: Packed) -> None:
    with pytest.raises(Interrupted):
        train(stopping_at(self_training_job(tmp_path, packed), 2, 2))
    last = last_of(tmp_path)
    (file,) = (last.parent / "pseudo_labels").iterdir()
    progress = load_checkpoint(last)["progress"]
    assert file.name == "epoch_0001.parquet"
    assert (progress["labels_epoch"], progress["labels_sha256"]) == (1, sha256_of(file))


def test_a_training_without_self_training_stores_nothing_new(tmp_path: Path, packed: Packed) -> None:
    train(job_in(tmp_path, packed, num_epochs=1))
    state = load_checkpoint(last_of(tmp_path))
    assert not {"labels_epoch", "labels_sha256"} & state["progress"].keys()
    assert "self_training" not in state["train_params"] and "teacher_params" not in state
    assert not any(name.startswith("pseudo_") for name in curves(tmp_path)[0])


@pytest.fixture(scope="module")
def stopped(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in epoch 2, which trains on the labels of epoch 1."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Interrupted):
        train(stopping_at(self_training_job(folder, packed), 2, 2))
    return folder


def copy_of(folder: Path, to: Path) -> Path:
    """Copies a run; returns the file of its labels."""
    shutil.copytree(folder, to)
    (file,) = (last_of(to).parent / "pseudo_labels").iterdir()
    return file


def test_a_lost_file_is_an_error_that_names_the_checkpoint_whose_weights_wrote_it(
    tmp_path: Path, packed: Packed, stopped: Path, undisturbed: Path
) -> None:
    lost = copy_of(stopped, tmp_path / "run")
    lost.unlink()
    before = lost.parents[1] / "checkpoint_epoch_0.pt"
    job = self_training_job(tmp_path / "run", packed)
    with pytest.raises(CheckpointError) as error:
        train(job)
    message = str(error.value)
    assert f"{lost} is missing" in message and f"--resume {before}, whose weights wrote them" in message
    train(replace(job, resume=before))
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_changed_file_is_an_error(tmp_path: Path, packed: Packed, stopped: Path) -> None:
    changed = copy_of(stopped, tmp_path / "run")
    table = pq.read_table(changed)
    pq.write_table(table.slice(1), changed)
    with pytest.raises(CheckpointError, match=r"epoch_0001\.parquet has changed"):
        train(self_training_job(tmp_path / "run", packed))


def test_without_that_checkpoint_the_clips_can_be_labelled_anew(
    tmp_path: Path, packed: Packed, stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost = copy_of(stopped, tmp_path / "run")
    lost.unlink()
    (lost.parents[1] / "checkpoint_epoch_0.pt").unlink()
    job, last = self_training_job(tmp_path / "run", packed), last_of(tmp_path / "run")
    with pytest.raises(CheckpointError) as error:
        train(job)
    assert f"--resume {last} --accept-new-plan to label the clips anew" in str(error.value)
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(replace(job, resume=last, accept_new_plan=True))
    assert "the clips are labelled again at the start of epoch 2" in caplog.text
    assert sorted(label_files(tmp_path / "run")) == ["epoch_0002.parquet", "epoch_0003.parquet"]


def test_labels_are_made_again_if_the_checkpoint_has_the_weights_that_wrote_them(
    tmp_path: Path, packed: Packed, undisturbed: Path
) -> None:
    """The checkpoint that is saved right after labelling."""
    job = self_training_job(tmp_path, packed)
    assert run(job, tmp_path, Kill("step", 4), save_every_s=60) == -signal.SIGKILL
    (file,) = last_of(tmp_path).parent.glob("pseudo_labels/*")
    written = file.read_bytes()
    file.unlink()
    assert run(job, tmp_path, save_every_s=60) == 0
    assert label_files(tmp_path)[file.name] == written
    assert_same_run(tmp_path, undisturbed)


def test_resuming_from_a_file_of_another_run_copies_its_labels(
    tmp_path: Path, packed: Packed, stopped: Path, undisturbed: Path
) -> None:
    job = self_training_job(tmp_path, packed)
    train(replace(job, resume=last_of(stopped)))
    assert label_files(tmp_path) == label_files(undisturbed)
    assert_same_weights(tmp_path / "checkpoints" / FILES[-1], undisturbed / "checkpoints" / FILES[-1])


def test_another_schedule_labels_at_the_start_of_an_epoch_not_within_one(
    tmp_path: Path, packed: Packed
) -> None:
    """The checkpoint is of the middle of epoch 0, and the new schedule starts with that epoch."""
    with pytest.raises(Interrupted):
        train(stopping_at(self_training_job(tmp_path / "first", packed), 0, 2))
    job = self_training_job(tmp_path / "second", packed, PARAMS.model_copy(update={"start_epoch": 0}))
    train(replace(job, resume=last_of(tmp_path / "first")))
    names = ["epoch_0001.parquet", "epoch_0002.parquet", "epoch_0004.parquet"]
    assert sorted(label_files(tmp_path / "second")) == names
    assert {row["pseudo_labels"] for row in curves(tmp_path / "second")[1:]} == {str(NUM_UNLABELLED)}


def test_switching_self_training_on_within_an_epoch_is_another_epoch_plan(
    tmp_path: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    off = self_training_job(tmp_path, packed, SelfTrainingParams())
    with pytest.raises(Interrupted):
        train(stopping_at(off, 0, 2))
    last = last_of(tmp_path)
    job = self_training_job(tmp_path, packed)
    with pytest.raises(CheckpointError, match=r"train\.self_training is on, in the checkpoint it is off"):
        train(replace(job, resume=last))
    with caplog.at_level(logging.INFO, "pipeline.train"), pytest.raises(Interrupted):
        train(stopping_at(job, 0, 2))
    assert f"starting a new run, but {last.parent} is unfinished" in caplog.text
    assert "self_training" in caplog.text and "to resume that run: pipeline train" in caplog.text


def test_a_finished_run_needs_no_labels(tmp_path: Path, packed: Packed, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    for path in (tmp_path / "run").glob("runs/*/pseudo_labels/*"):
        path.unlink()
    assert train(self_training_job(tmp_path / "run", packed)).already_done


# -- several processes -------------------------------------------------------------------------------------


def labelled_by_two(folder: Path, packed: Packed, start_epoch: int) -> None:
    train(still_job(folder, packed, start_epoch))


def still_job(folder: Path, packed: Packed, start_epoch: int) -> TrainingJob:
    """No random draws in the network, and the same optimiser steps for one process as for two."""
    params = PARAMS.model_copy(update={"start_epoch": start_epoch, "views": 3})
    return self_training_job(folder, packed, params, num_epochs=3)


def test_two_processes_write_the_labels_of_one(tmp_path: Path, packed: Packed) -> None:
    """At the start of epoch 0 both have the same weights, to the last bit."""
    assert together(labelled_by_two, tmp_path / "two", packed, 0) == [None, None]
    with pytest.raises(Interrupted):
        train(stopping_at(still_job(tmp_path / "one", packed, 0), 0, 2))
    ours, theirs = label_files(tmp_path / "two"), label_files(tmp_path / "one")
    assert ours["epoch_0000.parquet"] == theirs["epoch_0000.parquet"]
    assert sorted(ours) == ["epoch_0000.parquet", "epoch_0002.parquet"]


def test_a_run_resumes_with_two_processes_and_the_same_labels(
    tmp_path: Path, packed: Packed, stopped: Path
) -> None:
    """The same global batch in another shape: 2 processes × 4 clips × 1 instead of 1 × 4 × 2."""
    file = copy_of(stopped, tmp_path / "run")
    written = file.read_bytes()
    assert together(resumed_by_two, tmp_path / "run", packed) == [None, None]
    assert label_files(tmp_path / "run")[file.name] == written
    assert len(list((tmp_path / "run/runs").iterdir())) == 1
    assert curves(tmp_path / "run")[2]["pseudo_labels"] == str(NUM_UNLABELLED)


def resumed_by_two(folder: Path, packed: Packed) -> None:
    train(self_training_job(folder, packed, accumulation_steps=1))


# -- what is learnt ----------------------------------------------------------------------------------------


def test_hidden_labels_are_never_learnt(tmp_path: Path, packed: Packed, undisturbed: Path) -> None:
    """Other hidden labels, or none: the same weights and the same pseudo labels."""
    clips = [*toy_clips(NUM_LABELLED, 2), *((*clip[:3], "") for clip in hidden_clips())]
    bare = pack_clips(tmp_path / "bare", clips)
    train(self_training_job(tmp_path, bare))
    for name in FILES:
        assert_same_weights(tmp_path / "checkpoints" / name, undisturbed / "checkpoints" / name)
    assert label_files(tmp_path) == label_files(undisturbed)
    assert "pseudo_cer" not in curves(tmp_path)[0] and "pseudo_cer" in curves(undisturbed)[0]


def windows_of(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, list[tuple[str, str, float]]]]:
    """Trains; returns for each step its epoch and the clips with the labels and weights that they were trained on."""
    seen: list[tuple[int, list[tuple[str, str, float]]]] = []
    call = TrainingStep.__call__

    def recorded(self: TrainingStep, window: list[ClipBatch], epoch: int, *rest: object) -> object:
        seen.append(
            (
                epoch,
                [
                    (clip_id, label, float(weight))
                    for batch in window
                    for clip_id, label, weight in zip(
                        batch.clip_ids, *self.data.labels_of(batch), strict=True
                    )
                ],
            )
        )
        return call(self, window, epoch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainingStep, "__call__", recorded)
    train(job)
    return seen


def test_an_epoch_visits_the_labelled_clips_and_those_with_a_kept_label(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = PARAMS.model_copy(update={"weight": 0.5})
    seen = windows_of(self_training_job(tmp_path, packed, params), monkeypatch)
    given = {clip_id: label for clip_id, split, _, label in toy_clips(NUM_LABELLED, 2) if split == "train"}
    for epoch in range(5):
        visits = [clip for number, clips in seen for clip in clips if number == epoch]
        labelled = {clip_id: (label, weight) for clip_id, label, weight in visits if clip_id in given}
        assert labelled == {clip_id: (label, 1.0) for clip_id, label in given.items()}
        pseudo = {clip_id: (label, weight) for clip_id, label, weight in visits if clip_id not in given}
        assert len(visits) == len(labelled) + len(pseudo)  # none twice
        file = tmp_path.glob(f"runs/*/pseudo_labels/epoch_000{1 if epoch < 3 else 3}.parquet")
        kept = {row["clip_id"]: (row["text"], 0.5) for row in pq.read_table(*file).to_pylist() if row["kept"]}
        assert pseudo.items() <= kept.items()
        # loader.unlabelled_share is 0.5: as many as labelled clips, or all that are kept
        assert len(pseudo) == (0 if epoch < 1 else min(len(kept), NUM_LABELLED))


def test_few_kept_labels_are_not_repeated(packed: Packed, tmp_path: Path) -> None:
    """With loader.epoch_clips, an unlabelled clip is visited as often as a labelled one; the sum is exact."""
    job = self_training_job(tmp_path, packed)
    job = replace(job, loader=job.loader.model_copy(update={"unlabelled_share": 0.75, "epoch_clips": 60}))
    data = TrainingData(job)
    first = NUM_LABELLED  # the unlabelled clips come after the labelled ones
    for num_kept in (0, 3, NUM_UNLABELLED):
        rows = range(first, first + num_kept)
        data.pseudo_labels = PseudoLabels(dict.fromkeys(rows, "一"), dict.fromkeys(rows, 1.0))
        row_N = np.concatenate(data.epoch(0).batches) % data.samples.num_rows
        visits = Counter(row_N.tolist())
        assert len(row_N) == 60
        assert set(visits) == {*range(first), *rows}
        assert max(visits.values()) - min(visits.values()) <= 1


def test_a_black_clip_never_gets_a_pseudo_label(packed: Packed, tmp_path: Path) -> None:
    """Its row, -1, is the last unlabelled clip in numpy's way of counting."""
    data = TrainingData(self_training_job(tmp_path, packed))
    last = data.samples.num_rows - 1
    data.pseudo_labels = PseudoLabels({last: "一二三四" * 5}, {last: 1.0})
    labels, _ = data.labels_of(black_clip(data))
    assert labels == ("",)


def test_a_clip_is_never_played_too_fast_for_its_pseudo_label(packed: Packed, tmp_path: Path) -> None:
    job = self_training_job(tmp_path, packed, augment=AugmentParams(speed_change=0.5))
    data = TrainingData(job)
    rows = np.arange(NUM_LABELLED, data.samples.num_rows)
    lengths = dict(zip(rows.tolist(), data.samples["num_frames"].to_numpy()[rows].tolist(), strict=True))
    texts = {row: ("一二" * length)[: length - 1] for row, length in lengths.items()}
    data.pseudo_labels = PseudoLabels(texts, dict.fromkeys(texts, 1.0))
    stream, _ = data.streams(pin_memory=False)
    (batch,) = stream.batches([rows])
    for epoch in range(4):
        _, num_frames_B, targets = training_input(batch, job, data, epoch, torch.device("cpu"))
        assert (num_frames_B >= targets.num_characters_B).all()


# -- reading -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Packed, Path]:
    """A pack with hidden labels, and a checkpoint that reads its clips well, by CTC and attention."""
    folder = tmp_path_factory.mktemp("learnt")
    clips = [(*clip[:2], toy_clip(clip[3], n, 4), clip[3]) for n, clip in enumerate(hidden_clips())]
    packed = pack_clips(folder, [*toy_clips(60, 4, frames_a_char=4), *clips])
    job = job_in(
        folder,
        packed,
        num_epochs=20,
        batch_size=6,
        accumulation_steps=1,
        learning_rate=5e-3,
        valid_every=20,
        ctc_weight=0.3,
        teacher_forcing_end=1.0,
    )
    train(replace(job, model=with_sizes(hidden_dim=48)))
    return packed, folder / "checkpoints/checkpoint_epoch_19.pt"


def taught_job(
    folder: Path, learnt: tuple[Packed, Path], decode: DecodeParams | None = None, **changes: object
) -> TrainingJob:
    """Returns a job that starts from the good weights and labels the clips before its first step."""
    params = SelfTrainingParams(**{"start_epoch": 0, "keep": 1.0, "views": 1, **changes})  # type: ignore[arg-type]
    packed, checkpoint = learnt
    job = self_training_job(folder, packed, params, num_epochs=1, init_from=str(checkpoint), ctc_weight=0.3)
    job = replace(job, model=with_sizes(hidden_dim=48))
    return replace(job, teacher=teacher_of(job.train, decode or DecodeParams()), lm=folder / "lm.arpa")


def labels_of(job: TrainingJob) -> list[dict[str, object]]:
    """Trains until after the first step; returns the rows of the labels."""
    with pytest.raises(Interrupted):
        train(stopping_at(job, 0, 2))
    (file,) = job.runs.glob("*/pseudo_labels/*")
    rows: list[dict[str, object]] = pq.read_table(file).to_pylist()
    return rows


def test_the_labels_of_a_good_teacher_are_right(
    tmp_path: Path, learnt: tuple[Packed, Path], caplog: pytest.LogCaptureFixture
) -> None:
    job = taught_job(tmp_path, learnt, decoder="ctc_beam")
    with caplog.at_level(logging.INFO, "pipeline.train"):
        rows = labels_of(job)
    hidden = {clip_id: label for clip_id, *_, label in hidden_clips()}
    assert [row["clip_id"] for row in rows] == list(hidden)
    texts = [str(row["text"]) for row in rows]
    assert sum(row["text"] == hidden[str(row["clip_id"])] for row in rows) >= NUM_UNLABELLED - 1
    cer = jiwer.cer(list(hidden.values()), texts)
    assert f"CER by the hidden labels {100 * cer:.1f} % ({100 * cer:.1f} % of the kept)" in caplog.text


@pytest.mark.parametrize("decoder", ["ctc", "ctc_beam", "attention_beam", "joint_beam"])
def test_the_labels_are_what_the_reader_of_the_checkpoint_reads(
    tmp_path: Path, learnt: tuple[Packed, Path], decoder: str
) -> None:
    """`score_split`, which reads for reports, is the referee."""
    decode = DecodeParams(decoder=decoder, beam=4)  # type: ignore[arg-type]
    rows = labels_of(taught_job(tmp_path, learnt, decode, decoder=decoder))
    packed, checkpoint = learnt
    reader = LipReader.from_checkpoint(checkpoint, torch.device("cpu"))
    scored = read_test_clips(reader, packed, decode, split="unlabelled")
    assert [row["text"] for row in rows] == [clip.hypothesis for clip in scored]
    np.testing.assert_allclose(
        [row["score"] for row in rows], [clip.score for clip in scored], rtol=1e-4, atol=1e-5
    )


def test_the_teacher_is_the_average_that_the_checkpoint_of_the_epoch_before_holds(
    packed: Packed, undisturbed: Path
) -> None:
    reader = LipReader.from_checkpoint(undisturbed / "checkpoints/checkpoint_epoch_2.pt", torch.device("cpu"))
    scored = read_test_clips(reader, packed, DecodeParams(decoder="ctc"), split="unlabelled")
    (file,) = undisturbed.glob("runs/*/pseudo_labels/epoch_0003.parquet")
    rows = pq.read_table(file).to_pylist()
    assert [row["text"] for row in rows] == [clip.hypothesis for clip in scored]
    np.testing.assert_allclose([row["score"] for row in rows], [clip.score for clip in scored], rtol=1e-4)


def test_views_of_the_same_clip_that_differ_are_seen(tmp_path: Path, learnt: tuple[Packed, Path]) -> None:
    """The second view is the mirrored clip: a reader of mirrored pixels is the referee."""
    job = taught_job(tmp_path, learnt, decoder="ctc", views=2)
    rows = labels_of(job)
    reader = LipReader.from_checkpoint(learnt[1], torch.device("cpu"))
    mirrored = {
        clip_id: reader.read_clip(np.ascontiguousarray(toy_clip(label, n, 4)[:, :, ::-1]), job.teacher).text
        for n, (clip_id, _, _, label) in enumerate(hidden_clips())
    }
    for row in rows:
        expected = jiwer.cer(row["text"], mirrored[str(row["clip_id"])])
        assert row["disagreement"] == pytest.approx(expected)


def test_the_language_model_helps_the_teacher_and_belongs_to_the_run(
    tmp_path: Path, learnt: tuple[Packed, Path]
) -> None:
    decode = DecodeParams(decoder="ctc_beam", lm_weight=1.0)
    job = taught_job(tmp_path, learnt, decode, decoder="ctc_beam")
    with pytest.raises(TableError, match=r"lm\.arpa is missing"):
        train(job)
    make_language_model(job.packs, job.lm, LmParams(), job.text)
    with_lm = labels_of(job)
    other = LmParams(order=2)
    make_language_model(job.packs, job.lm, other, job.text)
    with pytest.raises(Interrupted):
        train(stopping_at(job, 0, 2))
    assert len(list(job.runs.iterdir())) == 3  # one without a model, and one for each model
    reader = LipReader.from_checkpoint(learnt[1], torch.device("cpu"))
    make_language_model(job.packs, job.lm, LmParams(), job.text)
    reader.open_language_model(job.lm, decode)
    scored = read_test_clips(reader, learnt[0], decode, split="unlabelled")
    assert [row["text"] for row in with_lm] == [clip.hypothesis for clip in scored]


def test_damaged_unlabelled_clips_get_no_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    packed = pack_with_hidden(tmp_path / "packed")
    job = self_training_job(tmp_path, packed)
    bad = TrainingData(job).samples["clip_id"].to_pylist()[NUM_LABELLED]
    _damage(packed, bad)
    with pytest.raises(ShardError, match=bad):
        train(job)
    tolerant = replace(job, loader=job.loader.model_copy(update={"max_bad_fraction": 0.3}))
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(tolerant)
    assert f"1 of {NUM_UNLABELLED} unlabelled clips are damaged and get no label" in caplog.text
    assert bad not in "".join(
        str(pq.read_table(path)["clip_id"]) for path in tmp_path.glob("runs/*/pseudo*/*")
    )


def _damage(packed: Packed, clip_id: str) -> None:
    (row,) = [row for row in pq.read_table(packed.samples).to_pylist() if row["clip_id"] == clip_id]
    with (packed.shards / row["shard"]).open("r+b") as file:
        file.seek(row["sample_offset"])
        file.write(b"x")


def test_a_reading_that_ctc_cannot_spell_is_not_kept(tmp_path: Path) -> None:
    """Two encoder steps cannot hold the texts that an untrained attention decoder writes."""
    clips = [(f"short_{n}", "unlabelled", toy_clip("一", n, 2), "一") for n in range(4)]
    packed = pack_clips(tmp_path / "packed", [*toy_clips(8, 2), *clips])
    params = PARAMS.model_copy(update={"start_epoch": 0, "keep": 1.0})
    job = self_training_job(tmp_path, packed, params, num_epochs=1, ctc_weight=0.3)
    decode = DecodeParams(decoder="attention", max_chars_per_s=100)
    rows = labels_of(replace(job, teacher=decode))
    assert any(len(str(row["text"])) > 2 for row in rows), "the attention decoder writes long texts"
    assert all(row["kept"] == (0 < len(str(row["text"])) <= 2) for row in rows if row["text"] != "一一")


# -- with other options ------------------------------------------------------------------------------------


def test_clips_of_several_packs_are_labelled_and_one_may_have_none(tmp_path: Path) -> None:
    first = pack_with_hidden(tmp_path / "first")
    second = pack_clips(tmp_path / "second", toy_clips(6, 2, seed=5))
    job = self_training_job(tmp_path, first)
    packs = Packs([Pack(name, pack.samples, pack.store) for name, pack in (("a", first), ("b", second))])
    train(replace(job, packs=packs))
    for path in tmp_path.glob("runs/*/pseudo_labels/*"):
        assert all(name.startswith("a/") for name in pq.read_table(path)["clip_id"].to_pylist())
    assert curves(tmp_path)[1]["pseudo_labels"] == str(NUM_UNLABELLED)


def test_kept_clips_that_are_longer_than_the_curriculum_wait(tmp_path: Path, packed: Packed) -> None:
    job = self_training_job(tmp_path, packed)
    changes = {"curriculum_epochs": 4, "curriculum_frames": 12}
    data = TrainingData(replace(job, loader=job.loader.model_copy(update=changes)))
    num_frames_N = data.samples["num_frames"].to_numpy()
    longest = [row for row in range(NUM_LABELLED, len(num_frames_N)) if num_frames_N[row] == 24]
    data.pseudo_labels = PseudoLabels(dict.fromkeys(longest, "一"), dict.fromkeys(longest, 1.0))
    first, last = (set(np.concatenate(data.epoch(epoch).batches).tolist()) for epoch in (0, 4))
    assert first == {row for row in range(NUM_LABELLED) if num_frames_N[row] <= 12}
    assert last == {*range(NUM_LABELLED), *longest} and longest


def test_the_figures_go_to_the_trackers_and_curves(undisturbed: Path) -> None:
    (journal,) = (undisturbed / "runs").glob("*/metrics.jsonl")
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    tags = {tag for row in rows for tag in (row.get("values") or row)}
    assert {"self_training/clips", "self_training/kept_share", "self_training/cer"} <= tags
    rounds = curves(undisturbed)
    assert [row["pseudo_labels"] for row in rounds] == ["", *[str(NUM_UNLABELLED)] * 4]
    assert rounds[1]["pseudo_cer"] == rounds[2]["pseudo_cer"]  # the same labels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": "attention"}, r"train\.self_training\.decoder: .*has not learnt attention"),
        ({"decoder": "syllables"}, r"train\.self_training\.decoder: .*has not learnt syllables"),
    ],
)
def test_a_decoder_without_its_heads_is_refused(
    tmp_path: Path, packed: Packed, changes: dict[str, object], message: str
) -> None:
    job = self_training_job(tmp_path, packed, PARAMS.model_copy(update=changes))
    with pytest.raises(ConfigError, match=message):
        teacher_of(job.train, DecodeParams())


def test_pinyin_is_no_label(tmp_path: Path, packed: Packed) -> None:
    job = self_training_job(tmp_path, packed, syllable_weight=1.0)
    with pytest.raises(ConfigError, match="syllables writes pinyin, which is no label"):
        teacher_of(job.train, DecodeParams())


def test_values_that_the_decoder_does_not_use_change_no_run(tmp_path: Path, packed: Packed) -> None:
    train_params = self_training_job(tmp_path, packed).train
    assert teacher_of(train_params, DecodeParams(beam=40, lm_weight=0.5)) == DecodeParams(decoder="ctc")
    with_beam = train_params.model_copy(
        update={"self_training": PARAMS.model_copy(update={"decoder": "ctc_beam"})}
    )
    assert teacher_of(with_beam, DecodeParams(beam=40)).beam == 40


def test_self_training_without_a_share_of_unlabelled_clips_is_refused(tmp_path: Path, packed: Packed) -> None:
    job = self_training_job(tmp_path, packed)
    job = replace(job, loader=job.loader.model_copy(update={"unlabelled_share": 0.0}))
    with pytest.raises(ConfigError, match=r"loader\.unlabelled_share is 0"):
        train(job)
