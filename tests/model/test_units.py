"""Units: joined units give the label again; bpe learns the same units everywhere, and splits as its library does."""

import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models

from model.pinyin import LETTER_NAMES, readings_of, syllables_of
from model.settings import TextParams, TrainParams
from model.text import UNKNOWN_ID, Tokenizer, normalise, normaliser_metadata
from model.units import Splitting
from model.vocabulary import Vocabulary
from shards.errors import CheckpointError, ConfigError
from stages.cards import model_card
from stages.reports.counting import split_metrics
from stages.reports.figures import ReportFacts
from tests.support.reports import made_clips

LABELS = (
    "the cat sat on the mat",
    "the cat ate the rat",
    "that rat sat there",
    "用gpu跑bin blue",
    "用ai助手和gpu test",
    "ที่นี่ ไม่มี น้ำ",
    "ที่นั่น มี น้ำ",
    "السلام عليكم",
    "والسلام عليكم",
    "한국 사람은 한국말을",
    "ещё не ел",
    "café 2024",
) * 2
KINDS: dict[str, dict[str, Any]] = {
    "characters": {},
    "letters": {"hangul": "letters"},
    "words": {"units": "words"},
    "words, spelled": {"units": "words", "latin": "spell"},
    "bpe": {"units": "bpe", "bpe_size": 110},
    "bpe, spelled letters": {"units": "bpe", "bpe_size": 110, "latin": "spell", "hangul": "letters"},
}


def table_of(labels: Sequence[str], kind: str) -> Tokenizer:
    return Vocabulary.of_labels(labels, False, TextParams(**KINDS[kind])).characters


KNOWN = {kind: table_of(LABELS, kind) for kind in KINDS}
hostile = st.text() | st.text(
    alphabet="中文 零ab\u0301é'ß☃👩\u200d🔬👍🏽٣é๑ที่น้ำ السَّلامُـ한국ᄒ\u1161\u11abё7\u0e4d\u0e32▁<>\u3000\n\t－",
    max_size=30,
)


@pytest.mark.parametrize("kind", KINDS)
@given(text=hostile, drops=st.booleans())
@example("用ai做gpu test 和 app", True)
@example("▁a <space> ▁", False)
@example("e\u0301한\u11ab ᄒ", True)
@settings(max_examples=150, deadline=None)
def test_every_label_comes_back_from_its_units(kind: str, text: str, drops: bool) -> None:
    label = normalise(text, TextParams(drop_punctuation=drops))
    table = KNOWN[kind]
    assert table.splitting.join(table.splitting.split(label)) == label
    # a table that was learnt from the label writes all of it
    if KINDS[kind].get("units") != "bpe":
        table = table_of([label], kind)
        assert table.decode(table.encode(label)) == label
        assert table.unknown_units(label) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_training_labels_have_no_unknown_units(kind: str) -> None:
    for label in LABELS:
        assert KNOWN[kind].decode(KNOWN[kind].encode(label)) == label, label


@pytest.mark.parametrize(
    ("kind", "lost"),
    [("characters", ["q", "猫"]), ("words", [" qat", "猫"]), ("bpe", ["q", "猫"]), ("letters", ["q", "猫"])],
)
def test_what_the_table_lacks_is_unknown_and_not_dropped(kind: str, lost: list[str]) -> None:
    table = KNOWN[kind]
    label = "the qat用猫"
    assert table.unknown_units(label) == lost
    assert table.encode(label).count(UNKNOWN_ID) == 2
    assert len(table.encode(label)) == len(table.splitting.split(label))


def test_units_are_the_expected_ones() -> None:
    mixed = "用ai助手和gpu test"
    words = KNOWN["words"].splitting.split
    assert words(mixed) == ["用", " ai", "助", "手", "和", " gpu", " test"]
    assert words("the cat") == [" the", " cat"]
    spelled = KNOWN["words, spelled"].splitting.split
    assert spelled(mixed) == ["用", " a", "i", "助", "手", "和", " g", "p", "u", " t", "e", "s", "t"]
    assert spelled("the cat") == [" the", " cat"], "no Han characters: not Mandarin text"
    assert KNOWN["letters"].splitting.split("한국") == list("\u1112\u1161\u11ab\u1100\u116e\u11a8")
    assert KNOWN["letters"].decode(KNOWN["letters"].encode("한국 사람")) == "한국 사람"
    letters = table_of(["가나다 각난닫"], "letters").units
    assert set(letters) == set(" \u1100\u1102\u1103\u1161\u11a8\u11ab\u11ae"), "not a unit for each syllable"
    assert " the" in KNOWN["bpe"].units


def test_spaces_that_a_label_cannot_have_are_not_written() -> None:
    table = KNOWN["words"]
    assert table.decode(table.encode([" the", "用", " gpu", "和", " cat", " sat"])) == "the用gpu和cat sat"
    bpe = KNOWN["bpe"]
    assert bpe.decode(bpe.encode([" ", " the", " ", " ", "c", " "])) == "the c"


@given(text=hostile)
@settings(max_examples=100, deadline=None)
def test_bpe_splits_as_its_library_does(text: str) -> None:
    splitting = KNOWN["bpe"].splitting
    units = {unit: number for number, unit in enumerate(("\0", *KNOWN["bpe"].units))}
    library = models.BPE(vocab=units, merges=list(splitting.merges), unk_token="\0")
    for piece in splitting.pieces(normalise(text, TextParams())):
        theirs = [token.value for token in library.tokenize(piece)]
        ours = [unit if unit in units else "\0" for unit in splitting._merged(piece)]
        assert ours == theirs


def test_the_program_in_the_card_of_an_export_writes_the_same_text(tmp_path: Path) -> None:
    program = model_card.example("onnx", ("ctc",))
    decoding = program[program.index("best = ") :]
    inputs, labels = [], []
    for kind, table in KNOWN.items():
        labels.append("ใช้ที่用gpu test한국" if kind == "letters" else LABELS[4])
        path = [token for one in table.encode(labels[-1]) for token in (one, 0)]
        inputs.append({"path": path, "num_tokens": table.num_tokens, "characters": table.to_json()})
    (tmp_path / "inputs.json").write_text(json.dumps(inputs), "utf-8")
    lines = [
        "import json, re, sys, unicodedata",
        "import numpy as np",
        "sys.stdout.reconfigure(encoding='utf-8')",
        "for config in json.load(open('inputs.json', encoding='utf-8')):",
        "    num_steps = [len(config['path'])]",
        "    log_probs = np.log(np.eye(config['num_tokens'])[config['path']] + 1e-9)[None]",
        *(f"    {line}" for line in decoding.splitlines()),
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    written = [table.decode(table.encode(label)) for table, label in zip(KNOWN.values(), labels, strict=True)]
    assert done.stdout.splitlines() == written and written[2] == LABELS[4]


@pytest.mark.parametrize(("kind", "number"), [("characters", 2), ("words", 4), ("bpe", 2)])
def test_characters_of_unknown_units_are_counted_by_the_report(kind: str, number: int) -> None:
    clips = made_clips([("the qat用猫", "the cat用"), ("the cat", "the")])
    metrics = split_metrics(clips, [], "test", 0, facts=ReportFacts("ctc", KNOWN[kind]))
    assert metrics["num_unwritable"] == number


def test_bpe_has_all_characters_and_at_most_its_size() -> None:
    table = KNOWN["bpe"]
    characters = {one for label in LABELS for one in label} | {" "}
    assert characters <= set(table.units) and len(table.units) == 110
    assert len(table.splitting.merges) == 110 - len(characters)
    # the first merge is of the most frequent pair
    assert table.splitting.merges[0] == max(
        table.splitting.merges, key=lambda pair: sum(f" {label}".count("".join(pair)) for label in LABELS)
    )


TIED = """
import hashlib, json, random, sys
from model.settings import TextParams
from model.vocabulary import Vocabulary
rng = random.Random(5)
labels = [" ".join("".join(rng.choices("abcdefgh", k=4)) for _ in range(4)) for _ in range(400)]
random.Random(int(sys.argv[1])).shuffle(labels)
table = Vocabulary.of_labels(labels, False, TextParams(units="bpe", bpe_size=200)).characters
print(hashlib.sha256(json.dumps(table.to_json()).encode()).hexdigest())
"""


def test_the_same_texts_give_the_same_bpe_with_any_order_threads_and_hash_seed() -> None:
    made = {
        subprocess.run(
            [sys.executable, "-c", TIED, str(order)],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": str(order), "RAYON_NUM_THREADS": threads},
        ).stdout
        for order, threads in ((1, "1"), (2, "2"), (3, "8"))
    }
    assert len(made) == 1 and len(made.pop()) == 65


def test_a_bpe_without_room_for_units_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"text\.bpe_size: 3 .* 4 characters.*set it higher"):
        Vocabulary.of_labels(["abc"], False, TextParams(units="bpe", bpe_size=3))


@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_stored_as_plain_json(kind: str) -> None:
    table = KNOWN[kind]
    assert Tokenizer.from_json(json.loads(json.dumps(table.to_json())), "best.pt") == table
    assert table != KNOWN["words" if kind == "bpe" else "bpe"]


def test_tables_of_characters_and_syllables_are_stored_as_before() -> None:
    found = Vocabulary.of_labels(["你好"], True)
    special = ["<blank>", "<start>", "<end>", "<unknown>"]
    assert found.characters.to_json() == {"version": 1, "special_tokens": special, "characters": ["你", "好"]}
    assert found.syllables and found.syllables.to_json() == {
        "version": 1, "special_tokens": special, "characters": ["hao", "ni"], "joiner": " ",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"splitting": {"kind": "letters"}}, "splitting.kind"),
        ({"splitting": {"kind": "bpe", "merges": [["a"]]}}, "splitting.merges"),
        ({"splitting": {"kind": "bpe", "merges": [["a", "z"]]}}, "lacks 'az'"),
        ({"splitting": {"kind": "words", "code": "x"}}, "splitting.code"),
        ({"splitting": {"kind": "pinyin"}}, "joiner"),
        ({"splitting": []}, "splitting"),
    ],
)
def test_a_changed_splitting_is_refused_with_the_file(change: dict[str, object], problem: str) -> None:
    stored = Tokenizer(("a", "b")).to_json() | change
    with pytest.raises(CheckpointError, match=rf"best\.pt.*{problem}"):
        Tokenizer.from_json(stored, "best.pt")


def test_letters_in_mandarin_are_spelled_by_their_names_in_pinyin() -> None:
    found = Vocabulary.of_labels(["用ai啊", "ok"], True, TextParams(units="pinyin", latin="spell"))
    assert found.pinyin_of("用AI啊") == "yong ei ai a"
    assert found.pinyin_of("ok") == "o k", "no Han characters"
    assert syllables_of("用ai啊") == ("yong", "a", "i", "a"), "text.latin: keep"
    assert found.syllables and set(found.syllables.units) == {"yong", "ei", "ai", "a", "o", "k"}
    assert Tokenizer.from_json(found.syllables.to_json(), "here") == found.syllables
    # 26 different names, and the decoder pinyin can write each letter
    assert len(set(LETTER_NAMES.values())) == 26
    assert all(readings_of(letter, True) == (letter, name) for letter, name in LETTER_NAMES.items())
    assert readings_of("啊", True) == readings_of("啊")


@pytest.mark.parametrize(
    ("units", "heads", "fix"),
    [
        ("pinyin", ("ctc",), "set train.syllable_weight to 1"),
        ("pinyin", ("ctc", "syllables"), "set train.syllable_weight to 1"),
        ("bpe", ("ctc", "syllables"), "set train.syllable_weight to 0"),
        ("words", ("syllables",), "set train.syllable_weight to 0"),
    ],
)
def test_heads_that_cannot_write_the_units_are_refused(units: Any, heads: Any, fix: str) -> None:
    with pytest.raises(ConfigError, match=f"text.units: {units} .*{fix}"):
        TextParams(units=units).refuse_other_heads(heads)
    TextParams().refuse_other_heads(heads)


def test_new_options_leave_older_tables_and_fingerprints_as_they_were() -> None:
    older = {
        "case_fold": True,
        "digits": "keep",
        "drop_annotations": False,
        "drop_punctuation": True,
        "simplify": False,
    }
    assert TextParams().recorded() == older
    assert not {"data", "where"} & TrainParams().recorded().keys()
    assert TrainParams(where="num_frames > 9").recorded()["where"] == "num_frames > 9"
    stored = normaliser_metadata(TextParams())
    assert json.loads(stored[b"normaliser"])["params"] == older
    # units are no part of a label
    of_units = TextParams(units="bpe", bpe_size=300, latin="spell", hangul="letters")
    assert normaliser_metadata(of_units) == stored
    assert of_units.recorded() == older | {
        "units": "bpe",
        "bpe_size": 300,
        "latin": "spell",
        "hangul": "letters",
    }
    assert normaliser_metadata(TextParams(arabic="plain")) != stored


def test_letters_compose_only_to_the_syllables_they_came_from() -> None:
    splitting = Splitting(hangul="letters")
    for label in ("각", "각", "값이", "ᄀ", "가 ᆨ"):
        label = unicodedata.normalize("NFKC", label)
        assert splitting.join(splitting.split(label)) == label
