"""Scores of labels, compared with sums over all paths; which other labels a label is compared with."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from model.decoding.label_scores import FEWEST_OTHERS, LOWEST, LabelScores, other_labels, score_labels
from model.decoding.reader import LipReader
from model.metrics import edit_counts
from model.settings import Head
from model.text import BLANK_ID, SPECIAL_TOKENS, UNKNOWN_ID
from shards.errors import CheckpointError, ConfigError
from shards.samples import read_samples
from shards.settings import LoaderParams, MachineParams
from tests.support.networks import SMALL, reader_of
from tests.support.packed import Packed, pack_clips, toy_clip

FRAMES = 5
LABELS = ("一二", "三", "四三一二四", "口四", "二二二二")
"""口 is not in the vocabulary; the last needs more steps than the clip has."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    clips = [
        (f"clip_{number}", "train", toy_clip("一二三四", number)[: FRAMES + number], label)
        for number, label in enumerate(LABELS)
    ]
    return pack_clips(
        tmp_path_factory.mktemp("packed"), [*clips[:4], (*clips[4][:2], clips[4][2][:5], LABELS[4])]
    )


def scores_of(reader: LipReader, packed: Packed, batch_size: int = 2) -> dict[str, LabelScores]:
    samples = read_samples(packed.samples, "train")
    others = dict.fromkeys(samples["clip_id"].to_pylist(), LABELS)
    found = score_labels(
        reader,
        samples,
        packed.store,
        others,
        batch_size=batch_size,
        loader=LoaderParams(),
        machine=MachineParams(num_workers=0),
    )
    return {scores.clip_id: scores for scores in found}


def by_all_paths(log_probs_SV: np.ndarray, ids: Sequence[int]) -> float:
    """Sums the probability of every path that spells `ids`; UNKNOWN_ID is any unit."""
    paths = log_probs_SV.shape[0]
    wildcard_S1 = np.logaddexp.reduce(log_probs_SV[:, len(SPECIAL_TOKENS) :], axis=1, keepdims=True)
    log_probs_SU = np.hstack([log_probs_SV, wildcard_S1])
    wanted = [log_probs_SV.shape[1] if id_ == UNKNOWN_ID else id_ for id_ in ids]
    total = -math.inf
    for path in itertools.product([BLANK_ID, *set(wanted)], repeat=paths):
        if [token for token, _ in itertools.groupby(path) if token != BLANK_ID] == wanted:
            total = np.logaddexp(total, sum(log_probs_SU[step, token] for step, token in enumerate(path)))
    return float(total)


def test_scores_are_sums_over_all_paths(packed: Packed) -> None:
    reader = reader_of(SMALL, with_lm=False)
    found = scores_of(reader, packed)
    assert found.keys() == {f"clip_{number}" for number in range(5)}
    table = reader.vocabulary.characters
    for number in (0, 1, 4):
        clip_THW = toy_clip("一二三四", number)[: FRAMES + number if number < 4 else 5]
        log_probs_SV = reader.ctc_log_probs(clip_THW)
        assert log_probs_SV is not None
        scores = found[f"clip_{number}"]
        expected = [
            max(by_all_paths(log_probs_SV, table.encode(label)) / len(label), LOWEST) for label in LABELS
        ]
        assert scores.other_scores == pytest.approx(expected, abs=1e-4)
        assert scores.label == LABELS[number] and scores.label_score == pytest.approx(
            expected[number], abs=1e-4
        )
        read = by_all_paths(log_probs_SV, table.encode(scores.reading)) / len(scores.label)
        assert scores.reading_score == pytest.approx(read, abs=1e-4)
        assert scores.counts == edit_counts(scores.label, scores.reading)
    assert found["clip_4"].label_score == LOWEST, "2-2-2-2 needs seven steps"


def test_scores_do_not_depend_on_the_batch(packed: Packed) -> None:
    reader = reader_of(SMALL, with_lm=False)
    one, five = scores_of(reader, packed, 1), scores_of(reader, packed, 5)
    for clip_id, scores in one.items():
        assert five[clip_id].other_scores == pytest.approx(scores.other_scores, abs=1e-4)


def test_an_unknown_unit_speaks_neither_for_nor_against_a_label(packed: Packed) -> None:
    """As a label whose unit is marginalised: the wildcard is at least as likely as each unit in its place."""
    scores = scores_of(reader_of(SMALL, with_lm=False), packed)
    for clip in scores.values():
        assert clip.other_scores[LABELS.index("口四")] > LOWEST / 2


def test_a_model_of_syllables_alone_is_compared_in_syllables(packed: Packed) -> None:
    reader = reader_of(SMALL, with_lm=False, heads=("syllables",))
    scores = scores_of(reader, packed)["clip_0"]
    log_probs_SW = reader.ctc_log_probs(toy_clip("一二三四", 0)[:FRAMES], "syllables")
    assert log_probs_SW is not None
    assert scores.label_score == pytest.approx(
        by_all_paths(log_probs_SW, reader.vocabulary.encode_syllables("一二")) / 2, abs=1e-4
    )
    assert scores.counts == edit_counts("yi er", scores.reading)


def test_a_model_without_ctc_is_refused(packed: Packed) -> None:
    heads: tuple[Head, ...] = ("decoder",)
    with pytest.raises(ConfigError, match=r"the model has no CTC head; set train\.ctc_weight above 0"):
        scores_of(reader_of(SMALL, with_lm=False, heads=heads), packed)


def test_clips_of_another_frame_rate_are_refused(packed: Packed) -> None:
    with pytest.raises(CheckpointError, match="frames/s"):
        scores_of(replace(reader_of(SMALL, with_lm=False), fps=50.0), packed)


def test_a_label_is_compared_with_others_of_about_its_length() -> None:
    labels = [
        "".join(letters)
        for n in range(1, 7)
        for letters in itertools.islice(itertools.product("ab", repeat=n), 9)
    ]
    others = other_labels([*labels, *labels[::-1]], num_others=6)
    assert others.keys() == set(labels)
    for label, compared in others.items():
        assert len(set(compared)) == 6 and label not in compared
        assert all(abs(len(other) - len(label)) <= 2 for other in compared)
    assert other_labels(labels[::-1], num_others=6) == others, "the order of the clips decides nothing"
    few = other_labels(["a", "b", "c", "d", "d"])
    assert {label: sorted(compared) for label, compared in few.items()} == {
        label: [other for other in "abcd" if other != label] for label in "abcd"
    }
    with pytest.raises(ConfigError, match=f"only 3 distinct ones; {FEWEST_OTHERS + 1} are needed"):
        other_labels(["a", "b", "c", "c"])
