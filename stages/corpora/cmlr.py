"""Reads CMLR (Chinese Mandarin Lip Reading), as published: lists, videos and texts in three folders.

    <root>/train.csv  val.csv  test.csv       a clip a line: s5/20151009_section_3_030.36_032.65
    <root>/video/s5/20151009/section_3_030.36_032.65.mp4
    <root>/text/s5/20151009/section_3_030.36_032.65.txt

The first line of a text is the sentence. The lines below it are the times of its words, and pinyin in some copies.
The corpus: https://vipazoo.cn/CMLR.html (11 speakers, 102,072 sentences; all speakers are in all splits).
"""

import re
from pathlib import Path

from shards.errors import CorpusError
from stages.corpora.layout import counted, lines_of, refused, text_of_clip
from stages.corpora.transcript import Transcript
from stages.settings import CorpusParams

_SPLITS = {"train.csv": "train", "val.csv": "valid", "test.csv": "test"}
_CLIP = re.compile(r"(s\d+)/(\d{8})_(section_\d+_\d+\.\d+_\d+\.\d+)", re.ASCII)
_HAN = re.compile("[\u3400-\u9fff\U00020000-\U0003ffff]")


def read_cmlr(corpus: CorpusParams) -> list[Transcript]:
    """Returns the clips of the three lists: id `s5_20151009_section_3_030-36_032-65`, speaker `s5`.

    Raises CorpusError for a missing list, a malformed line, or a text that does not begin with Chinese.
    """
    root = Path(corpus.root)
    if missing := [name for name in _SPLITS if not (root / name).is_file()]:
        raise CorpusError(
            f"{root} has no {' and no '.join(missing)}; set corpus.root to the folder of CMLR, with "
            "train.csv, val.csv, test.csv, video/ and text/"
        )
    clips = []
    for name, split in _SPLITS.items():
        for where, line in lines_of(root / name):
            if (match := _CLIP.fullmatch(line)) is None:
                raise refused(
                    where, line, "speaker/date_section, for example s5/20151009_section_3_030.36_032.65"
                )
            speaker, date, section = match.groups()
            text_file = f"text/{speaker}/{date}/{section}.txt"
            sentence = (text_of_clip(corpus, text_file) or "").strip().split("\n")[0].strip()
            if sentence and not _HAN.search(sentence):
                raise refused(f"{root / text_file}:1", sentence, "the sentence in Chinese characters")
            clips.append(
                Transcript(
                    clip_id=f"{speaker}_{date}_{section.replace('.', '-')}",
                    split=split,
                    speaker=speaker,
                    gender=None,
                    age=None,
                    topic=None,
                    media=f"video/{speaker}/{date}/{section}.mp4",
                    text=sentence,
                    where=where,
                )
            )
    return counted(clips, root, ["video"])
