"""Self-training: what the teacher reads in unlabelled clips, and which of them an epoch visits with which label."""

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jiwer
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.decoding.calibration import UNCALIBRATED
from model.decoding.reader import LipReader
from model.runs import RunFolder
from model.settings import AugmentParams, DecodeParams, LmParams, SelfTrainingParams
from model.text import DOUBTFUL
from model.training.augment import training_input
from model.training.pseudo_labels import PseudoLabels
from model.training.self_training import SelfTraining
from model.training.step import TrainingStep, black_clip, set_up
from model.training.training_data import TrainingData, TrainingJob, teacher_of
from shards.blend import groups_of
from shards.errors import ConfigError, Interrupted, ShardError, TableError
from shards.packs import Pack, Packs
from shards.settings import LoaderParams
from shards.stream import ClipBatch
from stages.lm import make_language_model
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clip, toy_clips
from tests.support.resuming import stopping_at
from tests.support.self_trainings import (
    NUM_LABELLED,
    NUM_UNLABELLED,
    PARAMS,
    curves,
    hidden_clips,
    pack_with_hidden,
    self_training_job,
)
from tests.support.trainings import (
    job_in,
    read_test_clips,
    with_sizes,
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_with_hidden(tmp_path_factory.mktemp("packed"))


# -- what is learnt ----------------------------------------------------------------------------------------


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


def test_the_second_view_is_the_mirrored_clip(tmp_path: Path, learnt: tuple[Packed, Path]) -> None:
    """The network itself, given mirrored pixels, is the referee."""
    job = taught_job(tmp_path, learnt, decoder="ctc", views=3)
    data = TrainingData(job)
    step = set_up(job, data, torch.device("cpu"))
    step.state.restore(RunFolder(tmp_path, "run"))
    teacher = SelfTraining(job, step.state, RunFolder(tmp_path, "run"), step.precision)
    reader = step.state.reader(step.precision)
    reader.network.eval()
    stream, _ = data.streams(pin_memory=False)
    (batch,) = stream.batches([np.arange(60, 64)])
    expected = reader.read(batch.video_BTHW.flip(3), batch.num_frames_B, job.teacher)
    mirrored = teacher._read_view(reader, batch, 1)
    assert [view.text for view in mirrored] == [view.text for view in expected]
    np.testing.assert_allclose(
        [view.score for view in mirrored], [view.score for view in expected], rtol=1e-4
    )
    augment = AugmentParams(flip=False, shift_px=8, time_masks_per_s=5)
    teacher.job = replace(job, train=job.train.model_copy(update={"augment": augment}))
    drawn = [teacher._change(batch.clip_ids[0], 12, view) for view in (1, 2)]
    assert drawn[0] != drawn[1] and not any(change.mirror or change.masks for change in drawn)
    plain = reader.read(batch.video_BTHW, batch.num_frames_B, job.teacher)
    other = teacher._read_view(reader, batch, 2)
    scores = np.array([[view.score for view in views] for views in (plain, mirrored, other)])
    assert (np.abs(np.diff(scores[[0, 1, 2, 0]], axis=0)) > 1e-4 * np.abs(scores)).all(), "three unlike views"


def test_disagreement_is_between_the_readings_of_the_views(
    tmp_path: Path, learnt: tuple[Packed, Path]
) -> None:
    """Strong augmentation confuses the teacher; a clip whose views differ too much is not kept."""
    job = taught_job(tmp_path, learnt, decoder="ctc", views=6, max_disagreement=0.3)
    confusing = AugmentParams(shift_px=32, zoom_sigma=0.5)
    rows = labels_of(replace(job, train=job.train.model_copy(update={"augment": confusing})))
    disagreements = [float(str(row["disagreement"])) for row in rows]
    assert min(disagreements) < max(disagreements)
    assert all(row["kept"] == (bool(row["text"]) and row["disagreement"] <= 0.3) for row in rows)  # type: ignore[operator]


def test_unsure_characters_are_doubtful(tmp_path: Path, learnt: tuple[Packed, Path]) -> None:
    """The checkpoint's own reader is the referee; the limit is the median of the least sure characters."""
    _, checkpoint = learnt
    reader = replace(
        LipReader.from_checkpoint(checkpoint, torch.device("cpu")), confidence_scale=UNCALIBRATED
    )
    clips = [toy_clip(label, number, 4) for number, (*_, label) in enumerate(hidden_clips())]
    read = [reader.read_clip(clip_THW, DecodeParams(decoder="ctc")).characters for clip_THW in clips]
    least = float(np.median([min(one.confidence for one in of_clip) for of_clip in read]))
    rows = labels_of(taught_job(tmp_path, learnt, decoder="ctc", min_character_confidence=least))
    expected = [
        "".join(one.text if one.confidence >= least else DOUBTFUL for one in of_clip) for of_clip in read
    ]
    assert [row["learnt"] for row in rows] == expected
    assert sum(DOUBTFUL in text for text in expected) == len(clips) // 2


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


def test_a_pack_whose_kept_clips_are_all_too_long_has_no_unlabelled_group() -> None:
    rows = [("a", True), ("b", True), ("a", False), ("a", False), ("b", False), ("b", False)]
    samples = pa.table(
        {
            "corpus": pa.array([pack for pack, _ in rows]).dictionary_encode(),
            "is_labelled": [is_labelled for _, is_labelled in rows],
        }
    )
    is_short_N, usable_N = np.array([1, 1, 1, 1, 1, 0], bool), np.array([1, 1, 1, 0, 0, 1], bool)
    groups = groups_of(samples, is_short_N, LoaderParams(unlabelled_share=0.9), {}, 0, usable_N)
    found = [(group.name, group.is_labelled, group.row_N.tolist(), group.num_visits) for group in groups]
    assert found == [("a", True, [0], 1), ("b", True, [1], 1), ("a", False, [2], 1)]


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
