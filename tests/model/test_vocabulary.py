"""Pinyin of polyphones, in both scripts."""

import pytest
from opencc import OpenCC
from pypinyin.phrases_dict import phrases_dict

from model.characters import simplified
from model.metrics import unit_error_rate
from model.pinyin import readings_of, syllables_of
from model.vocabulary import Vocabulary

# Traditional, simplified and pinyin without tones from CC-CEDICT (MDBG, release of 2023-11-07): words with one of 132
# characters that have several readings, one character per line.
POLYPHONES = """
銀行 银行 yin hang; 行走 行走 xing zou
音樂 音乐 yin yue; 快樂 快乐 kuai le
重慶 重庆 chong qing; 重要 重要 zhong yao
長江 长江 chang jiang; 生長 生长 sheng zhang
會計 会计 kuai ji; 開會 开会 kai hui
覺得 觉得 jue de; 睡覺 睡觉 shui jiao
還有 还有 hai you; 歸還 归还 gui huan
都市 都市 du shi; 全都 全都 quan dou
調查 调查 diao cha; 調整 调整 tiao zheng
傳說 传说 chuan shuo; 傳記 传记 zhuan ji
彈琴 弹琴 tan qin; 子彈 子弹 zi dan
得到 得到 de dao; 懂得 懂得 dong de
方便 方便 fang bian
乾燥 干燥 gan zao; 乾坤 乾坤 qian kun
和平 和平 he ping; 暖和 暖和 nuan huo
喝彩 喝彩 he cai
橫行 横行 heng xing; 蠻橫 蛮横 man heng
間接 间接 jian jie; 時間 时间 shi jian
降落 降落 jiang luo; 投降 投降 tou xiang
角度 角度 jiao du; 角色 角色 jue se
教書 教书 jiao shu; 教育 教育 jiao yu
結果 结果 jie guo; 結實 结实 jie shi
解放 解放 jie fang; 解數 解数 xie shu
勁頭 劲头 jin tou; 剛勁 刚劲 gang jing
卡車 卡车 ka che; 關卡 关卡 guan qia
看守 看守 kan shou; 看見 看见 kan jian
可憐 可怜 ke lian; 可汗 可汗 ke han
勒索 勒索 le suo
積累 积累 ji lei; 勞累 劳累 lao lei
測量 测量 ce liang
露水 露水 lu shui; 露面 露面 lou mian
率領 率领 shuai ling; 效率 效率 xiao lv
綠色 绿色 lv se
降落 降落 jiang luo; 落枕 落枕 lao zhen; 丟三落四 丢三落四 diu san la si
埋葬 埋葬 mai zang; 埋怨 埋怨 man yuan
脈搏 脉搏 mai bo; 含情脈脈 含情脉脉 han qing mo mo
沒有 没有 mei you; 沉沒 沉没 chen mo
模型 模型 mo xing; 模樣 模样 mu yang
安寧 安宁 an ning
膀胱 膀胱 pang guang; 肩膀 肩膀 jian bang
炮彈 炮弹 pao dan
噴泉 喷泉 pen quan
片子 片子 pian zi
漂亮 漂亮 piao liang; 漂流 漂流 piao liu
鋪張 铺张 pu zhang
奇怪 奇怪 qi guai; 奇數 奇数 ji shu
強大 强大 qiang da; 倔強 倔强 jue jiang
親人 亲人 qin ren; 親家 亲家 qing jia
歌曲 歌曲 ge qu
散步 散步 san bu
喪失 丧失 sang shi
色彩 色彩 se cai
掃地 扫地 sao di
大廈 大厦 da sha; 廈門 厦门 xia men
宿舍 宿舍 su she
什麼 什么 shen me; 什錦 什锦 shi jin
參加 参加 can jia; 人參 人参 ren shen; 參差 参差 cen ci
相似 相似 xiang si; 似的 似的 shi de
宿舍 宿舍 su she; 星宿 星宿 xing xiu
提高 提高 ti gao; 提防 提防 di fang
跳舞 跳舞 tiao wu
嘔吐 呕吐 ou tu
相信 相信 xiang xin
削弱 削弱 xue ruo; 切削 切削 qie xiao
咽喉 咽喉 yan hou; 嗚咽 呜咽 wu ye
要求 要求 yao qiu
正月 正月 zheng yue
中毒 中毒 zhong du
曾經 曾经 ceng jing; 曾孫 曾孙 zeng sun
差別 差别 cha bie; 出差 出差 chu chai; 參差不齊 参差不齐 cen ci bu qi
剎車 刹车 sha che; 剎那 刹那 cha na
稱呼 称呼 cheng hu; 稱職 称职 chen zhi
處理 处理 chu li
單獨 单独 dan du; 單于 单于 chan yu
盛大 盛大 sheng da; 盛飯 盛饭 cheng fan
石頭 石头 shi tou
識別 识别 shi bie
屬於 属于 shu yu; 屬意 属意 zhu yi
拓展 拓展 tuo zhan; 拓片 拓片 ta pian
薄弱 薄弱 bo ruo
剝削 剥削 bo xue; 剝皮 剥皮 bao pi
屏幕 屏幕 ping mu; 屏息 屏息 bing xi
伯父 伯父 bo fu
鑰匙 钥匙 yao shi
臭味 臭味 chou wei
牲畜 牲畜 sheng chu; 畜牧 畜牧 xu mu
惡心 恶心 e xin; 厭惡 厌恶 yan wu
學校 学校 xue xiao; 校對 校对 jiao dui
給予 给予 ji yu
更新 更新 geng xin
嚇唬 吓唬 xia hu; 恐嚇 恐吓 kong he
劃分 划分 hua fen
假期 假期 jia qi
地殼 地壳 di qiao
論語 论语 lun yu; 論文 论文 lun wen
拗口 拗口 ao kou; 執拗 执拗 zhi niu
玩弄 玩弄 wan nong; 弄堂 弄堂 long tang
瘧疾 疟疾 nve ji
迫切 迫切 po qie; 迫擊炮 迫击炮 pai ji pao
一曝十寒 一曝十寒 yi pu shi han
塞車 塞车 sai che; 要塞 要塞 yao sai
尉遲 尉迟 yu chi
系統 系统 xi tong; 聯繫 联系 lian xi
反省 反省 fan xing; 省份 省份 sheng fen
殷切 殷切 yin qie; 殷紅 殷红 yan hong
軋鋼 轧钢 zha gang; 傾軋 倾轧 qing ya
選擇 选择 xuan ze; 擇菜 择菜 zhai cai
著名 著名 zhu ming; 著急 着急 zhao ji; 睡著 睡着 shui zhao; 著陸 着陆 zhuo lu; 附著 附着 fu zhuo
仔細 仔细 zi xi; 牛仔 牛仔 niu zai
烏龜 乌龟 wu gui; 龜裂 龟裂 jun lie
目的 目的 mu di; 的確 的确 di que
了解 了解 liao jie; 瞭解 了解 liao jie; 了不起 了不起 liao bu qi
火車 火车 huo che
收藏 收藏 shou cang; 西藏 西藏 xi zang
翹首 翘首 qiao shou
蛤蜊 蛤蜊 ge li; 蛤蟆 蛤蟆 ha ma
象徵 象征 xiang zheng
背後 背后 bei hou; 皇后 皇后 huang hou
頭髮 头发 tou fa; 發生 发生 fa sheng
憂鬱 忧郁 you yu
狼藉 狼藉 lang ji; 藉口 藉口 jie kou
覆蓋 覆盖 fu gai; 答覆 答复 da fu
瞭望 瞭望 liao wang; 一目瞭然 一目了然 yi mu liao ran
夥伴 夥伴 huo ban
瀋陽 沈阳 shen yang; 沉沒 沉没 chen mo
朝鮮 朝鲜 chao xian; 朝廷 朝廷 chao ting
因為 因为 yin wei; 行為 行为 xing wei
數學 数学 shu xue
種類 种类 zhong lei; 種地 种地 zhong di
高興 高兴 gao xing; 興奮 兴奋 xing fen
應當 应当 ying dang; 反應 反应 fan ying
轉動 转动 zhuan dong; 轉彎 转弯 zhuan wan
"""
WORDS = [tuple(word.split(" ", 2)) for line in POLYPHONES.split("\n") if line for word in line.split("; ")]


def test_the_table_has_more_than_a_hundred_polyphones() -> None:
    assert POLYPHONES.strip().count("\n") + 1 == 132 and len(WORDS) == 228
    assert sum(traditional != simple for traditional, simple, _ in WORDS) > 100


@pytest.mark.parametrize(("traditional", "simple", "pinyin"), WORDS)
def test_polyphones_are_read_by_their_word_in_both_scripts(
    traditional: str, simple: str, pinyin: str
) -> None:
    assert " ".join(syllables_of(traditional)) == pinyin
    assert " ".join(syllables_of(simple)) == pinyin
    # the beam search over syllables can write both scripts
    for text in (traditional, simple):
        assert all(one in readings_of(c) for c, one in zip(text, pinyin.split(" "), strict=True))


def test_traditional_text_has_the_syllables_of_the_simplified_text() -> None:
    to_traditional = OpenCC("s2t").convert
    phrases = [phrase for phrase in phrases_dict if len(phrase) > 2][::20]
    other_script = [to_traditional(phrase) for phrase in phrases]
    assert sum(a != b for a, b in zip(phrases, other_script, strict=True)) > 500
    read = {
        one: (syllables_of(one), syllables_of(other))
        for one, other in zip(phrases, other_script, strict=True)
    }
    assert [one for one, (simple, traditional) in read.items() if simple != traditional] == []


def test_syllable_tables_and_error_rates_are_the_same_for_both_scripts() -> None:
    pairs = [("他在銀行聽音樂", "他在银行听音乐")]
    assert unit_error_rate(pairs, syllables_of) == 0
    tables = [Vocabulary.of_labels([label], with_syllables=True).syllables for label in pairs[0]]
    assert tables[0] == tables[1]


def test_a_character_keeps_its_reading_if_its_simplified_form_has_no_known_reading() -> None:
    assert simplified("藷") != "藷" and syllables_of("番藷") == ("fan", "shu")


def test_other_characters_are_kept() -> None:
    assert syllables_of("用 GPU 聽") == ("yong", "G", "P", "U", "ting")
