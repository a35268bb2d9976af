"""What NFKC leaves apart though it is written or said as one: radicals, circled numbers, circles as zero; and what
nobody sees or says."""

import re
import unicodedata
from collections.abc import Mapping

_IDEOGRAPH_OF = str.maketrans(
    "⺁⺂⺃⺄⺅⺆⺇⺈⺉⺊⺋⺌⺍⺎⺏⺐⺑⺒⺓⺔⺕⺖⺗⺘⺙⺛⺜⺝⺞⺠⺡⺢⺣⺤⺥⺦⺧⺨⺩⺪⺫⺬⺭⺮⺯⺰⺱⺲⺳⺴"
    "⺵⺶⺷⺸⺹⺺⺻⺼⺽⺾⺿⻀⻁⻂⻃⻄⻅⻆⻇⻈⻉⻊⻋⻌⻍⻎⻏⻐⻑⻒⻓⻔⻕⻖⻗⻘⻙⻚⻛⻜⻝⻞⻟⻠⻡⻢⻣⻤⻥⻦"
    "⻧⻨⻩⻪⻫⻬⻭⻮⻯⻰⻱⻲㇆㇏㇐㇑㇒㇓㇔㇕㇖㇗㇘㇙㇚㇛㇜㇝㇞㇟㇠㇡",
    "厂乛乚乙亻冂𠘨刀刂卜㔾小小兀尣尢𡯂巳幺彑𫜹忄心扌攵旡日月歺民氵氺灬爫爫丬牛犭王𤴔目示礻𥫗糹纟罓罒㓁冗"
    "𦉫羊𦍌𦍋耂肀聿肉𦥑艹艹艹虎衤覀西见角𧢲讠贝𧾷车辶辶辶邑钅長镸长门𨸏阝雨青韦页风飞食𩙿飠饣𩠐马骨鬼鱼鸟"
    "卤麦黄黾斉齐歯齿竜龙龜亀𠃌乀一丨丿丿丶𠃍乛𠃊𠃎𠄌亅𡿨𠃋乀𠃑乚乙𠄎",
)
"""Radicals and strokes as the ideographs that they look like: the Unicode Character Database 17.0,
EquivalentUnifiedIdeograph.txt, less what NFKC maps (the Kangxi radicals do). Programs that read PDF files give them."""

_NUMBER_OF = {
    point: str(int(unicodedata.numeric(chr(point))))
    for point in (*range(0x24EB, 0x2500), *range(0x2776, 0x2794), 0x1F10B, 0x1F10C)
}
"""⓫ and ❶ as NFKC does with ⑪ and ①."""

_READ_AS: Mapping[int, int | str] = {**_IDEOGRAPH_OF, **_NUMBER_OF}

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
"""Default_Ignorable_Code_Point of the Unicode Character Database 17.0: variation selectors, joiners, fillers."""

# Han characters that the Unicode version of this Python does not know yet: the planes 2 and 3 hold nothing else
_NEW_HAN = range(0x20000, 0x3FFFE)

_HAN_NUMERAL = "零〇一二三四五六七八九十百千万萬两兩"
_NUMERAL = f"[0-9{_HAN_NUMERAL}]"
_CIRCLES = re.compile("[○◯⭘⭕⚪](?: ?[○◯⭘⭕⚪])*")
_NEAR = 4
"""Characters on either side that tell whether a circle is a zero."""

_MEASURE = (
    "[时時](?![代尚装裝报報])|分(?![公店行局部校院支])"
    "|秒|[点點](?![评評心名歌])|度(?!假)|[号號](?![称稱召])|[%‰℃°]"
)
_UNIT = f"年(?![级級会會报報])|月(?![刊报報饼餅球])|日(?![报報本])|{_MEASURE}"
_NUMBER = "[0-9○◯⭘" + _HAN_NUMERAL + "]"
_BEFORE_ZERO = re.compile(f"(?:[0-9]|(?:[{_HAN_NUMERAL}第号號码碼負负]|分之|{_NUMBER} ?[点點比]) ?)$")
# no date has a zero: ○月○日 leaves one out
_BEHIND_ZERO = re.compile(
    f"{_MEASURE}|{_NUMERAL} ?(?:$|[^\u3400-\u9fff]|{_NUMBER}|{_UNIT})|[比.:/] ?{_NUMERAL}|[点點] ?{_NUMBER}"
)
# several circles leave something out (○○年, 第○○屆) where no number stands beside them, be it the 〇 of 〇點
_ONE = f"(?:{_NUMERAL}|(?<![○◯⭘])[○◯⭘](?![○◯⭘]))"
_BEFORE_ZEROS = re.compile(f"(?:[0-9]|(?:[{_HAN_NUMERAL}]|{_ONE} ?[点點比]) ?)$")
_BEHIND_ZEROS = re.compile(f"[比.:/] ?{_NUMERAL}|[点點] ?{_ONE}")
# an emoji answers and adorns more often
_BEHIND_ZERO_OF_EMOJI = re.compile(f"{_NUMERAL} ?(?:{_NUMERAL}|年)")
_BETWEEN_ZERO_OF_EMOJI = re.compile(f"{_NUMERAL}|年")
_LETTERS = "oοоOΟО"
_DIGIT = "0-9〇零一二三四五六七八九"
# not behind a letter: Al2O3 is no number
_NUMBER_WITH_LETTERS = re.compile(
    f"(?<![a-zA-Z\u00c0-\u04ff{_DIGIT}])[{_DIGIT}][{_DIGIT}{_LETTERS}]*(?:(?<=[{_DIGIT}])|(?=年))"
)
_LETTERS_AS_ZEROS = re.compile(f"(?<=[{_DIGIT}])[{_LETTERS}]+")


def plain(text: str) -> str:
    """`text` in NFKC without invisible characters, its radicals as ideographs, one space wherever some stood."""
    text = _INVISIBLE.sub("", text.translate(_READ_AS))
    if not text.isprintable():
        # control and format characters join nothing; those of a private or of no use have no meaning here
        text = "".join(one for one in text if one.isspace() or _is_written(one))
    return " ".join(text.split())


def _is_written(character: str) -> bool:
    return unicodedata.category(character)[0] != "C" or ord(character) in _NEW_HAN


def with_zeros(text: str) -> str:
    """Circles as the zeros that they are by their neighbours: 一九九○, 1○○, 八点○五分, 百分之○, 三比○, 負○.

    Any other circle stays: ○○公司 leaves a name out, ○○年 and ○月○日 a date. A zero beside 0 to 9 is 0, any other 〇.
    """
    return _CIRCLES.sub(_zeros, text)


def _zeros(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - _NEAR) : match.start()]
    behind = match.string[match.end() : match.end() + _NEAR].lstrip()
    circles = match[0].replace(" ", "")
    if not _is_zero(before, behind, circles):
        return match[0]
    near = re.findall(_NUMERAL, before)[-1:] or re.findall(_NUMERAL, behind[:2])
    return ("0" if near and near[0].isascii() else "〇") * len(circles)


def _is_zero(before: str, behind: str, circles: str) -> bool:
    if not set(circles).isdisjoint("⭕⚪"):
        is_between = re.search(f"{_NUMERAL} ?$", before) and _BETWEEN_ZERO_OF_EMOJI.match(behind)
        return bool(is_between or _BEHIND_ZERO_OF_EMOJI.match(behind))
    is_behind_a_point = re.search(f"{_NUMERAL}[.:/]$", before) and not behind
    if len(circles) > 1 and not re.match(_NUMERAL, behind):
        return bool(_BEFORE_ZEROS.search(before) or _BEHIND_ZEROS.match(behind) or is_behind_a_point)
    return bool(_BEFORE_ZERO.search(before) or _BEHIND_ZERO.match(behind) or is_behind_a_point)


def with_zeros_of_letters(text: str) -> str:
    """The letter O as zero within a number or before its year, and nowhere else: 二OO八年, 2O24."""
    return _NUMBER_WITH_LETTERS.sub(lambda number: _LETTERS_AS_ZEROS.sub(_zero_letters, number[0]), text)


def _zero_letters(letters: re.Match[str]) -> str:
    return ("0" if letters.string[letters.start() - 1].isascii() else "〇") * len(letters[0])
