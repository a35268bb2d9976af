"""The limit of characters per second, by script and at speaking rates of people."""

from pathlib import Path

import pytest

from model.settings import TextParams
from model.text import normalise
from shards.schema import Reason
from stages.clips.clip_work import Clip, crop_one, spoken_syllables
from stages.settings import CropParams
from tests.support.videos import write_mouth

PARAMS = CropParams()
SPOKEN = {
    # text, and the characters per second at which a public corpus has it
    "english": (
        "when the sunlight strikes raindrops in the air they act as a prism and form a rainbow",
        14.7,
    ),
    "italian": (
        "il vento di tramontana e il sole discutevano un giorno su chi dei due fosse il più forte",
        17.0,
    ),
    "arabic": ("كانت ريح الشمال تتجادل والشمس في أي منهما كانت أقوى من الأخرى وإذ بمسافر يطلع", 18.0),
    "voweled": ("كَانَتْ رِيحُ الشَّمَالِ تَتَجَادَلُ وَالشَّمْسَ فِي أَيٍّ مِنْهُمَا كَانَتْ أَقْوَى", 27.0),
    "korean": ("바람과햇님이서로힘이더세다고다투고있을때한나그네가따뜻한외투를입고걸어왔습니다", 8.0),
    "japanese": ("あるときたいようときたかぜがちからくらべをすることになりました", 8.5),
    "mandarin": ("有一次北风和太阳正在争论谁比较有本事正好看到有个人走过", 7.0),
    "mixed": ("我们用Transformer模型在GPU上训练了2024年的数据", 9.0),
}


def rejection(folder: Path, label: str, seconds: float, **params: float) -> tuple[str | None, str | None]:
    folder.mkdir(exist_ok=True)
    write_mouth(folder / "a.mp4", round(25 * seconds))
    clip = Clip("a", str(folder), "a.mp4", "mouth", label, len(label))
    row = crop_one(clip, PARAMS.model_copy(update=params), folder / "cache").crop_row
    return row["reason"], row["detail"]


@pytest.mark.parametrize("name", SPOKEN)
def test_speech_is_accepted_but_not_ten_seconds_of_it_in_three(tmp_path: Path, name: str) -> None:
    text, chars_per_s = SPOKEN[name]
    label = normalise(text, TextParams())
    seconds = len(label) / chars_per_s
    assert rejection(tmp_path / "right", label, seconds) == (None, None)
    cut = label * 4
    reason, detail = rejection(tmp_path / "cut", cut, len(cut) / chars_per_s * 0.3)
    assert reason == Reason.LABEL_TOO_LONG
    assert (
        detail is not None
        and "crop.max_chars_per_s is 12 " in detail
        and detail.endswith("check whether the video is truncated")
    )


@pytest.mark.parametrize("limit", [4.0, 12.0, 7.3])
def test_the_limit_for_syllabic_signs_is_the_setting(tmp_path: Path, limit: float) -> None:
    most = int(limit * 2)  # in two seconds
    for sign in "字あア한7":
        assert rejection(tmp_path, sign * most, 2.0, max_chars_per_s=limit)[0] is None
        assert rejection(tmp_path, sign * (most + 1), 2.0, max_chars_per_s=limit)[0] == Reason.LABEL_TOO_LONG


def test_a_cut_video_is_suspected_only_if_nobody_speaks_so_fast(tmp_path: Path) -> None:
    for num, is_suspected in ((10, False), (20, False), (21, True)):
        reason, detail = rejection(tmp_path, "字" * num, 2.0, max_chars_per_s=4.0)
        assert reason == Reason.LABEL_TOO_LONG and detail is not None
        assert "crop.max_chars_per_s is 4 (syllabic signs; 10 letters)" in detail
        assert ("whether the video is truncated" in detail) is is_suspected


def test_only_spoken_characters_count() -> None:
    assert spoken_syllables("字 字，字") == 3
    assert spoken_syllables("abcde fghij") == 4
    assert spoken_syllables("كَ") == spoken_syllables("ك") == pytest.approx(0.4)
    assert spoken_syllables("２０ 字 ab") == pytest.approx(3.8)
    assert spoken_syllables("… -'") == 0
