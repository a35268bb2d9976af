"""Doubtful labels among simulated scores, of which the exchanged ones are known."""

import numpy as np
import pytest

from model.doubtful_labels import _fit, _fit_of_others, doubt_of


def simulated(
    num_labels: int, share: float, advantage: float, seed: int = 0, num_others: int = 16
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns scores, scores of others and which are exchanged; right labels score `advantage` deviations higher.

    Clips differ in mean and deviation of the scores, as they do in how well they can be read.
    """
    rng = np.random.default_rng(seed)
    mean_N1 = rng.uniform(-9, -3, (num_labels, 1))
    deviation_N1 = rng.uniform(0.3, 1.5, (num_labels, 1))
    scores_NK = mean_N1 + deviation_N1 * rng.standard_normal((num_labels, num_others + 1))
    is_exchanged_N = np.arange(num_labels) < round(share * num_labels)
    score_N = scores_NK[:, 0] + np.where(is_exchanged_N, 0.0, advantage * deviation_N1[:, 0])
    return score_N, scores_NK[:, 1:], is_exchanged_N


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.45])
@pytest.mark.parametrize("num_labels", [400, 5_000])
def test_the_share_is_estimated_and_the_labels_are_found(num_labels: int, share: float) -> None:
    score_N, others_NK, is_exchanged_N = simulated(num_labels, share, advantage=5.0)
    doubt = doubt_of(score_N, others_NK)
    assert doubt.share == pytest.approx(share, abs=3 * (share / num_labels) ** 0.5 + 0.01)
    found = (doubt.is_doubtful_N & is_exchanged_N).sum()
    assert found / is_exchanged_N.sum() >= 0.85
    assert found / doubt.is_doubtful_N.sum() >= 0.85


def test_the_threshold_is_where_a_label_is_as_likely_exchanged_as_right() -> None:
    """Without rounding by clips: densities of two normal distributions, whose crossing is known."""
    share, advantage = 0.3, 3.0
    score_N, others_NK, _ = simulated(40_000, share, advantage, num_others=200)
    doubt = doubt_of(score_N, others_NK)
    threshold = doubt.fit_N[doubt.is_doubtful_N].max()
    crossing = advantage / 2 + np.log(share / (1 - share)) / advantage
    assert threshold == pytest.approx(crossing, abs=0.15)


def test_right_labels_alone_are_hardly_ever_doubtful() -> None:
    score_N, others_NK, _ = simulated(5_000, 0.0, advantage=5.0)
    doubt = doubt_of(score_N, others_NK)
    assert doubt.share < 0.002 and doubt.is_doubtful_N.mean() < 0.002


def test_a_model_that_tells_nothing_marks_nothing() -> None:
    doubt = doubt_of(*simulated(1_000, 0.1, advantage=0.0)[:2])
    assert doubt.share is None and not doubt.is_doubtful_N.any()


def test_equal_scores_give_a_finite_fit() -> None:
    doubt = doubt_of(np.array([-50.0, -1.0]), np.full((2, 4), -50.0))
    assert np.isfinite(doubt.fit_N).all() and doubt.fit_N[0] == 0 < doubt.fit_N[1]


def test_each_other_label_is_compared_with_the_rest() -> None:
    """The fit of a label, with the rest cut out as a table of its own, is the referee."""
    _, others_NK, _ = simulated(300, 0.1, advantage=5.0)
    others_NK[:2] = -50.0  # equal scores
    others_NK[1, 3] = -1.0
    expected = [_fit(others_NK[:, k], np.delete(others_NK, k, axis=1)) for k in range(others_NK.shape[1])]
    np.testing.assert_allclose(_fit_of_others(others_NK), np.transpose(expected), rtol=1e-9, atol=1e-9)
