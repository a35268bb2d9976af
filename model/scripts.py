"""Options of the normaliser for single scripts: apostrophes, Arabic marks, ё, spaces of Thai, digits of all scripts."""

import re

from model.settings import TextParams

# letters only: 5'3 is a measure
_APOSTROPHE_INSIDE = re.compile("(?<=[^\\W\\d_])['’‘ʼ](?=[^\\W\\d_])")
_OTHER_APOSTROPHE = re.compile("(?<![^\\W\\d_])['’‘]|['’‘](?![^\\W\\d_])")

_TASHKEEL_AND_TATWEEL = re.compile(
    "[\u0610-\u061a\u0640\u064b-\u0653\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed"
    "\u08d3-\u08e1\u08e3-\u08ff]+"
)
"""Vowel signs, doubling and Koranic marks. The hamza of أ and the madda of آ are parts of their letter (NFKC)."""
_ONE_ALEF = str.maketrans("أإآٱٲٳٵ", "ااااااا")
_ONE_YE = str.maketrans("ёЁ", "еЕ")

# Thai, Lao, Khmer, Myanmar and their extensions (Unicode 17, chapter 16)
_NO_WORD_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\ua9e0-\ua9ff\uaa60-\uaa7f"
_PHRASE_SPACE = re.compile(rf"(?<=[{_NO_WORD_SPACES}]) | (?=[{_NO_WORD_SPACES}])")


def with_apostrophes(text: str) -> str:
    """Returns every apostrophe between two letters as ', and no other apostrophe: 'It’s' is It's."""
    return _APOSTROPHE_INSIDE.sub("'", _OTHER_APOSTROPHE.sub("", text))


def written_plainly(text: str, params: TextParams) -> str:
    """Applies the options for Arabic, Cyrillic, Thai and digits; spaces of `text` are single."""
    if params.arabic != "keep":
        text = _TASHKEEL_AND_TATWEEL.sub("", text)
    if params.arabic == "plain":
        text = text.translate(_ONE_ALEF)
    if params.cyrillic == "plain":
        text = text.translate(_ONE_YE)
    if params.phrase_spaces == "drop":
        text = _PHRASE_SPACE.sub("", text)
    if params.digits == "ascii":
        text = "".join(str(int(one)) if one.isdecimal() else one for one in text)
    return text


def described(params: TextParams) -> list[str]:
    """Returns the steps of these options for a line in reports."""
    steps = {
        "apostrophes inside words": params.apostrophes == "keep" and params.drop_punctuation,
        "without Arabic marks and tatweel": params.arabic != "keep",
        "one form of alef": params.arabic == "plain",
        "е for ё": params.cyrillic == "plain",
        "no spaces in Thai, Lao, Khmer and Burmese": params.phrase_spaces == "drop",
        "digits of all scripts as 0-9": params.digits == "ascii",
    }
    return [step for step, is_on in steps.items() if is_on]
