"""Copies of drawn clips are found however they were encoded; other clips, stills and short clips are not."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from shards import copies
from shards.codec import decode_clip, encode_clip
from shards.copies import Fingerprints, find_copies
from shards.fingerprint import NUM_MODES, fingerprint_of, similarity
from shards.settings import PackParams
from tests.support.drawn_mouths import speaking

Clip = NDArray[np.uint8]
OTHERS = [fingerprint_of(speaking(seed), 25.0) for seed in range(100, 130)]


def encoded(clip: Clip, **params: object) -> Clip:
    options = PackParams.model_validate(params)
    return decode_clip(encode_clip(clip, options), options.codec, len(clip))


def in_other_light(clip: Clip) -> Clip:
    return np.clip(0.7 * clip.astype(float) + 50, 0, 255).astype(np.uint8)


def flickering(clip: Clip) -> Clip:
    gain = 0.8 + 0.2 * np.sin(np.arange(len(clip)))[:, None, None]
    return np.clip(gain * clip, 0, 255).astype(np.uint8)


def noisy(clip: Clip) -> Clip:
    noise = np.random.default_rng(0).normal(0, 8, clip.shape)
    return np.clip(clip + noise, 0, 255).astype(np.uint8)


def with_black_frames(clip: Clip) -> Clip:
    changed = clip.copy()
    changed[[20, 50]] = 0
    return changed


COPIES: dict[str, tuple[Callable[[], Clip], float]] = {
    "H.264 of low quality": (lambda: encoded(speaking(1), codec="h264", h264_crf=38), 25.0),
    "JPEG of low quality": (lambda: encoded(speaking(1), codec="jpeg", jpeg_quality=50), 25.0),
    "other light": (lambda: in_other_light(speaking(1)), 25.0),
    "flickering light": (lambda: flickering(speaking(1)), 25.0),
    "noise": (lambda: noisy(speaking(1)), 25.0),
    "black frames": (lambda: with_black_frames(speaking(1)), 25.0),
    "crops of another size": (lambda: speaking(1, size_px=64), 25.0),
    "a crop 3 px lower and to the right": (lambda: speaking(1, shift_px=3), 25.0),
    "part of a frame later": (lambda: speaking(1, start_s=0.02), 25.0),
    "cut at both ends": (lambda: speaking(1, seconds=2.2, start_s=0.4), 25.0),
    "30 frames a second": (lambda: speaking(1, fps=30), 30.0),
    "50 frames a second": (lambda: speaking(1, fps=50), 50.0),
    "a source of 15 frames a second": (lambda: speaking(1, fps=15)[np.arange(75) * 15 // 25], 25.0),
    "part of a long video": (lambda: speaking(1, seconds=12.0), 25.0),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_found_and_nothing_else(kind: str) -> None:
    made, fps = COPIES[kind]
    fingerprints = [fingerprint_of(speaking(1), 25.0), *OTHERS, fingerprint_of(made(), fps)]
    (found,) = find_copies(Fingerprints.of(fingerprints))
    assert (found.one, found.other) == (0, 31)
    assert found.similarity > 0.9


def test_sentences_of_the_same_words_are_different_videos() -> None:
    """One speaker, one camera, half of the words differ."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, 8, (25, 18))
    words[1:] = words[0]
    for number in range(1, 25):
        changed = rng.choice(18, 9, replace=False)
        words[number, changed] = rng.integers(8, 200, 9)
    clips = [fingerprint_of(noisy(speaking(0, words=shapes)), 25.0) for shapes in words]
    assert find_copies(Fingerprints.of(clips)) == []


def test_still_pictures_have_no_fingerprint() -> None:
    """Not even with noise, changing light or codecs, so that they are not copies of each other."""
    for seed in range(3):
        still = np.repeat(speaking(seed, seconds=0.04), 75, axis=0)
        coded = encoded(noisy(still), codec="h264", h264_crf=30)
        for clip in (still, noisy(still), flickering(still), with_black_frames(still), coded, still * 0):
            assert fingerprint_of(clip, 25.0).shape == (0, NUM_MODES)


@pytest.mark.parametrize("num_frames", [1, 2, 12, 13, 32])
def test_short_clips_have_no_fingerprint(num_frames: int) -> None:
    assert len(fingerprint_of(speaking(1)[:num_frames], 25.0)) == 0
    assert len(fingerprint_of(speaking(1)[:33], 25.0)) == 21
    assert len(fingerprint_of(speaking(1)[:1], 1.0)) == 0


def test_clips_with_less_than_half_in_common_are_not_compared() -> None:
    first, second = (fingerprint_of(speaking(1, start_s=start_s), 25.0) for start_s in (0.0, 1.6))
    assert similarity(first[40:], second[:23], 0)[0] > 0.99
    assert similarity(first, second, 40)[0] == 0


def test_short_copies_are_found() -> None:
    """The shortest clips that have a fingerprint, and two seconds of a long one."""
    shortest = [fingerprint_of(clip[30:63], 25.0) for clip in (speaking(1), noisy(speaking(1)))]
    parts = [fingerprint_of(speaking(2, seconds=8), 25.0), fingerprint_of(speaking(2)[20:70], 25.0)]
    found = find_copies(Fingerprints.of([*OTHERS, *shortest, *parts]))
    assert [(pair.one, pair.other) for pair in found] == [(30, 31), (32, 33)]


def test_the_size_of_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [*OTHERS, *(fingerprint_of(noisy(speaking(seed)), 25.0) for seed in (100, 101, 129))]
    expected = {(pair.one, pair.other) for pair in find_copies(Fingerprints.of(clips))}
    assert expected == {(0, 30), (1, 31), (29, 32)}
    progress: list[tuple[int, int]] = []
    monkeypatch.setattr(copies, "BLOCK_ANCHORS", 40)
    pairs = find_copies(Fingerprints.of(clips), lambda *done: progress.append(done))
    assert {(pair.one, pair.other) for pair in pairs} == expected
    assert progress[-1][0] == progress[-1][1] == len(progress) > 3


def test_no_clips_have_no_copies() -> None:
    empty = np.empty((0, NUM_MODES), np.int8)
    assert find_copies(Fingerprints.of([])) == find_copies(Fingerprints.of([empty, empty])) == []
