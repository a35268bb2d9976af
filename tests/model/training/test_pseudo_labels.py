"""Which pseudo labels are kept, what they weigh, and how their errors are counted."""

from pathlib import Path

import jiwer
import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from model.settings import SelfTrainingParams, TrainParams
from model.text import DOUBTFUL
from model.training.pseudo_labels import (
    FEWEST_OF_CLASS,
    LENGTH_CLASSES,
    PseudoLabel,
    PseudoLabels,
    consensus,
    disagreement,
    kept_by_length,
    labels_file,
    read_labels,
    table_of,
    with_doubtful,
    write_labels,
)
from shards.errors import TableError

NUM_CLIPS = LENGTH_CLASSES * FEWEST_OF_CLASS


def kept(confidence_U: np.ndarray, num_frames_U: np.ndarray, share: float) -> np.ndarray:
    return kept_by_length(confidence_U, num_frames_U, np.ones(len(confidence_U), bool), share)


@pytest.mark.parametrize("share", [0.1, 0.35, 0.8, 1.0])
def test_every_length_class_keeps_its_share_even_if_the_model_is_surer_of_short_clips(share: float) -> None:
    num_frames_U = np.random.default_rng(0).permutation(NUM_CLIPS) + 10
    is_kept_U = kept(1 / num_frames_U, num_frames_U, share)
    in_class_U = (num_frames_U - 10) // FEWEST_OF_CLASS
    num_kept = np.bincount(in_class_U[is_kept_U], minlength=LENGTH_CLASSES)
    assert num_kept.tolist() == [round(share * FEWEST_OF_CLASS)] * LENGTH_CLASSES


def test_the_surest_clips_of_a_class_are_kept() -> None:
    confidence_U = np.random.default_rng(1).random(FEWEST_OF_CLASS)
    is_kept_U = kept(confidence_U, np.full(FEWEST_OF_CLASS, 75), 0.25)
    assert sorted(confidence_U[is_kept_U]) == sorted(confidence_U)[-5:]


def test_of_equally_sure_clips_the_first_are_kept() -> None:
    assert np.flatnonzero(kept(np.full(8, 0.5), np.array([9, 8, 7, 6, 5, 4, 3, 2]), 0.5)).tolist() == [
        0,
        1,
        2,
        3,
    ]


def test_clips_that_are_not_fit_are_not_kept_and_do_not_enlarge_the_share_of_others() -> None:
    """Half of the clips is fit; the share counts all: a doubtful class stays small."""
    is_fit_U = np.arange(20) % 2 == 0
    confidence_U = np.linspace(0, 1, 20)
    for share, expected in ((0.25, [10, 12, 14, 16, 18]), (0.9, list(range(0, 20, 2)))):
        is_kept_U = kept_by_length(confidence_U, np.full(20, 75), is_fit_U, share)
        assert np.flatnonzero(is_kept_U).tolist() == expected


@pytest.mark.parametrize("num_clips", [0, 1, 2])
def test_few_clips_are_one_class(num_clips: int) -> None:
    assert kept(np.ones(num_clips), np.ones(num_clips), 0.5).sum() == num_clips - num_clips // 2


# -- doubtful characters -----------------------------------------------------------------------------------


def test_unsure_characters_and_those_that_a_view_reads_differently_are_doubtful() -> None:
    confidences = [0.9, 0.2, 0.9, 0.9]
    assert with_doubtful("一二三四", confidences, [], 0.5) == f"一{DOUBTFUL}三四"
    assert with_doubtful("一二三四", confidences, ["一二四", "一二三四"], 0.5) == f"一{DOUBTFUL * 2}四"
    assert with_doubtful("一二三四", [], ["一二三"], 0.5) == f"一二三{DOUBTFUL}", "without confidences"


def test_the_figures_count_doubtful_and_wrong_characters() -> None:
    labels = [
        PseudoLabel(
            "a", "一二三", -0.1, 0.0, f"一{DOUBTFUL}三"
        ),  # read 一二三, said 一四三: what is learnt is right
        PseudoLabel("b", "一二三四", -0.1, 0.0, f"一二{DOUBTFUL * 2}"),  # 二 is wrong
        PseudoLabel("c", "一", -0.1, 0.0, DOUBTFUL),  # nothing is learnt, so it is not kept
    ]
    params = SelfTrainingParams(start_epoch=0, min_character_confidence=0.5)
    table = table_of(labels, np.full(3, 75), np.ones(3, bool), params, 1.0)
    assert table["kept"].to_pylist() == [True, True, False]
    samples = pa.table(
        {
            "clip_id": ["a", "b", "c"],
            "label": ["一四三", "一三三四", "一"],
            "is_labelled": [False] * 3,
        }
    )
    found = PseudoLabels.of(table, samples, params)
    assert found.texts == {0: f"一{DOUBTFUL}三", 1: f"一二{DOUBTFUL * 2}"}
    assert found.figures["pseudo_doubtful"] == pytest.approx(3 / 7)
    assert found.figures["pseudo_wrong_learnt"] == pytest.approx(1 / 4)


# -- the schedule ------------------------------------------------------------------------------------------


def test_the_kept_share_grows_linearly_over_the_labellings() -> None:
    params = SelfTrainingParams(start_epoch=4, every_epochs=3, keep=0.2, keep_end=0.8)
    labellings = [epoch for epoch in range(14) if params.round_of(epoch) > params.round_of(epoch - 1)]
    assert labellings == [4, 7, 10, 13]
    shares = [params.kept_share(epoch, 14) for epoch in labellings]
    np.testing.assert_allclose(shares, [0.2, 0.4, 0.6, 0.8])
    assert [params.round_of(epoch) for epoch in (0, 3, 4, 6, 7)] == [-1, -1, 0, 0, 1]


def test_a_single_labelling_keeps_the_first_share() -> None:
    assert SelfTrainingParams(start_epoch=2, every_epochs=5, keep=0.4).kept_share(2, 4) == 0.4


def test_without_a_start_there_is_no_labelling() -> None:
    assert SelfTrainingParams().round_of(1000) == -1
    assert "self_training" not in TrainParams().recorded()


def test_a_start_after_the_last_epoch_is_rejected() -> None:
    with pytest.raises(ValidationError, match="start_epoch 10 must be below num_epochs 10"):
        TrainParams(num_epochs=10, self_training=SelfTrainingParams(start_epoch=10))


# -- views -------------------------------------------------------------------------------------------------


def test_disagreement_is_the_largest_cer_between_the_text_and_another_view() -> None:
    assert disagreement("abcd", []) == 0
    assert disagreement("abcd", ["abcd", "abxd", "ab"]) == 0.5
    assert disagreement("abcd", ["abxd"]) == jiwer.cer("abcd", "abxd")
    assert disagreement("", ["a"]) == 1 and disagreement("a", [""]) == 1


def test_the_consensus_is_the_reading_nearest_to_all_others() -> None:
    assert consensus(["bin blue", "bin blue at", "lay blue at", "bin blue at f"]) == 1
    assert consensus(["abc", "xbc"]) == 0  # of two views, the clip as it is
    assert consensus(["abc"]) == 0


# -- the table ---------------------------------------------------------------------------------------------

READ = [
    PseudoLabel("sure", "bin blue", -0.1, 0.0),
    PseudoLabel("wrong", "lay bleu at", -0.2, 0.1),
    PseudoLabel("unlike", "set green", -0.01, 0.3),
    PseudoLabel("doubtful", "place red", -2.0, 0.0),
    PseudoLabel("empty", "", -0.001, 0.0),
    PseudoLabel("too long", "bin white", -0.3, 0.0),
]
HIDDEN = ["bin blue", "lay blue at", "set green", "place red", "", "bin white"]
PARAMS = SelfTrainingParams(start_epoch=0, min_confidence=0.5, max_disagreement=0.2, weight=0.5)


def labelled(params: SelfTrainingParams = PARAMS, share: float = 1.0) -> pa.Table:
    is_spellable_U = np.array([label.clip_id != "too long" for label in READ])
    return table_of(READ, np.full(len(READ), 75), is_spellable_U, params, share)


def samples() -> pa.Table:
    """Two labelled clips, the unlabelled ones in another order, and one that was not read."""
    return pa.table(
        {
            "clip_id": ["a", "sure", *(label.clip_id for label in reversed(READ)), "unread"],
            "label": ["x", "y", *reversed(HIDDEN), "z"],
            "is_labelled": [True, True, *[False] * 7],
        }
    )


def test_only_sure_spellable_readings_on_which_the_views_agree_are_kept() -> None:
    table = labelled()
    assert table.filter(table["kept"])["clip_id"].to_pylist() == ["sure", "wrong"]
    np.testing.assert_allclose(table["confidence"].to_numpy(), np.exp([label.score for label in READ]))


def test_labels_are_joined_by_clip_and_never_replace_a_given_label() -> None:
    labels = PseudoLabels.of(labelled(), samples(), PARAMS)
    assert labels.texts == {7: "bin blue", 6: "lay bleu at"}  # the labelled clip "sure" is row 1
    assert labels.weights == {7: 0.5, 6: 0.5}


def test_the_weight_may_be_multiplied_by_the_confidence() -> None:
    weighed = PARAMS.model_copy(update={"weigh_by_confidence": True})
    labels = PseudoLabels.of(labelled(), samples(), weighed)
    np.testing.assert_allclose([labels.weights[7], labels.weights[6]], 0.5 * np.exp([-0.1, -0.2]))


def test_the_errors_are_those_that_jiwer_counts_in_the_clips_with_a_hidden_label() -> None:
    figures = PseudoLabels.of(labelled(), samples(), PARAMS).figures
    known = [(hidden, label.text) for hidden, label in zip(HIDDEN, READ, strict=True) if hidden]
    assert figures["pseudo_cer"] == pytest.approx(jiwer.cer(*map(list, zip(*known, strict=True))))
    assert figures["pseudo_cer_kept"] == pytest.approx(
        jiwer.cer(["bin blue", "lay blue at"], ["bin blue", "lay bleu at"])
    )
    assert (figures["pseudo_labels"], figures["pseudo_kept"]) == (6, 2 / 6)


def test_without_hidden_labels_no_errors_are_counted() -> None:
    bare = samples().set_column(1, "label", pa.array([""] * 9))
    labels = PseudoLabels.of(labelled(), bare, PARAMS)
    assert not {"pseudo_cer", "pseudo_cer_kept"} & labels.figures.keys()
    assert "CER" not in str(labels) and "6 clips read, 33.3 % kept" in str(labels)


def test_a_file_holds_the_labels_exactly_and_a_changed_one_is_noticed(tmp_path: Path) -> None:
    path = labels_file(tmp_path, 12)
    assert path == tmp_path / "pseudo_labels" / "epoch_0012.parquet"
    digest = write_labels(path, labelled())
    assert read_labels(path, digest).to_pylist() == labelled().to_pylist()
    assert write_labels(path, labelled()) == digest
    assert write_labels(path, labelled(share=0.2)) != digest
    with pytest.raises(TableError, match=r"epoch_0012\.parquet has changed"):
        read_labels(path, digest)
    path.unlink()
    with pytest.raises(TableError, match="is missing"):
        read_labels(path, digest)
