"""Traditional characters as simplified ones."""

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opencc import OpenCC

_MORE = str.maketrans("妳牠簷痺粧衞枱糭敍", "你它檐痹妆卫台粽叙")
"""Forms of Taiwan and Hong Kong that OpenCC's t2s leaves as they are."""

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
"""著 is zhù (to write, to be known) in 显著 and 著作, and stays; where it is not, it is 着, which Taiwan writes 著.

The words were chosen on 6 million simplified characters of news and reviews with every 着 written 著: of 8,718, 3 did
not come back. Where both are words, as with 跟著名 and 忙著作, their neighbours decide. OpenCC's tw2s knows
fewer words, and makes 原着, 专着 and 什幺 of what is simplified already.
"""


def simplified(text: str) -> str:
    """One character for each of `text`, by OpenCC's phrases: 乾隆 stays, 乾燥 is 干燥; 看著 is 看着, 著名 stays."""
    # a second pass may find more: 薴 is 苧, the traditional form of 苎
    while (simpler := _once(text)) != text:
        text = simpler
    return text


def _once(text: str) -> str:
    # 甚麼 is 什么, though OpenCC takes it character by character
    text = _opencc().convert(text).translate(_MORE).replace("甚么", "什么")
    return _ZHU_OR_ZHE.sub(lambda match: match["zhu"] or "着", text)


@lru_cache(1)  # loaded only where it is needed
def _opencc() -> "OpenCC":
    from opencc import OpenCC

    return OpenCC("t2s")
