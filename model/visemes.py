"""What the lips show of a Mandarin syllable: its visemes. Imports neither torch nor mediapipe.

A viseme is a class of sounds that look the same. The classes of initials go by the place of articulation, those of
finals by the shape of the mouth, after the static visemes of Wang Zhiming and Cai Lianhong 2002 ("Study of Chinese
viseme", Applied Acoustics 21(3), 29-34, made for MPEG-4 face animation): an initial, then the medial, then the
main vowel with its ending. Their 28 classes also tell initials before rounded vowels from the same before others;
here the vowel that follows says so. Tones are not seen. Real lips show less: the tongue of d, g and zh is seldom seen.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from pypinyin.contrib.tone_convert import to_finals, to_initials

from model.pinyin import syllables_of
from model.text import is_han

LookAlikeClass = tuple[str, ...]
"""The visemes of a syllable, in time's order."""

_INITIALS = (
    ("b", "b p m"),  # lips closed
    ("f", "f"),  # lower lip at the teeth
    ("d", "d t n l"),  # tip of the tongue behind the teeth
    ("g", "g k h"),  # back of the tongue: hardly to be seen
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
    """The visemes of a toneless pinyin syllable (`lü` as `lv`), one to three.

    None where it is no such syllable (gpu, 7), or a hummed one without a vowel (m, ng).
    """
    initial = to_initials(syllable, strict=True)
    # 哟: pypinyin tells its final without the glide
    final = "io" if syllable == "yo" else to_finals(syllable, strict=True, v_to_u=False)
    if final not in VISEMES_OF_FINAL or (initial and initial not in VISEME_OF_INITIAL):
        return None
    return (*((f"{VISEME_OF_INITIAL[initial]}-",) if initial else ()), *VISEMES_OF_FINAL[final])


def look_alike_classes_of(text: str) -> list[LookAlikeClass | None]:
    """How each character of `text` looks, spaces left out; None where it is no Han character, or has no visemes."""
    characters = [character for character in text if not character.isspace()]
    return [
        visemes_of(syllable) if is_han(character) else None
        for character, syllable in zip(characters, syllables_of(text), strict=True)
    ]


def viseme_units(text: str) -> list[str]:
    """The visemes of a text in order; a character that has none stands for itself."""
    characters = [character for character in text if not character.isspace()]
    looks = zip(characters, look_alike_classes_of(text), strict=True)
    return [unit for character, look in looks for unit in look or (character,)]


def visemes_of_pinyin(text: str) -> list[str]:
    """The same of a text of syllables with spaces between them."""
    return [unit for syllable in text.split() for unit in visemes_of(syllable) or (syllable,)]


def look_alike_units(text: str) -> list[str]:
    """One look a syllable of `syllables_of`: syllables that look the same are one unit."""
    return [_look_of(syllable) for syllable in syllables_of(text)]


def look_alike_units_of_pinyin(text: str) -> list[str]:
    """The same of a text of syllables with spaces between them."""
    return [_look_of(syllable) for syllable in text.split()]


def _look_of(syllable: str) -> str:
    """Of the syllable alone, whatever wrote it: so no two equal syllables have two looks."""
    return " ".join(visemes_of(syllable) or (syllable,))


def look_alikes(texts: Iterable[str]) -> list[list[str]]:
    """The Han characters of `texts` that look the same on the lips (homophenes), two or more a group.

    Each stands in the group of its most frequent reading; most frequent group first, and character in it.
    """
    looks: dict[str, Counter[LookAlikeClass]] = {}
    for text in texts:
        characters = [character for character in text if not character.isspace()]
        for character, look in zip(characters, look_alike_classes_of(text), strict=True):
            if look is not None:
                looks.setdefault(character, Counter())[look] += 1
    groups: dict[LookAlikeClass, list[tuple[int, str]]] = {}
    for character, counted in looks.items():
        look = max(counted, key=lambda one: (counted[one], one))
        groups.setdefault(look, []).append((-counted.total(), character))
    ranked = sorted((sum(count for count, _ in group), sorted(group)) for group in groups.values())
    return [[character for _, character in group] for _, group in ranked if len(group) > 1]


def is_mandarin(texts: Sequence[str]) -> bool:
    """Whether at least half of the characters, spaces left out, are Han: only then pinyin tells something."""
    characters = Counter(character for text in texts for character in text if not character.isspace())
    num_han = sum(count for character, count in characters.items() if is_han(character))
    return num_han > 0 and 2 * num_han >= characters.total()
