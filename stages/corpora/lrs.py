"""Reads LRS2 and LRS3 (Lip Reading Sentences), as published.

    LRS3: <root>/pretrain|trainval|test/<talk>/00001.mp4 and 00001.txt
    LRS2: <root>/pretrain.txt  train.txt  val.txt  test.txt     a clip a line: 5535415699068794046/00001
          <root>/mvlrs_v1/pretrain|main/<broadcast>/00001.mp4 and 00001.txt; also without mvlrs_v1/

A text begins with the line `Text:  THE WORDS IN CAPITALS`. Below may follow `Conf:  4`, and the time of each word under
`WORD START END ASDSCORE`, by which crop.split_long cuts long clips.

https://www.robots.ox.ac.uk/~vgg/data/lip_reading/lrs2.html and lrs3.html; the lists of LRS2 are read as by
https://github.com/mpc001/auto_avsr/blob/main/preparation/preprocess_lrs2lrs3.py.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from shards.errors import CorpusError
from stages.corpora.layout import counted, lines_of, refused, text_of_clip
from stages.corpora.table import UNSPLIT, with_seeded_split
from stages.corpora.timed import LRS_WORDS
from stages.corpora.transcript import Transcript
from stages.settings import CorpusParams

_log = logging.getLogger(__name__)

_LRS3_FOLDERS = ("pretrain", "trainval", "test")
_LRS2_LISTS = {
    "pretrain.txt": ("pretrain", "train"),
    "train.txt": ("main", "train"),
    "val.txt": ("main", "valid"),
    "test.txt": ("main", "test"),
}
# a tag of the test list follows the clip
_LISTED = re.compile(r"([A-Za-z0-9_-]+/[A-Za-z0-9_-]+)(?:\s+[A-Z]+)?", re.ASCII)


def read_lrs3(corpus: CorpusParams) -> list[Transcript]:
    """Returns every clip with a video or a text: id `pretrain_<talk>_00001`; the talk is the speaker.

    LRS3 has no validation split, and pretrain and trainval share talks: `corpus.valid_fraction` of the clips of both,
    whole talks, are `valid`. Raises CorpusError where no folder is found, or a text does not begin with `Text:`.
    """
    root = Path(corpus.root)
    folders = _found(root, _LRS3_FOLDERS, "LRS3")
    clips = [
        _clip(
            corpus,
            f"{folder}/{talk}/{name}",
            "test" if folder == "test" else UNSPLIT,
            talk,
            f"{root / folder / talk / name}.txt:1",
        )
        for folder in folders
        for talk, name in _clips_in(root / folder)
    ]
    test = [clip for clip in clips if clip.split == "test"]
    rest = [clip for clip in clips if clip.split == UNSPLIT]
    if rest:
        rest = with_seeded_split(rest, corpus.model_copy(update={"test_fraction": 0.0}), root)
    return counted([*rest, *test], root)


def read_lrs2(corpus: CorpusParams) -> list[Transcript]:
    """Returns the clips of the lists: id `main_<broadcast>_00001`, without a speaker, since LRS2 names none.

    Raises CorpusError where no list is found, a line is malformed, or a text does not begin with `Text:`.
    """
    root = Path(corpus.root)
    base = "mvlrs_v1/" if (root / "mvlrs_v1").is_dir() else ""
    clips = []
    for name in _found(root, tuple(_LRS2_LISTS), "LRS2"):
        folder, split = _LRS2_LISTS[name]
        for where, line in lines_of(root / name):
            if (match := _LISTED.fullmatch(line)) is None:
                raise refused(where, line, "broadcast/clip, for example 5535415699068794046/00001")
            clips.append(_clip(corpus, f"{base}{folder}/{match[1]}", split, None, where))
    return counted(clips, root, [f"{base}pretrain", f"{base}main"])


def _found(root: Path, names: tuple[str, ...], corpus: str) -> list[str]:
    found = [name for name in names if (root / name).exists()]
    if not found:
        raise CorpusError(f"{root} has none of {', '.join(names)}; set corpus.root to the folder of {corpus}")
    if missing := [name for name in names if name not in found]:
        _log.warning("%s has no %s: these clips of %s are left out", root, " and no ".join(missing), corpus)
    return found


def _clips_in(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields talk and name of each clip, sorted."""
    for talk in sorted(path for path in folder.iterdir() if path.is_dir()):
        names = {path.stem for path in talk.iterdir() if path.suffix.lower() in (".mp4", ".txt")}
        yield from ((talk.name, name) for name in sorted(names))


def _clip(corpus: CorpusParams, path: str, split: str, speaker: str | None, where: str) -> Transcript:
    text_file = f"{path}.txt"
    content = text_of_clip(corpus, text_file) or ""
    first = content.lstrip().split("\n")[0]
    if first and not first.startswith("Text:"):
        raise refused(f"{Path(corpus.root) / text_file}:1", first, "the text of a clip: Text:  THE WORDS")
    return Transcript(
        clip_id=path.removeprefix("mvlrs_v1/").replace("/", "_"),
        split=split,
        speaker=speaker,
        gender=None,
        age=None,
        topic=None,
        media=f"{path}.mp4",
        text=first.removeprefix("Text:").strip(),
        where=where,
        times=text_file if LRS_WORDS in content else None,
    )
