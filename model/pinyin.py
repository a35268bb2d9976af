"""Labels as toneless pinyin syllables: the part of a Mandarin sentence that lips can show, without its homophones.

pypinyin reads its tables of phrases when it is imported, which takes 0.4 s: only functions that need them import it.
"""

from functools import lru_cache

from model.characters import simplified

LABELS_KEPT = 1 << 17


@lru_cache(LABELS_KEPT)  # a label repeats in every epoch, and takes a third of a millisecond
def syllables_of(label: str) -> tuple[str, ...]:
    """Returns one toneless syllable per Han character (`lü` as `lv`), by its reading in the phrase.

    Other characters are returned as they are; spaces are left out. 地 is mostly di, even where it is said de.
    Traditional characters are simplified first, since pypinyin's phrases are simplified: 銀行 would be yin xing.
    """
    simple = simplified(label)
    read = (
        # 鷿: the simplified character is so rare that pypinyin does not know its reading
        _read(own)[0] if syllable == written != own else syllable
        for own, written, syllable in zip(label, simple, _read(simple), strict=True)
    )
    return tuple(syllable for syllable in read if not syllable.isspace())


def _read(text: str) -> list[str]:
    from pypinyin import Style, lazy_pinyin

    return lazy_pinyin(text, style=Style.NORMAL, errors=lambda others: list(others))  # type: ignore[arg-type, return-value]


def readings_of(character: str) -> tuple[str, ...]:
    """Returns every toneless syllable that a Han character has in some word; any other character as it is."""
    from pypinyin import Style, pinyin

    return tuple(
        dict.fromkeys(
            reading
            for one in (character, simplified(character))
            for reading in pinyin(one, style=Style.NORMAL, heteronym=True, errors=lambda other: [[other]])[0]  # type: ignore[arg-type, return-value]
        )
    )
