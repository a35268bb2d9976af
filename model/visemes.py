"""Visemes of Mandarin syllables: what the lips show. Imports neither torch nor mediapipe.

A viseme is a class of sounds that look the same. The classes of initials follow the place of articulation, those of
finals the shape of the mouth, after the static visemes of Wang Zhiming and Cai Lianhong 2002 ("Study of Chinese
viseme", Applied Acoustics 21(3), 29-34, made for MPEG-4 face animation): an initial, then the medial, then the
main vowel with its ending. Their 28 classes also separate initials before rounded vowels from those before others; here
the next viseme shows this. Tones are not visible. Real lips show less: the tongue of d, g and zh is rarely visible.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from pypinyin.contrib.tone_convert import to_finals, to_initials

from model.pinyin import syllables_of
from model.text import is_han

LookAlikeClass = tuple[str, ...]
"""The visemes of a syllable in order: syllables with the same visemes look alike."""

_INITIALS = (
    ("b", "b p m"),  # lips closed
    ("f", "f"),  # lower lip at the teeth
    ("d", "d t n l"),  # tip of the tongue behind the teeth
    ("g", "g k h"),  # back of the tongue: hardly visible
    ("j", "j q x"),  # lips spread
    ("zh", "zh ch sh r"),  # lips pushed forward
    ("z", "z c s"),  # teeth close together
)
_FINALS = (
    ("a", "a ang"),
    ("ai", "ai an"),
    ("ao", "ao"),
    ("o", "o"),
    ("ou", "ou"),
    ("e", "e ê"),
    ("ei", "ei en eng"),
    ("er", "er"),
    ("i", "i"),
    ("i a", "ia iang"),
    ("i ai", "ian"),
    ("i ao", "iao"),
    ("i e", "ie"),
    ("i ei", "in ing"),
    ("i o", "io"),
    ("i ou", "iou"),
    ("u", "u ong"),
    ("u a", "ua uang"),
    ("u ai", "uai uan"),
    ("u ei", "uei uen ueng"),
    ("u o", "uo"),
    ("v", "v iong"),
    ("v ai", "van"),
    ("v e", "ve"),
    ("v ei", "vn"),
)

VISEME_OF_INITIAL = {initial: viseme for viseme, initials in _INITIALS for initial in initials.split()}
VISEMES_OF_FINAL = {final: tuple(visemes.split()) for visemes, finals in _FINALS for final in finals.split()}


@lru_cache(1 << 13)
def visemes_of(syllable: str) -> LookAlikeClass | None:
    """Returns the one to three visemes of a toneless pinyin syllable (`lü` as `lv`).

    Returns None if it is not a pinyin syllable (gpu, 7), or is a hummed one without a vowel (m, ng).
    """
    initial = to_initials(syllable, strict=True)
    # 哟: pypinyin returns its final without the glide
    final = "io" if syllable == "yo" else to_finals(syllable, strict=True, v_to_u=False)
    if final not in VISEMES_OF_FINAL or (initial and initial not in VISEME_OF_INITIAL):
        return None
    return (*((f"{VISEME_OF_INITIAL[initial]}-",) if initial else ()), *VISEMES_OF_FINAL[final])


def look_alike_classes_of(text: str) -> list[LookAlikeClass | None]:
    """Returns the class of each character of `text`, without spaces; None for other than Han, or without visemes."""
    characters = [character for character in text if not character.isspace()]
    return [
        visemes_of(syllable) if is_han(character) else None
        for character, syllable in zip(characters, syllables_of(text), strict=True)
    ]


def viseme_units(text: str) -> list[str]:
    """Returns the visemes of a text in order; a character without visemes as it is."""
    characters = [character for character in text if not character.isspace()]
    pairs = zip(characters, look_alike_classes_of(text), strict=True)
    return [unit for character, visemes in pairs for unit in visemes or (character,)]


def visemes_of_pinyin(text: str) -> list[str]:
    """Returns `viseme_units` for a text of syllables with spaces between them."""
    return [unit for syllable in text.split() for unit in visemes_of(syllable) or (syllable,)]


def look_alike_units(text: str) -> list[str]:
    """Returns the look-alike class of each syllable of `syllables_of`: syllables that look the same are one unit."""
    return [_class_of(syllable) for syllable in syllables_of(text)]


def look_alike_units_of_pinyin(text: str) -> list[str]:
    """Returns `look_alike_units` for a text of syllables with spaces between them."""
    return [_class_of(syllable) for syllable in text.split()]


def _class_of(syllable: str) -> str:
    """Depends only on the syllable, not on its character, so equal syllables always have the same class."""
    return " ".join(visemes_of(syllable) or (syllable,))


def look_alikes(texts: Iterable[str]) -> list[list[str]]:
    """Returns groups of two or more Han characters of `texts` that look the same on the lips (homophenes).

    Each character is in the group of its most frequent reading. The most frequent groups and characters come first.
    """
    classes: dict[str, Counter[LookAlikeClass]] = {}
    for text in texts:
        characters = [character for character in text if not character.isspace()]
        for character, visemes in zip(characters, look_alike_classes_of(text), strict=True):
            if visemes is not None:
                classes.setdefault(character, Counter())[visemes] += 1
    groups: dict[LookAlikeClass, list[tuple[int, str]]] = {}
    for character, counted in classes.items():
        visemes = max(counted, key=lambda visemes: (counted[visemes], visemes))
        groups.setdefault(visemes, []).append((-counted.total(), character))
    ranked = sorted((sum(count for count, _ in group), sorted(group)) for group in groups.values())
    return [[character for _, character in group] for _, group in ranked if len(group) > 1]


def is_mandarin(texts: Sequence[str]) -> bool:
    """Returns whether at least half of the characters, without spaces, are Han: else pinyin is not useful."""
    characters = Counter(character for text in texts for character in text if not character.isspace())
    num_han = sum(count for character, count in characters.items() if is_han(character))
    return num_han > 0 and 2 * num_han >= characters.total()
