"""Labels as toneless pinyin syllables: what lips can show of a Mandarin sentence, less its homophones."""

from pypinyin import Style, lazy_pinyin


def syllables_of(label: str) -> list[str]:
    """One toneless syllable a Han character (`lü` as `lv`), by its reading in the phrase; every other
    character stands for itself, spaces are left out."""
    found = lazy_pinyin(label, style=Style.NORMAL, errors=lambda others: list(others))  # type: ignore[arg-type, return-value]
    return [syllable for syllable in found if not syllable.isspace()]
