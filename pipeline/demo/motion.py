"""Converts Mandarin text to visemes, and visemes to mouth parameters, head motion and light for every frame of a clip.

A viseme is the visible part of a syllable, which is split like pinyin (initial, medial, nucleus, coda); each part is
mapped to a mouth shape. Sounds that lips do not distinguish share a shape: b p m; d t n l; g k h; j q x; zh ch sh r; z
c s. Tones are not drawn. So homophenes (吃 chi, 十 shi) have equal sequences, and the drawing cannot depend on the
character.

Legend: S visemes of a sequence, K keys (visemes and rests), T video frames, P mouth parameters (fields of `MouthShape`,
in that order).
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pypinyin import Style, lazy_pinyin

FPS: Final = 30
# One beat is about one syllable: with the lengths below 4.1 syllables per second; Chinese-LiPS has 4.5.
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
class MouthShape:
    """A target shape of the mouth, each value relative to the speaker's own range.

    open      0..1   gap between the lips, 1 = widest a
    width    -1..1   corners pulled in (negative) or apart
    round     0..1   lips rounded and pushed forward
    press     0..1   lips pressed together
    tuck      0..1   lower lip under the upper teeth
    teeth     0..1   how close the two rows of teeth are
    tongue    0..1   how high and far forward the tongue is
    """

    open: float = 0.0
    width: float = 0.0
    round: float = 0.0
    press: float = 0.0
    tuck: float = 0.0
    teeth: float = 0.0
    tongue: float = 0.0


@dataclass(frozen=True, slots=True)
class Viseme:
    """One mouth target in time: `shape` is a key of SHAPES; the `beats` of a syllable add up to about one."""

    shape: str
    beats: float


# Targets follow the articulation of standard Mandarin (Duanmu, The Phonology of Standard Chinese, 2007,
# ch. 2), slightly exaggerated, so that a 32-pixel mouth shows them. Upper case: consonants and glides. Lower
# case: vowels and codas.
SHAPES: Final[dict[str, MouthShape]] = {
    "rest": MouthShape(open=0.0),
    "B": MouthShape(press=1.0),
    "F": MouthShape(open=0.16, width=0.1, tuck=1.0, teeth=0.2),
    "D": MouthShape(open=0.34, width=0.15, teeth=0.1, tongue=1.0),
    "G": MouthShape(open=0.34, tongue=0.25),
    "J": MouthShape(open=0.24, width=0.65, teeth=1.0),
    "R": MouthShape(open=0.32, width=-0.35, round=0.35, teeth=0.95),
    "Z": MouthShape(open=0.22, width=0.35, teeth=1.0),
    "Y": MouthShape(open=0.10, width=0.75, teeth=0.7),
    "W": MouthShape(open=0.08, width=-0.2, round=1.0),
    "YU": MouthShape(open=0.05, width=-0.1, round=0.75, press=0.2),
    "a": MouthShape(open=1.0, width=0.1, tongue=0.2),
    "o": MouthShape(open=0.58, width=-0.2, round=0.7, tongue=0.1),
    "e": MouthShape(open=0.45, width=0.2, tongue=0.25),
    "eh": MouthShape(open=0.55, width=0.6, teeth=0.1, tongue=0.5),
    "i": MouthShape(open=0.26, width=1.0, teeth=0.75, tongue=0.5),
    "u": MouthShape(open=0.26, width=-0.3, round=1.0),
    "v": MouthShape(open=0.08, width=-0.1, round=0.8),  # ü: a flat slit where u is a hole
    "retroflex": MouthShape(open=0.32, width=-0.3, round=0.3, teeth=0.95),  # the vowel of zhi, chi, shi, ri
    "apical": MouthShape(open=0.20, width=0.4, teeth=1.0),  # the vowel of zi, ci, si
    "er": MouthShape(open=0.5, round=0.15, tongue=0.8),
    "-n": MouthShape(open=0.24, width=0.2, teeth=0.3, tongue=0.9),
    "-ng": MouthShape(open=0.40, tongue=0.0),
    "-i": MouthShape(open=0.24, width=0.85, teeth=0.6, tongue=0.5),
    "-u": MouthShape(open=0.22, width=-0.25, round=0.9),
}

# Dominance of a shape over its neighbours (Cohen & Massaro 1993). Lips must meet for b and touch the teeth for
# f, so these dominate; velars are hardly visible and have little effect.
DOMINANCE: Final[dict[str, float]] = {
    **dict.fromkeys(SHAPES, 1.0),
    "B": 6.0, "F": 5.0, "W": 2.0, "YU": 2.0, "Y": 1.5, "R": 1.5, "J": 1.4, "Z": 1.3,
    "u": 1.6, "v": 1.6, "G": 0.35, "-ng": 0.5, "-n": 0.6,
}  # fmt: skip

_INITIALS: Final[dict[str, str]] = {
    **dict.fromkeys(("b", "p", "m"), "B"), "f": "F",
    **dict.fromkeys(("d", "t", "n", "l"), "D"), **dict.fromkeys(("g", "k", "h"), "G"),
    **dict.fromkeys(("j", "q", "x"), "J"), **dict.fromkeys(("zh", "ch", "sh", "r"), "R"),
    **dict.fromkeys(("z", "c", "s"), "Z"),
}  # fmt: skip

# Finals in pypinyin's strict spelling, as (medial, nucleus, coda). bo, po, mo, fo are spelled o, without the u of duo.
_FINALS: Final[dict[str, tuple[str, ...]]] = {
    "a": ("a",), "o": ("o",), "e": ("e",), "ê": ("eh",), "er": ("er",), "i": ("i",), "u": ("u",), "v": ("v",),
    "ai": ("a", "-i"), "ei": ("e", "-i"), "ao": ("a", "-u"), "ou": ("o", "-u"),
    "an": ("a", "-n"), "en": ("e", "-n"), "ang": ("a", "-ng"), "eng": ("e", "-ng"), "ong": ("u", "-ng"),
    "ia": ("i", "a"), "io": ("i", "o"), "ie": ("i", "eh"), "iao": ("i", "a", "-u"), "iou": ("i", "o", "-u"),
    "ian": ("i", "eh", "-n"), "in": ("i", "-n"), "iang": ("i", "a", "-ng"), "ing": ("i", "-ng"),
    "iong": ("v", "-ng"),
    "ua": ("u", "a"), "uo": ("u", "o"), "uai": ("u", "a", "-i"), "uei": ("u", "e", "-i"),
    "uan": ("u", "a", "-n"),
    "uen": ("u", "e", "-n"), "uang": ("u", "a", "-ng"), "ueng": ("u", "e", "-ng"),
    "ve": ("v", "eh"), "van": ("v", "eh", "-n"), "vn": ("v", "-n"),
    "m": ("B",), "n": ("-n",), "ng": ("-ng",), "hm": ("B",), "hng": ("-ng",),
}  # fmt: skip

# Without an initial, a high vowel starts with its glide: 一 yi, 五 wu, 鱼 yu; so 五五 still shows two syllables.
_GLIDES: Final[dict[str, str]] = {"i": "Y", "u": "W", "v": "YU"}

# Shares of a syllable's time before scaling: consonants are short, a vowel that ends its syllable is long.
_ONSET_SHARE: Final = 0.40
_MEDIAL_SHARE: Final = 0.34
_NUCLEUS_SHARE: Final = 0.62
_CODA_SHARE: Final = 0.42


def _parts(initial: str, final: str) -> tuple[str, ...]:
    if final == "i" and _INITIALS.get(initial) == "R":
        return ("R", "retroflex")
    if final == "i" and _INITIALS.get(initial) == "Z":
        return ("Z", "apical")
    vowels = _FINALS[final]
    if initial:
        return (_INITIALS[initial], *vowels)
    if vowels[0] in _GLIDES:
        glide = _GLIDES[vowels[0]]
        # ya is glide + a, but yi is glide + i: the only vowel of a syllable must not disappear.
        return (glide, *(vowels[1:] if len(vowels) > 1 and not vowels[1].startswith("-") else vowels))
    return vowels


def _syllable(initial: str, final: str) -> tuple[Viseme, ...]:
    parts = _parts(initial, final)
    nucleus = max(i for i, part in enumerate(parts) if not part.startswith("-") or i == 0)
    shares = [
        _CODA_SHARE if i > nucleus
        else _NUCLEUS_SHARE if i == nucleus
        else _ONSET_SHARE if i == 0
        else _MEDIAL_SHARE
        for i in range(len(parts))
    ]  # fmt: skip
    # Square root: longer syllables take more time, but less than proportionally (Mandarin is syllable-timed).
    scale = sum(shares) ** -0.5
    return tuple(Viseme(part, round(share * scale, 4)) for part, share in zip(parts, shares, strict=True))


def _is_han(character: str) -> bool:
    return "\u4e00" <= character <= "\u9fff"


@lru_cache(maxsize=4096)
def viseme_sequence(text: str) -> tuple[Viseme, ...]:
    """Returns the visemes of a text of Han characters, in order; ignores spaces and punctuation.

    Raises ValueError if the text has a letter, a digit or a character without a known reading.
    """
    kept = "".join(c for c in text if c.isalnum())
    for character in kept:
        if not _is_han(character):
            raise ValueError(f"no viseme for {character!r} in {text!r}: write it in Han characters")
    # strict: the true final (you → iou), which the lips follow, and no y or w as initial.
    initials = lazy_pinyin(kept, style=Style.INITIALS, strict=True)
    finals = lazy_pinyin(kept, style=Style.FINALS, strict=True)
    sequence: list[Viseme] = []
    for character, initial, final in zip(kept, initials, finals, strict=True):
        if final not in _FINALS or (initial and initial not in _INITIALS):
            raise ValueError(f"no pinyin reading for {character!r} in {text!r}")
        sequence.extend(_syllable(initial, final))
    return tuple(sequence)


def shape_values(shape: str) -> tuple[float, ...]:
    """Returns the parameters of a shape as a row of length P."""
    return astuple(SHAPES[shape])


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
