"""Labels as toneless pinyin syllables: what lips can show of a Mandarin sentence, less its homophones."""

from functools import lru_cache

from pypinyin import Style, lazy_pinyin, pinyin

from model.characters import simplified

LABELS_KEPT = 1 << 17


@lru_cache(LABELS_KEPT)  # a label comes again in every epoch, and takes a third of a millisecond
def syllables_of(label: str) -> tuple[str, ...]:
    """One toneless syllable a Han character (`lü` as `lv`), by its reading in the phrase; every other
    character stands for itself, spaces are left out. 地 mostly is di, where it is said de too.

    Traditional characters are read as the simplified ones: pypinyin's phrases are simplified, 銀行 would be yin xing.
    """
    simple = simplified(label)
    read = (
        # 鷿: the simplified character is so rare that its reading is not known
        _read(own)[0] if syllable == written != own else syllable
        for own, written, syllable in zip(label, simple, _read(simple), strict=True)
    )
    return tuple(syllable for syllable in read if not syllable.isspace())


def _read(text: str) -> list[str]:
    return lazy_pinyin(text, style=Style.NORMAL, errors=lambda others: list(others))  # type: ignore[arg-type, return-value]


def readings_of(character: str) -> tuple[str, ...]:
    """Every toneless syllable that a Han character has in some word; any other character stands for itself."""
    return tuple(
        dict.fromkeys(
            reading
            for one in (character, simplified(character))
            for reading in pinyin(one, style=Style.NORMAL, heteronym=True, errors=lambda other: [[other]])[0]  # type: ignore[arg-type, return-value]
        )
    )
