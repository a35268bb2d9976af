"""Finds clips that show the same video among the fingerprints of many clips.

Each clip has a few anchors: its frames with the most motion. The motion around an anchor is compared with that around
all other anchors, as products of matrices; clips with similar anchors are then compared as a whole. Shapes: F frames
of a fingerprint, M modes, N clips, A anchors, D numbers that describe an anchor.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from shards.files import Progress
from shards.fingerprint import NUM_MODES, least_similarity, similarity

MAX_ANCHORS = 8
"""Maximum for a clip. One anchor that a cut copy keeps is enough to find the copy."""
_AROUND_FRAMES, _STEP_FRAMES = 10, 4
_SEPARATION_FRAMES = 4
SIMILAR_ANCHORS = 0.75
"""Cosine from which two clips are compared as a whole."""
BLOCK_ANCHORS = 4096
"""Anchors that are compared at once with the same number of others: 80 MB of memory."""


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of N clips, one after another: clip n has the frames `start_N[n]` to `start_N[n + 1]`."""

    motion_FM: NDArray[np.int8]
    start_N: NDArray[np.int64]

    @classmethod
    def of(cls, fingerprints: Sequence[NDArray[np.int8]]) -> "Fingerprints":
        none = np.empty((0, NUM_MODES), np.int8)
        return cls(np.concatenate([none, *fingerprints]), np.cumsum([0, *map(len, fingerprints)]))

    def __len__(self) -> int:
        return len(self.start_N) - 1

    def __getitem__(self, clip: int) -> NDArray[np.int8]:
        return self.motion_FM[self.start_N[clip] : self.start_N[clip + 1]]


class Compared(NamedTuple):
    """Two clips, `one` before `other`, that were compared as a whole."""

    one: int
    other: int
    similarity: float
    num_frames: int
    """Frames of the fingerprints that they have in common."""

    @property
    def is_copy(self) -> bool:
        return self.similarity >= least_similarity(self.num_frames)


def find_copies(fingerprints: Fingerprints, on_progress: Progress | None = None) -> list[Compared]:
    """Returns all pairs of clips that show the same video. `on_progress` counts pairs of blocks of anchors."""
    best: dict[tuple[int, int], Compared] = {}
    for pair in compared_clips(fingerprints, on_progress):
        known = best.get(pair[:2])
        if pair.is_copy and (known is None or known.similarity < pair.similarity):
            best[pair[:2]] = pair
    return list(best.values())


def compared_clips(fingerprints: Fingerprints, on_progress: Progress | None = None) -> Iterator[Compared]:
    """Yields the pairs of clips that have similar anchors, once for each lag between the anchors."""
    for one, other, lag in _similar_anchors(fingerprints, on_progress):
        yield Compared(one, other, *similarity(fingerprints[one], fingerprints[other], lag))


def _similar_anchors(
    fingerprints: Fingerprints, on_progress: Progress | None
) -> Iterator[tuple[int, int, int]]:
    """Yields pairs of clips to compare, and the frame of the first clip at which the second clip begins.

    A pair of blocks yields a pair of clips once for each lag.
    """
    clip_A, frame_A = _anchors(fingerprints)
    starts = range(0, len(clip_A), BLOCK_ANCHORS)
    num_done, num_blocks = 0, len(starts) * (len(starts) + 1) // 2
    for first in starts:
        ours = slice(first, first + BLOCK_ANCHORS)
        ours_AD = _described(fingerprints, clip_A[ours], frame_A[ours])
        for second in range(first, len(clip_A), BLOCK_ANCHORS):
            theirs = slice(second, second + BLOCK_ANCHORS)
            theirs_AD = (
                ours_AD if second == first else _described(fingerprints, clip_A[theirs], frame_A[theirs])
            )
            one_P, other_P = np.nonzero(ours_AD @ theirs_AD.T > SIMILAR_ANCHORS)
            one_P, other_P = one_P + first, other_P + second
            later_P = clip_A[one_P] < clip_A[other_P]
            one_P, other_P = one_P[later_P], other_P[later_P]
            lag_P = frame_A[one_P] - frame_A[other_P]
            # several anchors of one pair of clips mostly agree on the lag
            triples_P3 = np.stack([clip_A[one_P], clip_A[other_P], lag_P // 3 * 3 + 1], axis=1)
            yield from np.unique(triples_P3, axis=0).tolist()
            num_done += 1
            if on_progress:
                on_progress(num_done, num_blocks)


def _anchors(fingerprints: Fingerprints) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the clip and the frame in its fingerprint of every anchor."""
    clips, frames = [], []
    for clip in range(len(fingerprints)):
        print_FM = fingerprints[clip]
        if not len(print_FM):
            continue
        energy_F = np.square(print_FM, dtype=np.float32).sum(axis=1)
        padded_F = np.pad(energy_F, _SEPARATION_FRAMES)
        peak_F = energy_F == sliding_window_view(padded_F, 2 * _SEPARATION_FRAMES + 1).max(axis=1)
        inner = slice(_AROUND_FRAMES, len(print_FM) - _AROUND_FRAMES)
        # without a peak, the frame with the most motion is the anchor
        found = (
            np.flatnonzero(peak_F[inner])
            if peak_F[inner].any()
            else np.argmax(energy_F[inner], keepdims=True)
        )
        strongest = found[np.argsort(-energy_F[inner][found], kind="stable")[:MAX_ANCHORS]]
        frames.append(strongest + _AROUND_FRAMES)
        clips.append(np.full(len(strongest), clip))
    return (np.concatenate(clips), np.concatenate(frames)) if clips else (np.empty(0, np.int64),) * 2


def _described(
    fingerprints: Fingerprints, clip_A: NDArray[np.int64], frame_A: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Returns the motion around each anchor, A×D, of length 1."""
    around = np.arange(-_AROUND_FRAMES, _AROUND_FRAMES + 1, _STEP_FRAMES)
    frame_AW = (fingerprints.start_N[clip_A] + frame_A)[:, None] + around
    motion_AD = fingerprints.motion_FM[frame_AW].reshape(len(clip_A), -1).astype(np.float32)
    norm_A1 = np.linalg.norm(motion_AD, axis=1, keepdims=True)
    return np.asarray(motion_AD / np.maximum(norm_A1, 1.0), np.float32)
