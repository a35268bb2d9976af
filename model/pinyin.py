"""Labels as toneless pinyin syllables: the part of a Mandarin sentence that lips can show, without its homophones.

pypinyin reads its tables of phrases when it is imported, which takes 0.4 s: only functions that need them import it.
"""

import re
from functools import lru_cache
from string import ascii_lowercase

from model.characters import HAN, simplified

LABELS_KEPT = 1 << 17
_A_TO_Z = "ei bi xi di yi aifu ji aichi ai jie kai ailou aimu en ou pi kiu aer aisi ti you wei dabuliu aikesi wai zei"
LETTER_NAMES = dict(zip(ascii_lowercase, _A_TO_Z.split(), strict=True))
"""The names of Latin letters as Mandarin speakers say them, each one unit: most are pinyin syllables, the others
are the pinyin of several."""
_HAS_HAN = re.compile(f"[{HAN}]")


@lru_cache(LABELS_KEPT)  # a label repeats in every epoch, and takes a third of a millisecond
def syllables_of(label: str, spells: bool = False) -> tuple[str, ...]:
    """Returns one toneless syllable per Han character (`lü` as `lv`), by its reading in the phrase.

    Other characters are returned as they are; spaces are left out. With `spells`, Latin letters in a label that has Han
    characters become their names (LETTER_NAMES). 地 is mostly di, even where it is said de.
    Traditional characters are simplified first, since pypinyin's phrases are simplified: 銀行 would be yin xing.
    """
    simple = simplified(label)
    names = LETTER_NAMES if spells and _HAS_HAN.search(label) else {}
    read = (
        # 鷿: the simplified character is so rare that pypinyin does not know its reading
        _read(own)[0] if syllable == written != own else names.get(own.lower(), syllable)
        for own, written, syllable in zip(label, simple, _read(simple), strict=True)
    )
    return tuple(syllable for syllable in read if not syllable.isspace())


def _read(text: str) -> list[str]:
    from pypinyin import Style, lazy_pinyin

    return lazy_pinyin(text, style=Style.NORMAL, errors=lambda others: list(others))  # type: ignore[arg-type, return-value]


def readings_of(character: str, spells: bool = False) -> tuple[str, ...]:
    """Returns every toneless syllable that a Han character has in some word; any other character as it is.

    With `spells`, a Latin letter also has its name.
    """
    from pypinyin import Style, pinyin

    name = LETTER_NAMES.get(character.lower()) if spells else None
    readings = (
        reading
        for one in (character, simplified(character))
        for reading in pinyin(one, style=Style.NORMAL, heteronym=True, errors=lambda other: [[other]])[0]  # type: ignore[arg-type, return-value]
    )
    return tuple(dict.fromkeys((*readings, *([name] if name else []))))


def toned_pinyin(text: str) -> list[str | None]:
    """Returns the pinyin with tone of each Han character by its reading in the phrase (`běi`); None for others."""
    if not _HAS_HAN.search(text):
        return [None] * len(text)
    from pypinyin import Style, lazy_pinyin

    simple = simplified(text)
    read = lazy_pinyin(simple, style=Style.TONE, errors=lambda others: list(others))  # type: ignore[arg-type, return-value]
    return [None if sound == written else sound for written, sound in zip(simple, read, strict=True)]
