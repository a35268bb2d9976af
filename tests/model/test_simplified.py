"""Conversion of traditional text to simplified text, especially Taiwan's 著, which OpenCC does not convert."""

import unicodedata

import pytest
from opencc import OpenCC

from model.characters import simplified


@pytest.mark.parametrize(
    ("taiwan", "simple"),
    [
        ("看著", "看着"),
        ("睡著了", "睡着了"),
        ("著急", "着急"),
        ("著火", "着火"),
        ("替人著想", "替人着想"),
        ("飛機著陸", "飞机着陆"),
        ("沿著河走", "沿着河走"),
        ("執著", "执着"),
        ("附著", "附着"),
        ("穿著", "穿着"),
        ("沉著", "沉着"),
        ("摸不著", "摸不着"),
        ("著手", "着手"),
        ("著眼", "着眼"),
        ("著重", "着重"),
        ("他看著書", "他看着书"),
        ("帶著作業回家", "带着作业回家"),
        ("接著作者說", "接着作者说"),
        ("衝著名氣", "冲着名气"),
        ("跟著錄音讀", "跟着录音读"),
        ("討論著", "讨论着"),
        ("配合著", "配合着"),
        ("重新著手", "重新着手"),
        ("凸顯著", "凸显着"),
        ("翻譯著", "翻译着"),
        ("拿著名片", "拿着名片"),
        ("拿著名冊", "拿着名册"),
        ("帶著名額", "带着名额"),
        ("跟著名師學", "跟着名师学"),
        ("隨著名人的腳步", "随着名人的脚步"),
        ("抱著名牌包", "抱着名牌包"),
        ("盯著名次", "盯着名次"),
        ("想著書", "想着书"),
        ("靠著書桌", "靠着书桌"),
        ("我放著書包", "我放着书包"),
        ("讀著書上的字", "读着书上的字"),
        ("忙著作準備", "忙着作准备"),
        ("急著作決定", "急着作决定"),
        ("為之著迷", "为之着迷"),
        ("人所著迷的", "人所着迷的"),
        ("有所著落", "有所着落"),
        # zhù
        ("魯迅所著", "鲁迅所著"),
        ("他所著的書", "他所著的书"),
        ("著名師範大學", "著名师范大学"),
        ("著名人士", "著名人士"),
        ("跟著名的教授", "跟著名的教授"),
        ("著名歌手", "著名歌手"),
        ("著名醫生", "著名医生"),
        ("著名人類學家", "著名人类学家"),
        ("著名品牌", "著名品牌"),
        ("閉門著書", "闭门著书"),
        ("著書三十年", "著书三十年"),
        ("他的著作", "他的著作"),
        ("著作權", "著作权"),
        ("這部著作準確", "这部著作准确"),
        ("著名", "著名"),
        ("著作", "著作"),
        ("顯著", "显著"),
        ("原著", "原著"),
        ("土著", "土著"),
        ("卓著", "卓著"),
        ("名著", "名著"),
        ("專著", "专著"),
        ("編著", "编著"),
        ("論著", "论著"),
        ("譯著", "译著"),
        ("遺著", "遗著"),
        ("巨著", "巨著"),
        ("合著", "合著"),
        ("新著", "新著"),
        ("昭著", "昭著"),
        ("見微知著", "见微知著"),
        ("著書立說", "著书立说"),
        ("著稱於世", "著称于世"),
        ("著者", "著者"),
        ("著錄", "著录"),
        # both in one
        ("看著著名的原著", "看着著名的原著"),
        # other forms of Taiwan and Hong Kong
        ("妳看牠", "你看它"),
        ("屋簷", "屋檐"),
        ("甚麼", "什么"),
        ("化粧間", "化妆间"),
    ],
)
def test_taiwan_and_hong_kong(taiwan: str, simple: str) -> None:
    assert simplified(taiwan) == simple
    # simplified text stays
    assert simplified(simple) == simple


def test_a_single_zhu_stays() -> None:
    assert simplified("著") == "著"


def test_every_character_stays_one_character() -> None:
    blocks = (*range(0x3400, 0x4DC0), *range(0x4E00, 0xA000), *range(0x20000, 0x2EBF0))
    every = [chr(point) for point in blocks if unicodedata.category(chr(point)) != "Cn"]
    assert len(simplified("\n".join(every))) == 2 * len(every) - 1


def test_other_text_is_simplified_as_by_opencc() -> None:
    opencc = OpenCC("t2s")
    for text in ("乾隆年間很乾燥", "皇后在後面", "一目瞭然", "發現頭髮", "憂鬱", "什麼時候"):
        assert simplified(text) == opencc.convert(text)
