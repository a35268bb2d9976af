"""Error rates compared with jiwer and closed forms, and the properties of the chance pairing."""

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import metrics
from model.metrics import (
    CHANCE_GROUP,
    CHANCE_PAIRINGS,
    FEWEST_PAIRINGS,
    AlignedPart,
    EditCounts,
    Op,
    align,
    chance_cer,
    chance_pairs,
    edit_counts,
    has_words,
    mixed_error_rate,
    mixes_scripts,
    total_counts,
    unit_error_rate,
    unit_pairs,
    word_error_rate,
)
from model.pinyin import syllables_of
from model.text import units_of

# few characters, so texts often agree; jiwer strips texts, so no space at the ends
texts = st.text(alphabet="今天气很好ab ", max_size=12).map(str.strip)
said = texts.filter(bool)
pair_lists = st.lists(st.tuples(said, texts), min_size=1, max_size=8)
# signs that are several code points in Python, or one above the first 65,536
wide = [
    *("今", "天", "𠮷", "𰻝", "a", " ", "é", "e\u0301", "ệ", "ﬁ", "ß", "İ"),
    *("👩\u200d👩\u200d👧", "👍🏽", "🇨🇳", "🇨", "한", "\u1112\u1161\u11ab", "क्षि", "ﷺ", "שָׁ", "\u200f"),
]
wide_texts = st.lists(st.sampled_from(wide), max_size=8).map("".join).map(str.strip)
wide_lists = st.lists(st.tuples(wide_texts.filter(bool), wide_texts), min_size=1, max_size=8)


@given(pair_lists | wide_lists)
def test_counts_agree_with_jiwer_to_the_last_digit(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = map(list, zip(*pairs, strict=True))
    theirs = jiwer.process_characters(references, hypotheses)
    ours = total_counts(pairs)
    assert (ours.substitutions, ours.deletions, ours.insertions) == (
        theirs.substitutions,
        theirs.deletions,
        theirs.insertions,
    )
    assert ours.cer == theirs.cer
    assert word_error_rate(pairs) == jiwer.wer(references, hypotheses)


@given(pair_lists)
def test_rates_over_other_units_agree_with_jiwer(pairs: list[tuple[str, str]]) -> None:
    def by_jiwer(units: Callable[[str], Sequence[str]]) -> float:
        # jiwer parts at spaces: units with spaces between them are its words
        sides = zip(*pairs, strict=True)
        references, hypotheses = ([" ".join(units(text)) for text in side] for side in sides)
        return float(jiwer.wer(references, hypotheses))

    assert mixed_error_rate(pairs) == by_jiwer(units_of)
    assert unit_error_rate(pairs, syllables_of) == by_jiwer(syllables_of)


@given(pair_lists)
def test_empty_hypotheses_have_an_error_rate_of_1(pairs: list[tuple[str, str]]) -> None:
    references = [reference for reference, _ in pairs]
    nothing = [(reference, "") for reference in references]
    counts = total_counts(nothing)
    assert counts == EditCounts(0, counts.num_chars, 0, sum(map(len, references)))
    assert counts.cer == jiwer.cer(references, [""] * len(references)) == 1.0
    assert word_error_rate(nothing) == jiwer.wer(references, [""] * len(references)) == 1.0


@given(texts, texts)
def test_unit_pairs_agree_with_the_counts(reference: str, hypothesis: str) -> None:
    pairs = unit_pairs(reference, hypothesis)
    assert "".join(said for said, _ in pairs) == reference
    assert "".join(read for _, read in pairs) == hypothesis
    wrong = [(said, read) for said, read in pairs if said != read]
    assert EditCounts(
        sum(bool(said and read) for said, read in wrong),
        sum(not read for _, read in wrong),
        sum(not said for said, _ in wrong),
        len(reference),
    ) == edit_counts(reference, hypothesis)


@given(texts, texts)
def test_alignment_joins_to_the_texts_and_agrees_with_the_counts(reference: str, hypothesis: str) -> None:
    parts = align(reference, hypothesis)
    assert "".join(part.reference for part in parts) == reference
    assert "".join(part.hypothesis for part in parts) == hypothesis
    lengths = dict.fromkeys(Op, 0)
    for part in parts:
        lengths[part.op] += max(len(part.reference), len(part.hypothesis))
        assert (part.reference == part.hypothesis) == (part.op is Op.EQUAL)
    counts = edit_counts(reference, hypothesis)
    assert counts == EditCounts(
        lengths[Op.SUBSTITUTE], lengths[Op.DELETE], lengths[Op.INSERT], len(reference)
    )
    assert counts.num_chars - counts.deletions + counts.insertions == len(hypothesis)


@given(texts, texts)
def test_swapping_the_texts_swaps_deletions_and_insertions(reference: str, hypothesis: str) -> None:
    forth, back = edit_counts(reference, hypothesis), edit_counts(hypothesis, reference)
    assert forth.errors == back.errors
    assert forth.deletions - forth.insertions == back.insertions - back.deletions


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts", "cer"),
    [
        ("今天天气很好", "今天天气很好", EditCounts(0, 0, 0, 6), 0.0),
        ("今天天气很好", "今天空气好", EditCounts(1, 1, 0, 6), 1 / 3),
        ("好", "很好吗", EditCounts(0, 0, 2, 1), 2.0),
        ("今天", "", EditCounts(0, 2, 0, 2), 1.0),
        ("", "今天", EditCounts(0, 0, 2, 0), 1.0),
        ("", "", EditCounts(0, 0, 0, 0), 0.0),
    ],
)
def test_closed_forms(reference: str, hypothesis: str, counts: EditCounts, cer: float) -> None:
    assert edit_counts(reference, hypothesis) == counts
    assert counts.cer == cer
    assert counts.accuracy == 1 - cer


def test_alignment_of_substitution_and_insertion() -> None:
    assert align("今天好", "今年好吗") == [
        AlignedPart(Op.EQUAL, "今", "今"),
        AlignedPart(Op.SUBSTITUTE, "天", "年"),
        AlignedPart(Op.EQUAL, "好", "好"),
        AlignedPart(Op.INSERT, "", "吗"),
    ]


def test_micro_average_weighs_characters_not_clips() -> None:
    assert total_counts([("好", "坏"), ("今天天气很好吗你说", "今天天气很好吗你说")]).cer == 1 / 10
    assert total_counts([]) == EditCounts()


def test_insertions_on_an_empty_reference_count_in_the_sum() -> None:
    assert total_counts([("", "今天"), ("今天天气", "今天天气")]).cer == 2 / 4


def test_words_are_counted_only_in_text_with_words() -> None:
    assert has_words(["bin blue at f two now", "lay red"])
    assert has_words(["bin blue", "now"])
    assert has_words(["now", "about", "naïve"]), "labels of one word have words too"
    assert not has_words(["今天天气很好", "用 open ai 的人", "再见"])
    assert not has_words(["今天", "gpu", "用gpu跑"])
    assert not has_words(["12", "ขอบคุณ", "ありがとう"]), "scripts without spaces, and digits"
    assert not has_words([])
    assert word_error_rate([("bin blue at f", "bin red at")]) == 2 / 4


def test_mixed_text_counts_han_characters_and_words() -> None:
    assert mixed_error_rate([("用gpu跑", "用cpu跑")]) == 1 / 3
    assert mixed_error_rate([("bin blue", "bin")]) == 1 / 2
    assert mixes_scripts(["今天", "用 gpu"])
    assert not mixes_scripts(["今天"]) and not mixes_scripts(["bin blue"]) and not mixes_scripts([])


distinct = st.lists(st.text(alphabet="今天气很好", max_size=9), min_size=2, max_size=60)


@given(distinct, st.integers(0, 9))
def test_chance_uses_every_reference_once_and_never_for_its_own_clip(sentences: list[str], seed: int) -> None:
    # a private-use character makes each clip's reference unique
    references = [sentence + chr(0xE000 + index) for index, sentence in enumerate(sentences)]
    pairs = [(reference, f"read {index}") for index, reference in enumerate(references)]
    swapped = chance_pairs(pairs, seed)
    assert swapped is not None
    assert [hypothesis for _, hypothesis in swapped] == [hypothesis for _, hypothesis in pairs]
    assert Counter(reference for reference, _ in swapped) == Counter(references)
    assert all(given_one != own for (given_one, _), (own, _) in zip(swapped, pairs, strict=True))


def test_chance_pairs_similar_lengths() -> None:
    pairs = [("字" * length + chr(0xE000 + length), "") for length in range(1, 81)]
    swapped = chance_pairs(pairs, seed=0)
    assert swapped is not None
    assert max(abs(len(a) - len(b)) for (a, _), (b, _) in zip(swapped, pairs, strict=True)) < CHANCE_GROUP


def test_chance_is_seeded() -> None:
    pairs = [(f"今天{index % 10}", "") for index in range(40)]
    assert chance_pairs(pairs, 1) == chance_pairs(pairs, 1)
    assert chance_pairs(pairs, 1) != chance_pairs(pairs, 2)


@given(
    st.lists(st.sampled_from(["一", "二", "三三", "四四", "五五五", "六"]), min_size=2, max_size=60),
    st.integers(0, 9),
)
def test_chance_avoids_a_clips_own_sentence_if_possible(sentences: list[str], seed: int) -> None:
    swapped = chance_pairs([(sentence, sentence) for sentence in sentences], seed)
    assert swapped is not None
    unavoidable = max(0, 2 * max(Counter(sentences).values()) - len(sentences))
    assert sum(reference == hypothesis for reference, hypothesis in swapped) == unavoidable


@pytest.mark.parametrize("num_common", [5, 12, 30])
def test_chance_avoids_a_clips_own_sentence_from_other_speakers(num_common: int) -> None:
    """All sentences have the same length, so a small group could hold only clips with the same sentence."""
    sentences = ["今天天气"] * num_common + [f"{number:04d}" for number in range(96 - num_common)]
    for seed in range(50):
        swapped = chance_pairs([(sentence, sentence) for sentence in sentences], seed)
        assert swapped is not None
        assert all(reference != hypothesis for reference, hypothesis in swapped)


def test_chance_if_all_clips_have_the_same_sentence() -> None:
    swapped = chance_pairs([("今天", "今天")] * 5, seed=0)
    assert swapped is not None and total_counts(swapped).cer == 0.0


def test_no_chance_without_another_clip() -> None:
    assert chance_pairs([("今天", "今天")], seed=0) is None
    assert chance_pairs([], seed=0) is None
    assert chance_cer([("今天", "今天")]) is chance_cer([]) is None


def test_the_chance_cer_is_the_mean_over_all_other_sentences() -> None:
    # clips of the same length with different sentences: each other clip is equally likely
    sentences = ["今天天气很好", "请把书递给我", "早上吃苹果吗", "他们都说不行", "今天早上很好"]
    read = [f"{sentence[:3]}很好吗" for sentence in sentences]
    errors = [
        edit_counts(given, found).errors
        for own, found in zip(sentences, read, strict=True)
        for given in sentences
        if given != own
    ]
    found = chance_cer(list(zip(sentences, read, strict=True)))
    assert found is not None and found.num_pairings == CHANCE_PAIRINGS
    assert found.cer == pytest.approx(sum(errors) / len(errors) / 6, abs=0.01)


def test_single_pairings_vary_by_points_but_not_their_mean() -> None:
    draw = random.Random(0)
    sentences = ["".join(draw.choices("今天气很好一二三四五", k=6)) for _ in range(33)]
    pairs = [(sentence, sentence[:4] + "很好") for sentence in sentences]
    singles = [total_counts(chance_pairs(pairs, seed) or []).cer for seed in range(1_000, 1_400)]
    found = chance_cer(pairs)
    assert found is not None
    assert max(singles) - min(singles) > 0.05
    assert found.cer == pytest.approx(fmean(singles), abs=2e-3), "other pairings must give the same mean"


def test_large_splits_use_fewer_pairings(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(f"今天{index}", "今天") for index in range(20)]
    monkeypatch.setattr(metrics, "CHANCE_PAIRS", 20 * 50)
    assert (chance_cer(pairs) or metrics.Chance(0, 0)).num_pairings == 50
    monkeypatch.setattr(metrics, "CHANCE_PAIRS", 1)
    assert (chance_cer(pairs) or metrics.Chance(0, 0)).num_pairings == FEWEST_PAIRINGS


def test_metrics_need_neither_torch_nor_mediapipe() -> None:
    heavy = "{'torch', 'mediapipe'}"
    code = f"import sys, model.metrics, model.decoding.result; sys.exit(bool({heavy} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)
