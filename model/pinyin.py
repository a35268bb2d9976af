"""Labels as toneless pinyin syllables: what lips can show of a Mandarin sentence, less its homophones."""

from functools import lru_cache

from pypinyin import Style, lazy_pinyin

LABELS_KEPT = 1 << 17


@lru_cache(LABELS_KEPT)  # a label comes again in every epoch, and takes a third of a millisecond
def syllables_of(label: str) -> tuple[str, ...]:
    """One toneless syllable a Han character (`lü` as `lv`), by its reading in the phrase; every other
    character stands for itself, spaces are left out. 地 mostly is di, where it is said de too."""
    found = lazy_pinyin(label, style=Style.NORMAL, errors=lambda others: list(others))  # type: ignore[arg-type, return-value]
    return tuple(syllable for syllable in found if not syllable.isspace())
