"""Characters that NFKC does not unify: radicals, circled numbers, circles as zero, and invisible characters.

Also converts traditional characters to simplified ones.
"""

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opencc import OpenCC


HAN = "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
"""For regular expressions: the blocks whose characters are written without spaces between words (Unicode 17, chapter
18), and planes 2 and 3."""

_IDEOGRAPH_OF = str.maketrans(
    "⺁⺂⺃⺄⺅⺆⺇⺈⺉⺊⺋⺌⺍⺎⺏⺐⺑⺒⺓⺔⺕⺖⺗⺘⺙⺛⺜⺝⺞⺠⺡⺢⺣⺤⺥⺦⺧⺨⺩⺪⺫⺬⺭⺮⺯⺰⺱⺲⺳⺴"
    "⺵⺶⺷⺸⺹⺺⺻⺼⺽⺾⺿⻀⻁⻂⻃⻄⻅⻆⻇⻈⻉⻊⻋⻌⻍⻎⻏⻐⻑⻒⻓⻔⻕⻖⻗⻘⻙⻚⻛⻜⻝⻞⻟⻠⻡⻢⻣⻤⻥⻦"
    "⻧⻨⻩⻪⻫⻬⻭⻮⻯⻰⻱⻲㇆㇏㇐㇑㇒㇓㇔㇕㇖㇗㇘㇙㇚㇛㇜㇝㇞㇟㇠㇡",
    "厂乛乚乙亻冂𠘨刀刂卜㔾小小兀尣尢𡯂巳幺彑𫜹忄心扌攵旡日月歺民氵氺灬爫爫丬牛犭王𤴔目示礻𥫗糹纟罓罒㓁冗"
    "𦉫羊𦍌𦍋耂肀聿肉𦥑艹艹艹虎衤覀西见角𧢲讠贝𧾷车辶辶辶邑钅長镸长门𨸏阝雨青韦页风飞食𩙿飠饣𩠐马骨鬼鱼鸟"
    "卤麦黄黾斉齐歯齿竜龙龜亀𠃌乀一丨丿丿丶𠃍乛𠃊𠃎𠄌亅𡿨𠃋乀𠃑乚乙𠄎",
)
"""Maps radicals and strokes to the ideographs of the same shape, which text from PDF files often contains instead: the
Unicode Character Database 17.0, EquivalentUnifiedIdeograph.txt, without those that NFKC maps (the Kangxi radicals)."""

_NUMBER_OF = {
    point: str(int(unicodedata.numeric(chr(point))))
    for point in (*range(0x24EB, 0x2500), *range(0x2776, 0x2794), 0x1F10B, 0x1F10C)
}
"""Maps ⓫ and ❶ to numbers, as NFKC does with ⑪ and ①."""

_READ_AS: Mapping[int, int | str] = {**_IDEOGRAPH_OF, **_NUMBER_OF}

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
"""Default_Ignorable_Code_Point of the Unicode Character Database 17.0: variation selectors, joiners, fillers."""

# includes Han characters that the Unicode version of this Python does not know yet: planes 2 and 3 hold nothing else
_NEW_HAN = range(0x20000, 0x3FFFE)

_HAN_NUMERAL = "零〇一二三四五六七八九十百千万萬两兩"
_NUMERAL = f"[0-9{_HAN_NUMERAL}]"
_CIRCLES = re.compile("[○◯⭘⭕⚪](?: ?[○◯⭘⭕⚪])*")
_NEAR = 4
"""Number of characters on each side that decide whether a circle is a zero."""

_MEASURE = (
    "[时時](?![代尚装裝报報])|分(?![公店行局部校院支])"
    "|秒|[点點](?![评評心名歌])|度(?!假)|[号號](?![称稱召])|[%‰℃°]"
)
_UNIT = f"年(?![级級会會报報])|月(?![刊报報饼餅球])|日(?![报報本])|{_MEASURE}"
_NUMBER = "[0-9○◯⭘" + _HAN_NUMERAL + "]"
_BEFORE_ZERO = re.compile(f"(?:[0-9]|(?:[{_HAN_NUMERAL}第号號码碼負负]|分之|{_NUMBER} ?[点點比]) ?)$")
# no date has a zero: ○月○日 omits the number
_AFTER_ZERO = re.compile(
    f"{_MEASURE}|{_NUMERAL} ?(?:$|[^\u3400-\u9fff]|{_NUMBER}|{_UNIT})|[比.:/] ?{_NUMERAL}|[点點] ?{_NUMBER}"
)
# several circles are placeholders (○○年, 第○○屆) unless a number is next to them, such as the 〇 of 〇點
_ONE = f"(?:{_NUMERAL}|(?<![○◯⭘])[○◯⭘](?![○◯⭘]))"
_BEFORE_ZEROS = re.compile(f"(?:[0-9]|(?:[{_HAN_NUMERAL}]|{_ONE} ?[点點比]) ?)$")
_AFTER_ZEROS = re.compile(f"[比.:/] ?{_NUMERAL}|[点點] ?{_ONE}")
# emoji circles are answers or decoration more often than zeros
_AFTER_ZERO_OF_EMOJI = re.compile(f"{_NUMERAL} ?(?:{_NUMERAL}|年)")
_BETWEEN_ZERO_OF_EMOJI = re.compile(f"{_NUMERAL}|年")
_LETTERS = "oοоOΟО"
_DIGIT = "0-9〇零一二三四五六七八九"
# not after a letter: Al2O3 is not a number
_NUMBER_WITH_LETTERS = re.compile(
    f"(?<![a-zA-Z\u00c0-\u04ff{_DIGIT}])[{_DIGIT}][{_DIGIT}{_LETTERS}]*(?:(?<=[{_DIGIT}])|(?=年))"
)
_LETTERS_AS_ZEROS = re.compile(f"(?<=[{_DIGIT}])[{_LETTERS}]+")

_MORE = str.maketrans("妳牠簷痺粧衞枱糭敍", "你它檐痹妆卫台粽叙")
"""Taiwan and Hong Kong forms that OpenCC's t2s does not convert."""

_ZHU_OR_ZHE = re.compile(
    "(?P<zhu>"
    "^著$|(?<=[名原土卓专遗巨拙撰昭知])著|(?<![凸彰]显)(?<=显)著|(?<!翻译)(?<=译)著|(?<!改编)(?<=编)著"
    "|(?<![讨谈议争评辩]论)(?<=论)著|(?<![结配混符凑融综组集整闭]合)(?<=合)著|(?<!重新)(?<=新)著|(?<=[他她曾])著(?=有)"
    "|(?<=所)著(?![迷重眼手落力急火色陆装想])"
    "|(?!(?<=[拿带跟随追陪看望盯抱靠])著名(?:师(?!范)|人(?![士物类])|医(?![生师学院])|[家校]))著(?=名(?![气单字片册额次牌]))"
    "|(?<![忙急赶等])著(?=作(?![者家业文画曲弊]))|著(?=称(?!赞)|[述者]|录(?![音像制]))"
    "|(?<![看拿背抱读按照着随对跟冲盯倚学闻捧夹循想靠带放念翻写藏堆摆枕拎提])著(?=书(?![桌包本架柜店房籍信签页香]))"
    ")|著"
)
"""Finds where 著 is zhù (to write, to be known), as in 显著 and 著作: it stays. Elsewhere Taiwan writes 著 for 着.

The words were chosen on 6 million simplified characters of news and reviews, with every 着 replaced by 著: of 8,718,
only 3 were not restored. Where both readings are words, as with 跟著名 and 忙著作, the neighbours decide. OpenCC's tw2s
knows fewer words, and turns text that is already simplified into 原着, 专着 and 什幺.
"""


def plain(text: str) -> str:
    """Returns `text` (in NFKC) with radicals as ideographs, single spaces, and without invisible characters."""
    text = _INVISIBLE.sub("", text.translate(_READ_AS))
    if not text.isprintable():
        # control, format, private-use and unassigned characters have no meaning here
        text = "".join(character for character in text if character.isspace() or _is_written(character))
    return " ".join(text.split())


def _is_written(character: str) -> bool:
    return unicodedata.category(character)[0] != "C" or ord(character) in _NEW_HAN


def with_zeros(text: str) -> str:
    """Replaces circles that their neighbours show to be zeros: 一九九○, 1○○, 八点○五分, 百分之○, 三比○, 負○.

    Other circles stay: ○○公司 omits a name, ○○年 and ○月○日 omit a date. A zero next to 0-9 becomes 0, any other 〇.
    """
    return _CIRCLES.sub(_zeros, text)


def _zeros(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - _NEAR) : match.start()]
    after = match.string[match.end() : match.end() + _NEAR].lstrip()
    circles = match[0].replace(" ", "")
    if not _is_zero(before, after, circles):
        return match[0]
    near = re.findall(_NUMERAL, before)[-1:] or re.findall(_NUMERAL, after[:2])
    return ("0" if near and near[0].isascii() else "〇") * len(circles)


def _is_zero(before: str, after: str, circles: str) -> bool:
    if not set(circles).isdisjoint("⭕⚪"):
        is_between = re.search(f"{_NUMERAL} ?$", before) and _BETWEEN_ZERO_OF_EMOJI.match(after)
        return bool(is_between or _AFTER_ZERO_OF_EMOJI.match(after))
    is_after_a_point = re.search(f"{_NUMERAL}[.:/]$", before) and not after
    if len(circles) > 1 and not re.match(_NUMERAL, after):
        return bool(_BEFORE_ZEROS.search(before) or _AFTER_ZEROS.match(after) or is_after_a_point)
    return bool(_BEFORE_ZERO.search(before) or _AFTER_ZERO.match(after) or is_after_a_point)


def with_zeros_of_letters(text: str) -> str:
    """Replaces the letter O by zero inside a number or before 年, and nowhere else: 二OO八年, 2O24."""
    return _NUMBER_WITH_LETTERS.sub(lambda number: _LETTERS_AS_ZEROS.sub(_zero_letters, number[0]), text)


def _zero_letters(letters: re.Match[str]) -> str:
    return ("0" if letters.string[letters.start() - 1].isascii() else "〇") * len(letters[0])


def simplified(text: str) -> str:
    """Returns simplified text, one character for each of `text`, by OpenCC's phrases.

    乾隆 stays, 乾燥 becomes 干燥; 看著 becomes 看着, 著名 stays.
    """
    # a second pass may find more: 薴 becomes 苧, the traditional form of 苎
    while (simpler := _once(text)) != text:
        text = simpler
    return text


def _once(text: str) -> str:
    # 甚麼 is 什么, but OpenCC converts it character by character
    text = _opencc().convert(text).translate(_MORE).replace("甚么", "什么")
    return _ZHU_OR_ZHE.sub(lambda match: match["zhu"] or "着", text)


@lru_cache(1)  # loaded only if needed
def _opencc() -> "OpenCC":
    from opencc import OpenCC

    return OpenCC("t2s")
