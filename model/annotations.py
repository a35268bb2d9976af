"""What a transcript says of its sound: `[noise]`, `<unk>`, (笑). Nobody says it."""

import html
import re

from model.simplified import simplified

_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[a-zA-Z]+\d*);")
MAY_HOLD = r"[>\])}】〕⁾₎︶︸︺︼﹈﹚﹜﹞﹥）＞］｝]|&[#\w]+;"
"""A pattern, for DuckDB as well, that a text with annotations matches: what NFKC makes a closing bracket."""

LONGEST = 40
"""Characters between two brackets; what is longer was said, or its brackets are no pair."""

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
# angle brackets with a space inside compare: a < b
_BRACKETED = re.compile(
    rf"<(?! )(?P<tag>[^<>]{{1,{LONGEST}}})(?<! )>"
    rf"|\[(?P<square>[^\[\]]{{0,{LONGEST}}})\]"
    rf"|\{{(?P<curly>[^{{}}]{{0,{LONGEST}}})\}}"
    rf"|\((?P<round>[^()]{{1,{LONGEST}}})\)"
    rf"|【(?P<lenticular>[^【】]{{1,{LONGEST}}})】"
    rf"|〔(?P<shell>[^〔〕]{{1,{LONGEST}}})〕"
)
_MARKUP = ("tag", "square", "curly")

_SOUNDS = re.compile(
    "applause|beeps?|breath(s|ing|es)?|cheer(s|ing)|chuckles?|clap(s|ping)|clear(s|ing) throat|clicks?|cough(s|ing)?"
    "|crosstalk|cry(ing)?|(ex|in)hales?|foreign|gasps?|giggles?|groans?|inaudible|indistinct|laugh(s|ing|ter)?"
    "|lipsmack|(background )?(music|noises?)|nsn|pause|scream(s|ing)?|sigh(s|ing)?|sil(ence)?|sneezes?|sniffs?"
    "|sob(s|bing)?|spn|spoken_noise|unintelligible|unk"
    "|(大|轻|苦|冷|微|众人?|全场|观众)?笑声?|(全场|热烈)?(鼓掌|掌声)|拍手|欢呼声?|尖叫声?|(抽|哭)泣|哭声?|哈欠"
    "|咳(嗽声?)?|清嗓子|打?喷嚏|喘[气息]?|呼吸声?|[吸叹]气|叹息|(背景)?(音乐声?|噪[音声]|杂音)|背景音|配乐|(电话)?铃声"
    "|敲门声|脚步声|口水音|静音|无声|沉默|停顿|(听|说话)?不清楚?|无法辨认"
)


def unescaped(text: str) -> str:
    """`&lt;unk&gt;` as `<unk>`: entities of HTML, with their semicolons."""
    while (plain := _ENTITY.sub(lambda match: html.unescape(match[0]), text)) != text:
        text = plain
    return text


def without_annotations(text: str) -> tuple[str, list[str]]:
    """`text` (in NFKC, one space between words) with a space for each annotation, and these.

    In `<>`, `[]` and `{}` that is all that holds no Han character; in these and in (), 【】 and 〔〕, where people also
    put what is said, a sound or a silence of a list. Words between two tags stay: <b>they</b> are said.
    """
    found: list[str] = []

    def drop(match: re.Match[str]) -> str:
        if not _is_annotation(match):
            return match[0]
        if match[match.lastgroup or 0].strip():
            found.append(match[0])
        return " "

    # from the inside out: [[noise]]
    while (shorter := " ".join(_BRACKETED.sub(drop, text).split())) != text:
        text = shorter
    return text, found


def _is_annotation(match: re.Match[str]) -> bool:
    kind = match.lastgroup or ""
    inside = match[kind]
    if kind in _MARKUP and not _HAN.search(inside):
        return True
    word = inside.strip(" /.…!*").casefold()
    if _HAN.search(word):
        word = simplified(word.replace(" ", ""))
    return _SOUNDS.fullmatch(word) is not None
