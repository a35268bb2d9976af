"""Turns a viseme sequence into mouth parameters, head motion and light for every frame of a clip.

Legend: S visemes of a sequence, K keys (visemes and rests), T video frames, P mouth parameters (fields of
`MouthShape`, in that order).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.visemes import DOMINANCE, Viseme, shape_values

FPS: Final = 30
# One beat is about one syllable: with the lengths in visemes.py 4.1 syllables per second; Chinese-LiPS has 4.5.
BEAT_S: Final = 0.21
SPEECH_LEAD_S: Final = 0.24
SPEECH_TAIL_S: Final = 0.26
_REST_SPREAD_S: Final = 0.1  # lead and tail are up to this much longer

_TIMING_SPREAD: Final = 0.08  # standard deviation of a viseme's log duration
_EFFORT_SPREAD: Final = 0.05  # standard deviation of a viseme's relative size
# How far a viseme extends into its neighbours, as a share of its duration.
_REACH: Final = 0.62
_REST_KEY_S: Final = 0.06  # interval of the keys that keep the mouth closed before and after speech
_OPEN: Final = 0  # index of MouthShape.open

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ClipMotion:
    """The motion in one clip, one row per frame.

    mouth    (T, P) mouth parameters
    shift    (T, 2) head shift, pixels of the 640×360 frame
    roll     (T,) head roll, radians
    zoom     (T,) head size relative to the speaker's
    squash   (T,) height over width relative to the speaker's: a nod foreshortens the face
    light    (T,) gain of the light, about 1
    """

    mouth: Array
    shift: Array
    roll: Array
    zoom: Array
    squash: Array
    light: Array


def _mouth(visemes: Sequence[Viseme], speed: float, effort: float, rng: np.random.Generator) -> Array:
    """Blends the targets by overlapping dominance, shape (T, P).

    Cohen & Massaro 1993, Modeling coarticulation in synthetic visual speech, with Gaussian fall-off.
    """
    lead_s, tail_s = np.array([SPEECH_LEAD_S, SPEECH_TAIL_S]) + rng.uniform(0.0, _REST_SPREAD_S, 2)
    spoken_S = np.array([v.beats for v in visemes]) * BEAT_S / speed
    spoken_S = spoken_S * np.exp(rng.normal(0.0, _TIMING_SPREAD, len(visemes)))
    targets_SP = np.array([shape_values(v.shape) for v in visemes])
    targets_SP = targets_SP * (1 + rng.normal(0.0, _EFFORT_SPREAD, (len(visemes), 1)))
    targets_SP[:, _OPEN] *= effort
    ends_S = lead_s + np.cumsum(spoken_S)
    end_s = float(ends_S[-1])
    before = np.arange(-_REST_KEY_S, lead_s - 0.75 * _REST_KEY_S, _REST_KEY_S)
    after = np.arange(end_s + 1.5 * _REST_KEY_S, end_s + tail_s + 2 * _REST_KEY_S, _REST_KEY_S)
    rests = len(before), len(after)

    centres_K = np.concatenate([before, ends_S - spoken_S / 2, after])
    lengths_K = np.pad(spoken_S, rests, constant_values=_REST_KEY_S)
    rest = shape_values("rest")
    targets_KP = np.concatenate([np.tile(rest, (rests[0], 1)), targets_SP, np.tile(rest, (rests[1], 1))])
    dominance_S = np.array([DOMINANCE[v.shape] for v in visemes])
    dominance_K = np.pad(dominance_S, rests, constant_values=DOMINANCE["rest"])

    time_T = np.arange(round((end_s + tail_s) * FPS)) / FPS
    distance_TK = np.abs(time_T[:, None] - centres_K) / (lengths_K * _REACH)
    weights_TK = dominance_K * np.exp(-(distance_TK**2)) + 1e-12
    return (weights_TK @ targets_KP) / weights_TK.sum(axis=1, keepdims=True)


def _sway(num_frames: int, periods_s: tuple[float, ...], rng: np.random.Generator) -> Array:
    """Returns a slow, smooth curve of unit scale: sines of the given periods, each varied by up to a fifth."""
    time_T = np.arange(num_frames) / FPS
    curve_T = np.zeros(num_frames)
    for period_s in periods_s:
        curve_T += np.sin(2 * np.pi * (time_T / (period_s * rng.uniform(0.8, 1.2)) + rng.uniform()))
    return curve_T / len(periods_s) ** 0.5


def clip_motion(
    visemes: Sequence[Viseme], speed: float, effort: float, rng: np.random.Generator
) -> ClipMotion:
    """Returns the motion of one clip, which depends only on the arguments; `speed` and `effort` are factors about 1.

    Mouth and head use separate random streams, so the motion of the head contains nothing about the text.
    """
    mouth_rng, head_rng = rng.spawn(2)
    mouth_TP = _mouth(visemes, speed, effort, mouth_rng)
    num_frames = len(mouth_TP)
    sway_x = _sway(num_frames, (4.1, 2.3), head_rng) * 5.0
    sway_y = _sway(num_frames, (3.3, 1.4), head_rng) * 3.5
    place = head_rng.normal(0.0, 8.0, 2).clip(-16, 16)
    tilt = head_rng.normal(0.0, 0.03)
    lamp = head_rng.uniform(0.92, 1.08)
    return ClipMotion(
        mouth=mouth_TP,
        shift=np.stack([sway_x, sway_y], axis=1) + place,
        roll=_sway(num_frames, (3.7, 1.9), head_rng) * 0.022 + tilt,
        zoom=1 + _sway(num_frames, (5.0,), head_rng) * 0.012,
        squash=1 + _sway(num_frames, (1.7, 3.1), head_rng) * 0.012,
        light=lamp * (1 + _sway(num_frames, (4.0, 1.1), head_rng) * 0.02),
    )
