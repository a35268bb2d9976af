"""`pipeline lm`: from packed labels or a text file to an ARPA file, with perplexity on valid."""

import hashlib
import json
import math
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from model.decoding.arpa import arpa_metadata, read_arpa, write_arpa
from model.decoding.kneser_ney import train
from model.decoding.ngram import perplexity
from model.exports.onnx_reader import LOG_PROBS, OnnxReader
from model.settings import DecodeParams, TextParams
from model.text import describe_normaliser, normaliser_metadata
from pipeline.params import load_params, read_mapping
from pipeline.training_job import packs_of
from shards.errors import ConfigError
from shards.files import read_table, write_table
from shards.schema import SAMPLES
from stages.lm import make_language_model, warn_of_other_text
from tests.support.exported import MODELS, random_reader
from tests.support.in_process import pipeline
from tests.support.packed import pack_clips, toy_clips

ROOT = Path(__file__).parents[2]
PIPELINE = Path(sysconfig.get_path("scripts")) / "pipeline"
CLIPS = toy_clips(12, 5)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with packed clips and params.yaml."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(read_mapping(ROOT / "params.yaml")), "utf-8")
    samples = pack_clips(tmp_path / "data", CLIPS).samples
    marked = SAMPLES.with_metadata(SAMPLES.metadata | normaliser_metadata(TextParams()))
    write_table(samples, read_table(samples, SAMPLES, "pipeline pack"), marked)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def labels(split: str) -> list[str]:
    return [label for _, of_split, _, label in CLIPS if of_split == split]


def made(*assignments: str) -> dict[str, object]:
    values = load_params(Path("params.yaml"), assignments=assignments)
    return make_language_model(packs_of(values), Path(values.paths.lm), values.lm, values.text)


def test_it_learns_from_the_training_split_alone(workplace: Path) -> None:
    done = pipeline(workplace, ["lm", "--json", "--set", "lm.order=3"])
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    expected = train(labels("train"), 3)
    made_by = describe_normaliser(TextParams())
    about = {"learnt_from": "samples.parquet, split train", "normaliser": made_by, "text_sha256": None}
    write_arpa(workplace / "expected.arpa", expected, about)
    assert (workplace / "data/lm.arpa").read_bytes() == (workplace / "expected.arpa").read_bytes()
    assert figures["sentences"] == 12
    assert figures["characters"] == sum(map(len, labels("train")))
    assert figures["ngrams"] == list(expected.counts)
    assert figures["valid"]["perplexity"] == round(perplexity(expected, labels("valid")).perplexity, 3)
    assert figures["valid"]["out_of_vocabulary_rate"] == 0
    output = pipeline(workplace, ["lm"]).stdout
    assert "data/lm.arpa: 12 sentences" in output and "of order 4" in output and "valid: perplexity" in output


def test_a_text_file_is_normalised_as_labels_are(workplace: Path) -> None:
    Path("novel.txt").write_text("\ufeff一二，三！\n\n  Ab c\r\n", "utf-8")
    figures = made("lm.text_file=novel.txt")
    assert (figures["sentences"], figures["characters"]) == (2, 3 + 4)
    assert set(read_arpa(Path("data/lm.arpa")).words) == {"<unk>", "<s>", "</s>", *"一二三abc "}
    valid = figures["valid"]
    assert isinstance(valid, dict)
    unknown = sum(label.count("四") for label in labels("valid"))
    assert valid["out_of_vocabulary_rate"] == pytest.approx(unknown / valid["characters"], abs=1e-6) != 0


def test_a_text_file_needs_no_packed_clips(workplace: Path) -> None:
    (workplace / "data/samples.parquet").unlink()
    Path("novel.txt").write_text("一二三\n", "utf-8")
    assert made("lm.text_file=novel.txt")["valid"] is None
    with pytest.raises(ValueError, match="pipeline pack"):
        made()


def test_a_text_that_shares_no_character_has_no_perplexity_but_that_of_ends(workplace: Path) -> None:
    Path("latin.txt").write_text("ab\nba\n", "utf-8")
    valid = made("lm.text_file=latin.txt")["valid"]
    assert isinstance(valid, dict)
    assert valid["out_of_vocabulary_rate"] == 1
    assert math.isfinite(valid["perplexity"])


def test_the_model_says_what_it_was_made_from(workplace: Path) -> None:
    Path("novel.txt").write_text("\ufeff一二，三！\n\n  Ab c\r\n", "utf-8")
    figures = made("lm.text_file=novel.txt")
    text_sha256 = hashlib.sha256(Path("novel.txt").read_bytes()).hexdigest()
    assert arpa_metadata(Path("data/lm.arpa")) == {
        "learnt_from": "novel.txt",
        "normaliser": describe_normaliser(TextParams(drop_annotations=True)),
        "text_sha256": text_sha256,
    }
    assert figures["text_sha256"] == text_sha256
    assert made()["text_sha256"] is None


def test_a_model_of_another_normaliser_is_reported(workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By whatever reads with it: what only one of the two writes is unseen, and nothing else would tell."""
    reader = random_reader(MODELS["cnn3d"])
    exported = OnnxReader(None, reader.vocabulary, reader.text, 25.0, 96, (LOG_PROBS,))
    lm = Path("data/lm.arpa")

    def warnings_of() -> list[str]:
        caplog.clear()
        for one in (reader, exported):
            one.language_model = None
            one.open_language_model(lm, DecodeParams(decoder="ctc_beam", lm_weight=0.3))
        return [record.message for record in caplog.records if record.levelname == "WARNING"]

    Path("novel.txt").write_text("今天\n", "utf-8")
    made("lm.text_file=novel.txt", "text.simplify=false", "text.digits=chinese")
    assert read_normaliser(lm) == describe_normaliser(
        TextParams(simplify=False, digits="chinese", drop_annotations=True)
    )
    first, second = warnings_of()
    assert first == second
    assert "data/lm.arpa was made from text of another normaliser" in first and "`pipeline lm`" in first
    assert "digits as Chinese characters" in first
    # labels of the training split were made by what their table says, whatever params.yaml says since
    made("text.digits=chinese")
    assert read_normaliser(lm) == describe_normaliser(TextParams())
    about, rest = lm.read_bytes().split(b"\n", 1)
    lm.write_bytes(about + b"\n" + rest.replace("一".encode(), "今".encode()))
    assert warnings_of() == []
    # of a version alone, of an older file and of another program's nothing is said
    for line in (
        about.replace(b"(version ", b"(version 9"),
        b'# pipeline lm {"normaliser": 7}',
        b"# by hand",
    ):
        assert line != about
        lm.write_bytes(line + b"\n" + rest.replace("一".encode(), "今".encode()))
        assert warnings_of() == []


def read_normaliser(lm: Path) -> object:
    about = arpa_metadata(lm)
    assert about is not None
    return about["normaliser"]


ASKING = ("decode.decoder=ctc_beam", "decode.lm_weight=0.3")


def test_a_model_of_another_text_is_reported(workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In one line, where a decoder asks it and params.yaml names a text."""

    def warnings_of(*assignments: str, decoders: Sequence[str] = ()) -> list[str]:
        caplog.clear()
        values = load_params(Path("params.yaml"), assignments=assignments)
        warn_of_other_text(Path(values.paths.lm), values.lm, values.decode, decoders)
        return [record.message for record in caplog.records]

    novel = "lm.text_file=novel.txt"
    assert warnings_of(*ASKING, novel) == [], "no model, nothing to tell of: reading with it fails"
    Path("novel.txt").write_text("一二三\n", "utf-8")
    made(novel)
    assert warnings_of(*ASKING, novel) == []
    # the same text under another name is the same text
    Path("same.txt").write_bytes(Path("novel.txt").read_bytes())
    assert warnings_of(*ASKING, "lm.text_file=same.txt") == []
    Path("novel.txt").write_text("一二三四\n", "utf-8")
    (line,) = warnings_of(*ASKING, novel)
    assert (
        line
        == "novel.txt has changed since data/lm.arpa was made from it: run `dvc repro -f lm`, or `pipeline lm`"
    )
    assert warnings_of(novel, "decode.lm_weight=0.3", decoders=["ctc", "all"]) == [line]
    # it is asked by none of these
    for assignments, decoders in (
        (("decode.decoder=ctc_beam",), ()),
        (("decode.lm_weight=0.3",), ()),
        (("decode.decoder=ctc", "decode.lm_weight=0.3"), ()),
        (ASKING, ["ctc", "attention"]),
    ):
        assert warnings_of(*assignments, novel, decoders=decoders) == []
    assert warnings_of(*ASKING) == [], "made with `pipeline lm --text`"
    assert warnings_of(*ASKING, "lm.text_file=same.txt") == [], "that is as it was"
    Path("other.txt").write_text("四\n", "utf-8")
    (line,) = warnings_of(*ASKING, "lm.text_file=other.txt")
    assert "made from another text (novel.txt) than lm.text_file, other.txt: run `dvc repro -f lm`" in line
    (line,) = warnings_of(*ASKING, "lm.text_file=gone.txt")
    assert line.startswith(
        "lm.text_file: gone.txt is missing; data/lm.arpa was made from novel.txt: restore it"
    )
    made()
    (line,) = warnings_of(*ASKING, novel)
    assert "made from another text (samples.parquet, split train) than lm.text_file, novel.txt" in line
    # of a model from elsewhere nothing is known
    made(novel)
    about, rest = Path("data/lm.arpa").read_bytes().split(b"\n", 1)
    for first_line in (
        b"",
        b"# made by hand\n",
        b"# pipeline lm {\n",
        b"# pipeline lm []\n",
        b"# pipeline lm \xff\n",
    ):
        Path("data/lm.arpa").write_bytes(first_line + rest)
        assert warnings_of(*ASKING, "lm.text_file=other.txt") == []
    assert about.startswith(b"# pipeline lm {")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\xe4\xb8\x80\n\xff\xfe\n", "line 2 is not UTF-8"),
        (b"\n!!\n", "every line is empty"),
        (None, "cannot be read"),
    ],
)
def test_a_text_file_that_teaches_nothing(workplace: Path, payload: bytes | None, message: str) -> None:
    if payload is not None:
        Path("bad.txt").write_bytes(payload)
    with pytest.raises(ConfigError, match=message):
        made("lm.text_file=bad.txt")
    assert not Path("data/lm.arpa").exists()
