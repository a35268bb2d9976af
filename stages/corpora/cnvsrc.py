"""Reads CN-CVS and the sets of the CNVSRC challenges, in the folders and with the lists of their baselines.

    <root>/cncvs/train.csv  valid.csv  test.csv         the baseline's lists, copied next to the videos
    <root>/cncvs/news/n001/video/n001_00001_001.mp4     also speech/s00001/
    <root>/cnvsrc-multi/train.csv  valid.csv            also cnvsrc-single/
    <root>/cnvsrc-multi/dev/video/80100246.mp4
    <root>/char_units.txt                               or unigram5000_units.txt

A line of a list is the set, the video, the number of its frames, and the text as numbers of units:

    cnvsrc-multi,dev/video/80100246.mp4,74,2791 1382 2083 421 1698 1858 3577 755 39

A line of the units is a unit and its number (`<unk> 1`). char_units.txt belongs to the lists of 2024 and 2025,
unigram5000_units.txt to those of 2023:
https://github.com/sectum1919/CNVSRC2024Baseline (data/, datamodule/char_units.txt),
https://github.com/MKT-Dataoceanai/CNVSRC2023Baseline (data/, preparation/README.md, spm/unigram/).
"""

import re
from collections.abc import Mapping
from pathlib import Path

from shards.errors import CorpusError
from stages.corpora.layout import clip_id_of, counted, lines_of, refused
from stages.corpora.transcript import Transcript, relative_media
from stages.settings import CorpusParams

_SPLITS = ("train", "valid", "test")
_UNITS = ("char_units.txt", "unigram5000_units.txt")
_LINE = re.compile(r"([A-Za-z0-9_-]+),([^,]+),(\d+),((?:\d+(?: \d+)*)?)", re.ASCII)
_UNIT = re.compile(r"(\S+)\s+(\d+)", re.ASCII)
_WORD_START = "▁"
# CN-CVS: n are newsreaders, s are speakers of speeches
_SPEAKER = re.compile(r"(?:news|speech)/([ns]\d+)/", re.ASCII)
_ONE_SPEAKER = "cnvsrc-single"


def read_cnvsrc(corpus: CorpusParams) -> list[Transcript]:
    """Returns the clips of train.csv, valid.csv and test.csv in each folder of the root: id `<set>_<video's name>`.

    CN-CVS names the speaker in the path. In cnvsrc-single all clips are of one speaker, in cnvsrc-multi it is unknown.

    Raises CorpusError where there is no list, or a line or a unit is wrong.
    """
    root = Path(corpus.root)
    lists = [
        (path, split)
        for folder in sorted(folder for folder in root.iterdir() if folder.is_dir())
        for split in _SPLITS
        if (path := folder / f"{split}.csv").is_file()
    ]
    if not lists:
        raise CorpusError(
            f"{root} has no folder with train.csv, valid.csv or test.csv; copy the lists of the CNVSRC baseline "
            "(data/cncvs, data/cnvsrc-multi, …) into the folders of the same names"
        )
    clips = []
    units: dict[Path, Mapping[int, str]] = {}
    for path, split in lists:
        if path.parent not in units:
            units[path.parent] = _units_of(path.parent)
        for where, line in lines_of(path):
            match = _LINE.fullmatch(line)
            if match is None or match[1] != path.parent.name:
                raise refused(
                    where,
                    line,
                    f"set,video,frames,units of the set {path.parent.name}, for example "
                    "cnvsrc-multi,dev/video/80100246.mp4,74,2791 1382 2083",
                )
            dataset, video, _, numbers = match.groups()
            speaker = _SPEAKER.match(video)
            clips.append(
                Transcript(
                    clip_id=clip_id_of(f"{dataset}_{Path(video).stem}"),
                    split=split,
                    speaker=speaker[1] if speaker else _ONE_SPEAKER if dataset == _ONE_SPEAKER else None,
                    gender=None,
                    age=None,
                    topic=None,
                    media=relative_media(f"{dataset}/{video}", root),
                    text=_text(numbers, units[path.parent], where),
                    where=where,
                )
            )
    return counted(clips, root, sorted({path.parent.name for path, _ in lists}))


def _units_of(folder: Path) -> dict[int, str]:
    """Returns the units by number, from a file in the folder of the set or in the root."""
    for place in (folder, folder.parent):
        found = [place / name for name in _UNITS if (place / name).is_file()]
        if len(found) > 1:
            raise CorpusError(f"{place} has {' and '.join(_UNITS)}; keep the one that belongs to the lists")
        if found:
            break
    else:
        raise CorpusError(
            f"{folder.parent} has neither {' nor '.join(_UNITS)}, which turn the numbers of the lists into "
            "text; copy it from the CNVSRC baseline whose lists these are"
        )
    units: dict[int, str] = {}
    for where, line in lines_of(found[0]):
        match = _UNIT.fullmatch(line)
        if match is None or int(match[2]) in units:
            raise refused(where, line, "a unit and its number, each number once, for example 的 803")
        units[int(match[2])] = match[1]
    return units


def _text(numbers: str, units: Mapping[int, str], where: str) -> str:
    unknown = next((number for number in numbers.split() if int(number) not in units), None)
    text = "".join(units.get(int(number), "") for number in numbers.split())
    # the first unit of a sentence begins a word; the numbers of another list give nonsense
    other_units = bool(text) and _WORD_START in units.values() and not text.startswith(_WORD_START)
    if unknown is not None or other_units:
        fault = f"number {unknown} is not" if unknown is not None else f"{text[:20]!r} is no sentence"
        raise CorpusError(
            f"{where}: {fault} in the units of this set; use the units of the same baseline as the lists: "
            f"{_UNITS[0]} (2024, 2025) or {_UNITS[1]} (2023)"
        )
    return text.replace(_WORD_START, " ").replace("<space>", " ").strip()
