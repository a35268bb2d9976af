"""Corpora in other languages, from a table with videos to a trained model and its error rates; jiwer is the referee."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from model.checkpoints import load_checkpoint
from model.decoding.reader import LipReader
from model.settings import DecodeParams, LmParams, TextParams
from model.text import describe_stored_normaliser
from model.training.training_data import TrainingData, TrainingJob
from shards import schema
from shards.errors import CheckpointError, ConfigError
from shards.files import read_table
from shards.packs import Packs
from shards.settings import MachineParams, PackParams
from shards.store import FolderStore
from stages.crop import crop
from stages.ingest import ingest
from stages.lm import make_language_model
from stages.pack import pack
from stages.reports.counting import split_metrics
from stages.settings import CropParams
from stages.stats import stats
from stages.train import train
from tests.support.corpora import table
from tests.support.packed import Packed
from tests.support.reports import made_clips
from tests.support.trainings import job_in, read_test_clips
from tests.support.videos import write_mouth

THAI = TextParams(phrase_spaces="drop", digits="ascii", units="bpe", bpe_size=40)
ARABIC = TextParams(arabic="plain", digits="ascii", units="bpe", bpe_size=40)
ENGLISH = TextParams(apostrophes="keep", units="words")
KOREAN = TextParams(hangul="letters")
RUSSIAN = TextParams(cyrillic="plain", units="words")
CORPORA: dict[str, tuple[TextParams, list[tuple[str, str]]]] = {
    "Thai": (
        THAI,
        [
            ("ฉันรักเธอ มาก ๆ", "ฉันรักเธอมากๆ"),
            ("เธอมี แมว ๓ ตัว", "เธอมีแมว3ตัว"),
            ("ที่นี่ไม่มีแมว!", "ที่นี่ไม่มีแมว"),
            ("ใช้ GPU ได้ไหม", "ใช้gpuได้ไหม"),
        ],
    ),
    "Arabic": (
        ARABIC,
        [
            ("السَّلَامُ عَلَيْكُمْ، أَهْلًا!", "السلام عليكم اهلا"),
            ("إلى آخر الـــسؤال؟", "الى اخر السؤال"),
            ("ٱلْكِتَابُ ١٢ هنا", "الكتاب 12 هنا"),
            ("أهلا إلى السلام", "اهلا الى السلام"),
        ],
    ),
    "English": (
        ENGLISH,
        [
            ("Don’t look at the dogs' bowl", "don't look at the dogs bowl"),
            ("It's five o'clock, isn't it?", "it's five o'clock isn't it"),
            ("‘Look’ at it", "look at it"),
            ("It isn’t the bowl.", "it isn't the bowl"),
        ],
    ),
    "Korean": (KOREAN, [("한국 사람은 한국말을 한다.", "한국 사람은 한국말을 한다"), ("\u1112\u1161\u11ab국", "한국")]),
    "Russian": (
        RUSSIAN,
        [("Ещё не съел её ёлку", "еще не съел ее елку"), ("Е\u0308ж не ел", "еж не ел"), ("Не ел!", "не ел")],
    ),
}  # fmt: skip


def packed_corpus(folder: Path, language: str) -> Path:
    """Ingests, crops and packs a table of drawn mouth videos, with four clips in each of train, valid and test."""
    text, pairs = CORPORA[language]
    corpus = table(
        folder / "corpus",
        {
            "clip_id": [f"c{number}" for number in range(12)],
            "media": [f"{number % 4}.mp4" for number in range(12)],
            "text": [transcript for transcript, _ in pairs] * 3,
            "split": ["train"] * 4 + ["valid"] * 4 + ["test"] * 4,
            "speaker": [f"{split}{number % 2}" for split in "avt" for number in range(4)],
        },
        speaker_overlap="warn",
    )
    for number in range(4):
        write_mouth(folder / "corpus" / f"{number}.mp4", 100, seed=number)
    ingest(corpus, text, CropParams(), folder / "clips.parquet")
    machine, crop_params = MachineParams(workers=1, cache_dir=str(folder / "cache")), CropParams()
    tables = [folder / f"{name}.parquet" for name in ("clips", "crops", "tracks")]
    crop(corpus, crop_params, machine, *tables)
    store = FolderStore(folder / "shards")
    pack(corpus, crop_params, PackParams(), machine, *tables, store, folder / "samples.parquet")
    return folder


@pytest.mark.parametrize("language", CORPORA)
def test_labels_are_right_and_their_normaliser_is_named(tmp_path: Path, language: str) -> None:
    text, pairs = CORPORA[language]
    rows = {
        "clip_id": [f"c{number}" for number in range(len(pairs))],
        "media": [f"{number}.mp4" for number in range(len(pairs))],
        "text": [transcript for transcript, _ in pairs],
        "split": ["train"] * len(pairs),
    }
    ingest(table(tmp_path / "corpus", rows), text, CropParams(), tmp_path / "clips.parquet")
    found = read_table(tmp_path / "clips.parquet", schema.CLIPS, "pipeline ingest")
    assert found["label"].to_pylist() == [label for _, label in pairs]
    assert found["num_chars"].to_pylist() == [len(label) for _, label in pairs]
    described = describe_stored_normaliser(
        pq.read_schema(tmp_path / "clips.parquet").metadata, "clips.parquet"
    )
    steps = {
        "Thai": ["no spaces in Thai", "digits of all scripts"],
        "Arabic": ["without Arabic marks", "one form of alef"],
        "English": ["apostrophes inside words"],
        "Korean": [],
        "Russian": ["е for ё"],
    }
    assert all(step in str(described) for step in steps[language])


@dataclass(frozen=True)
class Trained:
    """A language, its packed clips, and an epoch of training on them."""

    language: str
    packed: Packed
    folder: Path
    log: str

    @property
    def text(self) -> TextParams:
        return CORPORA[self.language][0]

    @property
    def best(self) -> Path:
        return self.folder / "checkpoints/best_model.pt"

    def job(self, folder: Path | None = None) -> TrainingJob:
        job = job_in(folder or self.folder, self.packed, num_epochs=1, ctc_weight=0.5)
        return replace(job, text=self.text)


@pytest.fixture(scope="module", params=["Thai", "Arabic", "English"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = packed_corpus(tmp_path_factory.mktemp(request.param), request.param)
    made = Trained(request.param, Packed.at(folder), folder, "")
    train(made.job())
    return replace(made, log=(folder / "logs/training.log").read_text("utf-8"))


def test_a_language_is_trained_read_and_scored_in_its_units(trained: Trained) -> None:
    labels = [label for _, label in CORPORA[trained.language][1]]
    state = load_checkpoint(trained.best)
    reader = LipReader.from_checkpoint(trained.best, torch.device("cpu"))
    units = reader.vocabulary.characters
    assert units == TrainingData(trained.job()).vocabulary.characters, "learnt from the same texts again"
    assert f"Vocabulary size: {units.num_tokens} ({units.splitting})" in trained.log
    assert state["text_params"]["units"] == units.splitting.kind == trained.text.units
    stored = json.loads((trained.folder / "checkpoints/tokenizer.json").read_text("utf-8"))
    assert stored == units.to_json()
    # every decoder writes text
    for decoder in ("ctc", "attention", "ctc_beam", "joint_beam"):
        params = DecodeParams(decoder=decoder, beam=3)  # type: ignore[arg-type]
        clips = read_test_clips(reader, trained.packed, params)
        assert sorted(clip.reference for clip in clips) == sorted(labels)
        for clip in clips:
            assert -np.inf < clip.score <= 1e-6, "a log probability"
            assert not clip.hypothesis.startswith(" ") and "  " not in clip.hypothesis
    # hypotheses with wrong, missing and unknown units
    damaged = list(damaged_readings(labels * 3, units))
    metrics = split_metrics(made_clips(damaged), [], "test", 0)
    references, hypotheses = ([pair[side] for pair in damaged] for side in (0, 1))
    assert metrics["cer"] == pytest.approx(jiwer.cer(references, hypotheses)) and metrics["cer"] > 0
    if trained.language == "Thai":
        assert "wer" not in metrics
    else:
        assert metrics["wer"] == pytest.approx(jiwer.wer(references, hypotheses))
        assert metrics["wer"] > 0


def damaged_readings(labels: list[str], units: Any) -> list[tuple[str, str]]:
    rng = np.random.default_rng(0)
    pairs = []
    for label in labels:
        ids = units.encode(label)
        changed = [
            int(rng.integers(4, units.num_tokens)) if draw < 0.2 else token
            for token, draw in zip(ids, rng.random(len(ids)), strict=True)
            if draw < 0.9
        ]
        pairs.append((label, units.decode(changed)))
    return pairs


def test_a_run_with_other_units_is_not_resumed(trained: Trained, tmp_path: Path) -> None:
    resumed = replace(trained.job(tmp_path), resume=trained.best)
    others = replace(resumed, text=TextParams())
    with pytest.raises(CheckpointError, match=rf"units: {trained.text.units}.* there, characters here"):
        train(others)
    train(resumed)


def test_units_without_a_syllable_head_are_refused_before_training(trained: Trained) -> None:
    job = trained.job()
    with pytest.raises(ConfigError, match=r"text\.units: .* has no syllable head"):
        TrainingData(replace(job, train=job.train.model_copy(update={"syllable_weight": 0.3})))


def test_a_language_model_learns_the_units_of_training(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("".join(f"{t}\n" for t, _ in CORPORA[trained.language][1]), "utf-8")
    reader = LipReader.from_checkpoint(trained.best, torch.device("cpu"))
    decode = DecodeParams(decoder="ctc_beam", beam=3, lm_weight=0.5)
    packs, lm = trained.job().packs, tmp_path / "lm.arpa"
    for text_file in ("", str(tmp_path / "more.txt")):
        figures = make_language_model(packs, lm, LmParams(order=3, text_file=text_file), trained.text)
        assert figures["units"] == str(reader.vocabulary.characters.splitting)
        assert figures["valid"]["out_of_vocabulary_rate"] == 0
        reader.language_model = None
        reader.open_language_model(lm, decode)
        assert len(read_test_clips(reader, trained.packed, decode)) == 4
    own = packs.packs[0]
    both = Packs([replace(own, name=name) for name in ("one", "two")])
    blended = make_language_model(both, lm, LmParams(order=3), trained.text)
    learnt = TrainingData(replace(trained.job(), packs=both)).vocabulary.characters.splitting
    assert (blended["sentences"], blended["learnt_from"]) == (8, "one, two, split train")
    assert blended["units"] == str(learnt)
    if trained.text.units == "bpe":
        with pytest.raises(ConfigError, match=r"bpe learns its units from packed clips.*is missing"):
            none = Packs.single(tmp_path / "none.parquet", trained.packed.store)
            make_language_model(none, lm, LmParams(text_file="more.txt"), trained.text)


def test_stats_show_the_number_of_units(trained: Trained, tmp_path: Path) -> None:
    learnt = TrainingData(trained.job()).vocabulary.characters
    tables = trained.folder / "clips.parquet", trained.folder / "crops.parquet", None
    summary = stats(*tables, tmp_path / "stats", text=trained.text)
    assert summary["vocabulary"]["units"] == {"of": str(learnt.splitting), "size": len(learnt.units)}
    assert "units" not in stats(*tables, tmp_path / "plain")["vocabulary"]
