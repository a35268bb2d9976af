"""The n-gram language model, compared with a simple one by the paper's formulas, and its ARPA files."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.decoding.arpa import load_language_model, read_arpa, write_arpa
from model.decoding.kneser_ney import FALLBACK_DISCOUNTS, train
from model.decoding.ngram import END, LN_10, START, UNKNOWN, NgramModel, perplexity
from model.text import END_ID, START_ID, Tokenizer
from shards.errors import ConfigError, TableError

LABELS = st.lists(st.text("ab 中文", min_size=1, max_size=7), min_size=1, max_size=12)


def synthetic_labels(num_labels: int, seed: int = 0) -> list[str]:
    """Returns labels with enough rare and frequent n-grams, also of single characters, to estimate discounts."""
    rng = random.Random(seed)
    words = ["你好", "世界", "唇语", "一二三", "gpu ", *(chr(0x4E00 + number) for number in range(300))]
    weights = [1 / rank**1.3 for rank in range(1, len(words) + 1)]
    return ["".join(rng.choices(words, weights, k=rng.randint(1, 5))) for _ in range(num_labels)]


class Plain:
    """Interpolated modified Kneser-Ney with dictionaries and recursion, as in Chen and Goodman 1998."""

    def __init__(self, labels: list[str], order: int) -> None:
        sentences = [(START, *label, END) for label in labels]
        self.order = min(order, max(map(len, sentences)))
        self.words = {UNKNOWN, *(word for sentence in sentences for word in sentence)} - {START}
        raw: Counter[tuple[str, ...]] = Counter()
        before: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for sentence in sentences:
            for size in range(1, self.order + 1):
                for first in range(len(sentence) - size + 1):
                    raw[sentence[first : first + size]] += 1
                    if first:
                        before[sentence[first : first + size]].add(sentence[first - 1])
        self.counts = {
            gram: raw[gram] if len(gram) == self.order or gram[0] == START else len(before[gram])
            for gram in raw
            if gram != (START,)
        }
        self.discounts = {size: self._discounts(size) for size in range(1, self.order + 1)}
        self.after: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for gram, count in self.counts.items():
            self.after[gram[:-1]].append(count)

    def _discounts(self, size: int) -> tuple[float, ...]:
        of_counts = Counter(count for gram, count in self.counts.items() if len(gram) == size)
        n1, n2, n3, n4 = (of_counts[count] for count in (1, 2, 3, 4))
        if n1 and n2 and n3 and n4:
            y = n1 / (n1 + 2 * n2)
            found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
            if 0 < found[0] <= 1 and 0 < found[1] <= 2 and 0 < found[2] <= 3:
                return (0.0, *found)
        return (0.0, *FALLBACK_DISCOUNTS)

    def probability(self, context: tuple[str, ...], word: str) -> float:
        context = context[max(len(context) - self.order + 1, 0) :]
        return self._interpolated(context, word)

    def _interpolated(self, context: tuple[str, ...], word: str) -> float:
        lower = self._interpolated(context[1:], word) if context else 1 / len(self.words)
        counts = self.after.get(context)
        if not counts:
            return lower
        discounts, total = self.discounts[len(context) + 1], sum(counts)
        left_over = sum(discounts[min(count, 3)] for count in counts) / total
        own = self.counts.get((*context, word), 0)
        return (own - discounts[min(own, 3)]) / total + left_over * lower


def log_probability(model: NgramModel, context: tuple[str, ...], word: str) -> float:
    """Returns the natural logarithm of the probability of `word` after a sentence start with `context`."""
    states_N = np.array([model.start()])
    for before in context[1:]:
        _, states_N = model.tree.step(states_N, np.array([model.ids.get(before, model.ids[UNKNOWN])]))
    log10_N, _ = model.tree.step(states_N, np.array([model.ids.get(word, model.ids[UNKNOWN])]))
    return float(log10_N[0]) * math.log(10)


@given(LABELS, st.integers(1, 5), st.text("ab 中文?", max_size=8))
def test_agrees_with_the_papers_formulas(labels: list[str], order: int, text: str) -> None:
    model, plain = train(labels, order), Plain(labels, order)
    context = (START, *text)
    for word in plain.words:
        # for the plain model, a character that it never saw is the unknown word
        expected = math.log(plain.probability(tuple(c if c != "?" else UNKNOWN for c in context), word))
        assert log_probability(model, context, word) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_agrees_if_discounts_are_estimated(order: int) -> None:
    labels = synthetic_labels(400)
    model, plain = train(labels, order), Plain(labels, order)
    assert plain.discounts[plain.order][1:] != FALLBACK_DISCOUNTS
    for label in synthetic_labels(20, seed=1):
        sentence = (START, *label, END)
        for place in range(1, len(sentence)):
            expected = math.log(plain.probability(sentence[:place], sentence[place]))
            assert log_probability(model, sentence[:place], sentence[place]) == pytest.approx(
                expected, abs=2e-5
            )


@given(LABELS, st.integers(1, 6), st.text("ab 中文?", max_size=9))
def test_probabilities_sum_to_one_in_every_context(labels: list[str], order: int, text: str) -> None:
    model = train(labels, order)
    states_N = np.array([model.start()])
    for character in text:
        _, states_N = model.tree.step(states_N, np.array([model.ids.get(character, model.ids[UNKNOWN])]))
    assert (10.0 ** model.tree.rows(states_N).astype(float)).sum() == pytest.approx(1, abs=1e-5)


@given(LABELS, st.integers(1, 5), st.lists(st.text("ab 中文?", max_size=6), min_size=1, max_size=5))
def test_rows_steps_and_scores_agree(labels: list[str], order: int, texts: list[str]) -> None:
    """Many contexts at once give the same as each alone, and a row the same as its cells."""
    table = Tokenizer.of_units("ab 中文?!")  # two of them are in no label
    model = train(labels, order).of_tokens(table)
    states_N = np.full(len(texts), model.start())
    for row, text in enumerate(texts):
        for token in table.encode(text):
            states_N[row] = model.advance(states_N[row : row + 1], np.array([token]))[0]
    rows_NV = model.log_probs(states_N)
    assert rows_NV.dtype == np.float32 and rows_NV.shape == (len(texts), table.num_tokens)
    for row, state in enumerate(states_N):
        assert np.array_equal(model.log_probs(np.array([state]))[0], rows_NV[row])
        # its cells, from a single step with each word
        log10_V, _ = model._tree.step(np.full(table.num_tokens, state), model._word_V)
        np.testing.assert_allclose(log10_V * LN_10 + model._share_V, rows_NV[row], rtol=1e-5, atol=1e-5)


def test_special_tokens_and_unseen_characters() -> None:
    table = Tokenizer.of_units("abxyz")
    model = train(["ab", "ba", "aab"], 3).of_tokens(table)
    start = np.array([model.start()])
    row_V = model.log_probs(start)[0]
    assert [token for token in range(table.num_tokens) if row_V[token] == -np.inf] == [0, START_ID, 3]
    assert row_V[END_ID] > -np.inf
    x, y, z = table.encode("xyz")
    assert row_V[x] == row_V[y] == row_V[z]
    assert np.exp(row_V.astype(float)).sum() == pytest.approx(1, abs=1e-5)
    state_N = model.advance(start, np.array(table.encode("a")))
    assert state_N != start
    assert model.advance(state_N, np.array([END_ID])) == state_N


def test_the_order_is_limited_by_the_labels() -> None:
    assert train(["ab", "a"], 6).order == 4
    with pytest.raises(ConfigError, match="no text to learn from"):
        train(["", ""], 4)


def test_perplexity_agrees_with_a_loop() -> None:
    labels, texts = synthetic_labels(300), [*synthetic_labels(30, seed=2), "好?好", "一"]
    model, plain = train(labels, 4), Plain(labels, 4)
    logs, num_unknown = [], 0
    for text in texts:
        num_unknown += sum(character not in plain.words for character in text)
        sentence = (START, *(c if c in plain.words else UNKNOWN for c in text), END)
        for place in range(1, len(sentence)):
            if sentence[place] != UNKNOWN:
                logs.append(math.log(plain.probability(sentence[:place], sentence[place])))
    found = perplexity(model, texts)
    assert num_unknown > 1
    assert found.perplexity == pytest.approx(math.exp(-sum(logs) / len(logs)), rel=1e-4)
    assert (found.num_texts, found.num_units, found.num_unknown) == (
        32,
        sum(map(len, texts)),
        num_unknown,
    )
    assert perplexity(model, labels).perplexity < found.perplexity
    assert math.isnan(perplexity(model, []).perplexity)


# --- files ------------------------------------------------------------------------------------------------------


def equal(one: NgramModel, other: NgramModel) -> bool:
    """Returns whether both models are identical in every bit."""
    return one.words == other.words and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for a, b in zip(one.levels(), other.levels(), strict=True)
        for name in ("words_MK", "log10_M", "backoff_log10_M")
    )


@given(labels=LABELS, order=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_a_file_gives_the_same_model(
    tmp_path_factory: pytest.TempPathFactory, labels: list[str], order: int
) -> None:
    file = tmp_path_factory.mktemp("lm") / "lm.arpa"
    model = train(labels, order)
    write_arpa(file, model)
    written = file.read_bytes()
    assert equal(read_arpa(file), model)
    write_arpa(file, train(list(reversed(labels)), order))  # counts do not depend on the order of labels
    assert file.read_bytes() == written
    assert [entry.name for entry in file.parent.iterdir()] == ["lm.arpa"]


# A pruned model of another program: spaces and tabs, no <unk>, a context ("<s> b a") whose shorter one has no weight.
OTHERS = """made by hand

\\data\\
ngram 1=4
ngram 2=3
ngram 3=1

\\1-grams:
-99 <s> -0.5
-0.6 </s>
-0.4 a -0.2
-0.3\tb\t-0.1

\\2-grams:
-0.2 <s> b -0.3
-0.5 b a
-0.1 a b

\\3-grams:
-0.05 <s> b a

\\end\\
"""


def test_a_file_of_another_program(tmp_path: Path) -> None:
    file = tmp_path / "other.arpa"
    file.write_text(OTHERS, "utf-8")
    model = read_arpa(file)

    def log10(context: str, word: str) -> float:
        return log_probability(model, (START, *context), word) / math.log(10)

    assert log10("", "b") == pytest.approx(-0.2)
    assert log10("", "a") == pytest.approx(-0.5 - 0.4)
    assert log10("b", "a") == pytest.approx(-0.05)
    assert log10("b", "b") == pytest.approx(-0.3 - 0.1 - 0.3)
    # the context "b a" has no weight of its own, "a" has
    assert log10("ba", "a") == pytest.approx(-0.2 - 0.4)
    assert log10("ba", "b") == pytest.approx(-0.1)
    assert log10("", "x") < -90


@pytest.mark.parametrize(
    ("damage", "line", "problem"),
    [
        (lambda text: text[: text.index("-0.5 b a")], 16, "the file ends here"),
        (lambda text: text.replace("\\end\\", ""), 23, "the file ends here"),
        (lambda text: text.replace("-0.4 a -0.2", "-0.4"), 11, "n-gram of 1 words"),
        (lambda text: text.replace("-0.4 a", "0.4 a"), 11, "not a log10"),
        (lambda text: text.replace("-0.4 a", "nan a"), 11, "not a log10"),
        (lambda text: text.replace("a -0.2", "a -inf"), 11, "not a log10"),
        (lambda text: text.replace("-0.4 a", "x a"), 11, "not a log10"),
        (lambda text: text.replace("-0.5 b a", "-0.5 b c"), 16, "'c' is not among the 1-grams"),
        (lambda text: text.replace("-0.1 a b", "-0.1 b a"), 17, "already in the file"),
        (lambda text: text.replace("a -0.2", "b -0.2"), 12, "already in the file"),
        (lambda text: text.replace("-0.05 <s> b a", "-0.05 a a b"), 20, "without its last word is missing"),
        (lambda text: text.replace("ngram 2=3", "ngram 2=2"), 17, "expected .*3-grams:"),
        (lambda text: text.replace("ngram 2=3", "ngram 2=4"), 18, "n-gram of 2 words"),
        (lambda text: text.replace("ngram 2=3", "ngram 3=3"), 5, "'ngram 2=COUNT'"),
        (lambda text: text.replace("ngram 2=3", "ngram 2=999999999999"), 8, "too many for a file"),
        (lambda text: text.replace("-0.4 a", "-0.4 " + "a" * 5000), 11, "longer than"),
        (lambda text: text.replace("\\data\\", "data"), 23, "the file ends here"),
        (lambda text: "\n" * 2000 + text, 1001, "not an ARPA file"),
    ],
)
def test_a_damaged_file_is_reported_with_its_line(
    damage: Callable[[str], str], line: int, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "lm.arpa"
    file.write_text(damage(OTHERS), "utf-8")
    with pytest.raises(TableError, match=f"lm.arpa, line {line}: .*{problem}") as caught:
        read_arpa(file)
    assert "pipeline lm" in str(caught.value)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_changed_bytes_give_a_model_or_a_table_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    payload = bytearray(OTHERS.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        first = data.draw(st.integers(0, len(payload)))
        payload[first : first + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=4))
    file = tmp_path_factory.mktemp("lm") / "lm.arpa"
    file.write_bytes(payload)
    try:
        model = read_arpa(file)
    except TableError as error:
        assert "lm.arpa" in str(error)
    else:
        assert np.isfinite(model.tree.rows(np.array([model.start()]))).all()


def test_missing_and_invalid_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="is missing; run `pipeline lm`"):
        read_arpa(tmp_path / "lm.arpa")
    with pytest.raises(TableError, match="cannot be read"):
        read_arpa(tmp_path)
    (tmp_path / "bad.arpa").write_bytes(OTHERS.encode().replace(b"-0.4 a", b"-0.4 \xff"))
    with pytest.raises(TableError, match="line 11: this line is not UTF-8"):
        read_arpa(tmp_path / "bad.arpa")
    (tmp_path / "none.arpa").write_text(OTHERS.replace("</s>", "z"), "utf-8")
    with pytest.raises(TableError, match=r"none\.arpa, line \d+: .*word </s> is missing.*pipeline lm"):
        read_arpa(tmp_path / "none.arpa")
    write_arpa(tmp_path / "lm.arpa", train(["中文"], 2))
    with pytest.raises(TableError, match="none of the 2 characters"):
        load_language_model(tmp_path / "lm.arpa", Tokenizer.of_units("ab"))
    known = load_language_model(tmp_path / "lm.arpa", Tokenizer.of_units("中b"))
    assert known.unseen_V.tolist() == [False] * 5 + [True] or known.unseen_V.sum() == 1
