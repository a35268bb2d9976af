"""Annotations in transcripts, such as `[noise]`, `<unk>` or (笑): they describe the sound, and nobody says them."""

import html
import re

from model.characters import simplified

_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[a-zA-Z]+\d*);")
ANNOTATION_HINT = (
    r"[>\])}】〕⁾₎︶︸︺︼﹈﹚﹜﹞﹥）＞］｝]|&[#\w]+;"
    "|[〗⟩》*#\ufe18\u232a\u3009\ufe3e\ufe40\ufe5f\ufe61\uff03\uff0a]"
)
"""A pattern (also for DuckDB) that every text with annotations matches: closing brackets before NFKC, or an entity."""

MAX_ANNOTATION_CHARS = 40
"""The most characters between two brackets. Longer text was said, or its brackets are not a pair."""

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
# angle brackets with a space inside are comparisons: a < b
_BRACKETED = re.compile(
    rf"<(?! )(?P<tag>[^<>]{{1,{MAX_ANNOTATION_CHARS}}})(?<! )>"
    rf"|\[(?P<square>[^\[\]]{{0,{MAX_ANNOTATION_CHARS}}})\]"
    rf"|\{{(?P<curly>[^{{}}]{{0,{MAX_ANNOTATION_CHARS}}})\}}"
    rf"|\((?P<round>[^()]{{1,{MAX_ANNOTATION_CHARS}}})\)"
    rf"|【(?P<lenticular>[^【】]{{1,{MAX_ANNOTATION_CHARS}}})】"
    rf"|〖(?P<white>[^〖〗]{{1,{MAX_ANNOTATION_CHARS}}})〗"
    rf"|〔(?P<shell>[^〔〕]{{1,{MAX_ANNOTATION_CHARS}}})〕"
    rf"|\*(?P<star>[^*]{{1,{MAX_ANNOTATION_CHARS}}})\*"
    rf"|#(?P<hash>[^#]{{1,{MAX_ANNOTATION_CHARS}}})#"
    rf"|《(?P<title>[^《》]{{1,{MAX_ANNOTATION_CHARS}}})》"
    rf"|\u3008(?P<inner_title>[^\u3008\u3009]{{1,{MAX_ANNOTATION_CHARS}}})\u3009"
    rf"|⟨(?P<angle>[^⟨⟩]{{1,{MAX_ANNOTATION_CHARS}}})⟩"
)
_MARKUP, _TITLES = ("tag", "square", "curly"), ("title", "inner_title", "angle")

# tags that close, are empty or have attributes; WebVTT speakers; times; ASS codes; variable names
_SURE = re.compile(
    r"/[\w:.-]+|[\w:.-]+ ?/|\w+(?: [\w:-]+ ?= ?(?:\"[^\"]*\"|'[^']*'|[^ \"']+))+ ?/?|v(?:\.\w+)* .+"
    r"|(?:\d\d:)?\d\d:\d\d[.,]\d+|\d\d:\d\d:\d\d|\\.+|[*@=]*[a-zA-Z]\w*_\w*"
)
# a<b and c>d is a comparison
_TAG = re.compile(r"[\w:./'@*-]+")

_CLOSING_TAG = re.compile(r"</([^<>/]+)>")

_TOKENS = re.compile("unk|spn|nsn|spoken_noise")
_SOUNDS = re.compile(
    "(?:(?:audience|baby|background|brief|crowd|dog|door|heavy|long|loud|nervous|phone|short|soft) )*(?:applau(?:se|ds)"
    "|bark(?:s|ing)?|beeps?|breath(?:s|ing|es)?|cheer(?:s|ing)|chuckles?|clap(?:s|ping)|clear(?:s|ing) throat|clicks?"
    "|cough(?:s|ing)?|crosstalk|cry(?:ing)?|(?:ex|in)hales?|foreign|gasps?|giggles?|groans?|inaudible|indistinct"
    "|knock(?:s|ing)|laugh(?:s|ing|ter)?|lipsmack|music|noises?|overlap(?:ping)?|pause|ring(?:s|ing)|scream(?:s|ing)?"
    "|sigh(?:s|ing)?|sil(?:ence)?|singing|sneez(?:es?|ing)|sniffs?|sob(?:s|bing)?|throat clearing|unintelligible)"
    "(?: (?:continues|deeply|heavily|loudly|nervously|playing|quietly|softly))?"
    f"|{_TOKENS.pattern}"
    "|(?:众人?|大家|全场|观众|现场|台下|孩子|婴儿)?(?:(?:大|轻|苦|冷|微|热烈|持续|长时间|短暂|一阵|小声|背景|电话)的?)*"
    "(?:笑|鼓掌|掌声|拍手|欢呼|尖叫|[抽哭]泣|哭|哽咽|哈欠|打嗝|咳嗽?|清嗓子?|打?喷嚏|喘[气息]|呼吸|[吸叹]气|叹息|音乐|噪[音声]|杂音|嘈杂"
    "|背景音|配乐|唱歌|[狗猫鸟鸡][叫吠鸣]|铃声|敲门声|脚步声|[风雨雷]声|口水音|静音|无声|沉默|停顿|重叠|(?:听|说话)?不清楚?|无法辨认)"
    r"(?:声|了|着|中|响起)?(?:[\d一二两三四五六七八九十几]+[秒声下])?"
)
_AND = re.compile(r" ?[、,;/和与及] ?| and ")


def unescaped(text: str) -> str:
    """Replaces HTML entities that end with a semicolon: `&lt;unk&gt;` becomes `<unk>`."""
    while (plain := _ENTITY.sub(lambda match: html.unescape(match[0]), text)) != text:
        text = plain
    return text


def without_annotations(text: str) -> tuple[str, list[str], list[str]]:
    """Returns `text` with a space for each annotation, the annotations, and the other bracketed parts of the text.

    `text` is in NFKC, with one space between words. In any brackets, a sound or silence of a fixed list is an
    annotation. In `<>`, `[]` and `{}` markup is one too: small letters, closing tags, attributes. Numbers, words with
    capitals (NBA, iPhone) and scripts without capitals may be said, so they stay. Words between two tags stay:
    <b>they</b> are said. The other bracketed parts do not include titles, 《》.
    """
    found: list[str] = []
    kept: list[tuple[str, str]] = []

    def drop(match: re.Match[str]) -> str:
        kind = match.lastgroup or ""
        if not _is_annotation(kind, match[kind], closing):
            if kind not in _TITLES and any(map(str.isalnum, match[kind])):
                kept.append((kind, match[0]))
            return match[0]
        if match[kind].strip():
            found.append(match[0])
        return " "

    closing = _closing(text)
    # inner brackets first: [[noise]]
    while (shorter := " ".join(_BRACKETED.sub(drop, text).split())) != text:
        text, closing = shorter, _closing(shorter)
        kept.clear()
    for kind, bracketed in dict.fromkeys(kept):
        # after case folding, <NBA> would match as a tag
        if kind in _MARKUP and bracketed != bracketed.casefold():
            text = text.replace(bracketed, f" {bracketed[1:-1]} ")
    return " ".join(text.split()), found, [bracketed for _, bracketed in kept]


def _closing(text: str) -> frozenset[str]:
    return frozenset(_CLOSING_TAG.findall(text.casefold()))


def _is_annotation(kind: str, inside: str, closing: frozenset[str]) -> bool:
    if kind in _MARKUP and not _HAN.search(inside) and _is_markup(kind, inside, closing):
        return True
    word = inside.strip(" /.…!*~。,♪").casefold()
    if kind in _TITLES:
        return _TOKENS.fullmatch(word) is not None
    if _HAN.search(word):
        word = simplified(word.replace(" ", ""))
    return all(map(_SOUNDS.fullmatch, _AND.split(word)))


def _is_markup(kind: str, inside: str, closing: frozenset[str]) -> bool:
    if _SURE.fullmatch(inside) or not any(map(str.isalnum, inside)):
        return True
    if kind == "tag" and inside.casefold() in closing:
        return True
    is_small = all(c.islower() for c in inside if c.isalpha()) and not any(map(str.isnumeric, inside))
    return is_small and (kind != "tag" or _TAG.fullmatch(inside) is not None)
