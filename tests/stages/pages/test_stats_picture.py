"""The picture of stage stats: its texts, its axes, and what stays when it cannot be written."""

import resource
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from shards.errors import DiskError
from shards.files import table_from_rows, write_table
from shards.schema import CLIPS
from stages.stats import stats
from tests.support.stats_tables import clip, crop, run


def texts_of_picture(folder: Path) -> list[str]:
    root = ElementTree.parse(folder / "stats" / "stats.svg").getroot()
    assert root.tag.endswith("svg") and float(root.attrib["width"].removesuffix("pt")) == 900
    return [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_picture_is_an_svg_that_tells_what_is_not_known(tmp_path: Path) -> None:
    labels = [clip("a", "train", "你好", "s1"), clip("b", "odd-split", "", None)]
    run(tmp_path, labels, None, None)
    texts = texts_of_picture(tmp_path)
    for text in ("Hours of video", "not known before `pipeline crop`", "train, mean 2", "odd-split"):
        assert text in texts


def test_an_axis_within_a_factor_of_ten_has_numbers(tmp_path: Path) -> None:
    """Character shares of 30 and 20 % lie between two powers of 10, the only numbers of a long logarithmic axis."""
    run(tmp_path, [clip("a", "train", "一二三一二四一二一三", "s1")], None, None)
    texts = texts_of_picture(tmp_path)
    vertical = texts[texts.index("% of the split’s characters") + 1 : texts.index("rank")]
    assert [text for text in vertical if 20 <= float(text) <= 30] == ["20", "30"]


def test_the_picture_escapes_and_shortens_names_of_many_splits(tmp_path: Path) -> None:
    names = ["train", '<b>&"', "a\n\x1b[1m", "很" * 60, *(f"split-{number}" for number in range(9))]
    clips = [clip(f"c{number}", name, "好" * (number + 1)) for number, name in enumerate(names)]
    run(tmp_path, clips, [crop(f"c{number}", 9 + number) for number in range(len(names))], None)
    texts = texts_of_picture(tmp_path)
    for name in ('<b>&"', r"a\n\x1b[1m", "split-8"):
        assert f"{name}, 0 speakers" in texts and name in texts
    (shortened,) = (text for text in texts if text.startswith("很") and text.endswith(" speakers"))
    assert "…" in shortened and len(shortened) < 40


def test_stats_that_cannot_be_finished_leave_the_former_ones_whole(tmp_path: Path) -> None:
    """The picture is larger than a file may be here, and all else is smaller."""
    for number, label in enumerate(("字", "母")):
        rows = [clip(f"c{split}", f"split-{split}", label * 60) for split in range(12)]
        write_table(tmp_path / f"{number}.parquet", table_from_rows(rows, CLIPS), CLIPS)
    stats(tmp_path / "0.parquet", None, None, tmp_path / "stats")
    former = {path.name: path.read_bytes() for path in (tmp_path / "stats").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(former["stats.svg"]) // 2, hard))
    try:
        with pytest.raises(DiskError, match=r"stats\.svg cannot be written \(File too large\)"):
            stats(tmp_path / "1.parquet", None, None, tmp_path / "stats")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in (tmp_path / "stats").iterdir()} == former
