"""Helpers for arrays of numpy or torch, by the functions of the Array API standard.

So the same search code runs on the device of the log-probabilities, and without torch for exported models.
Shapes: B clips, M scores, N of them kept.
"""

from typing import Any, TypeAlias

import numpy as np
from array_api_compat import device, is_torch_array

Array: TypeAlias = Any
"""A numpy array, or a torch tensor on any device."""


def largest(scores_BM: Array, num_kept: int) -> tuple[Array, Array]:
    """Returns the `num_kept` highest scores of each clip, highest first, and their places (B, N). Scores have no NaN.

    Of equal scores (homophones have them), the earlier ones are kept and come first, with both libraries.
    """
    if is_torch_array(scores_BM):
        ranked_BM, place_BM = scores_BM.sort(dim=1, descending=True, stable=True)
        return ranked_BM[:, :num_kept], place_BM[:, :num_kept]
    num_left = scores_BM.shape[1] - num_kept
    if num_left and num_kept:  # sorting a part is faster than sorting all
        least_B1 = np.partition(scores_BM, num_left, axis=1)[:, num_left, None]
        above_BM, equal_BM = scores_BM > least_B1, scores_BM == least_B1
        num_equal_B1 = num_kept - above_BM.sum(axis=1, keepdims=True)
        is_kept_BM = above_BM | (equal_BM & (equal_BM.cumsum(axis=1) <= num_equal_B1))
        place_BN = np.nonzero(is_kept_BM)[1].reshape(-1, num_kept)
    else:
        place_BN = np.broadcast_to(np.arange(num_kept), (len(scores_BM), num_kept))
    kept_BN = np.take_along_axis(scores_BM, place_BN, axis=1)
    order_BN = np.argsort(-kept_BN, axis=1, kind="stable")
    return np.take_along_axis(kept_BN, order_BN, axis=1), np.take_along_axis(place_BN, order_BN, axis=1)


def to_host(array: Array) -> np.ndarray:
    return array.cpu().numpy() if is_torch_array(array) else np.asarray(array)


def on_device_of(array: np.ndarray, other: Array, xp: Any) -> Array:
    """Returns `array` as an array of library `xp` on the device of `other`."""
    return xp.asarray(array, device=device(other))
