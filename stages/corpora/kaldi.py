"""Reads data folders of Kaldi, also of ESPnet and others: one folder a split, with one line an utterance.

    <root>/data/train/video.scp   recording and the path of its video; else wav.scp
    <root>/data/train/segments    utterance, recording, start and end in seconds; -1: the end of the recording
    <root>/data/train/text        utterance and its words
    <root>/data/train/utt2spk     utterance and its speaker

Without segments each recording is an utterance. https://kaldi-asr.org/doc/data_prep.html describes the files, and
https://github.com/kaldi-asr/kaldi/blob/master/src/featbin/extract-segments.cc the -1.
"""

import glob
import logging
from pathlib import Path

from shards.errors import CorpusError
from stages.corpora.layout import (
    clip_id_of,
    counted,
    lines_of,
    refused,
    split_of_name,
    video_path,
    with_splits,
)
from stages.corpora.table import UNSPLIT, time_s
from stages.corpora.transcript import Transcript
from stages.settings import CorpusParams

_log = logging.getLogger(__name__)

_RECORDINGS = ("video.scp", "wav.scp")

_Rows = dict[str, tuple[str, str]]
"""The first word of a line → (`file:line`, the rest)."""


def read_kaldi(corpus: CorpusParams) -> list[Transcript]:
    """Returns the utterances of each folder with a file `text` that matches `corpus.table` (`data/*`).

    A folder is named after its split: train, dev, test_clean; where none is, the clips are split by a seed.
    Paths of videos are relative to the root. A speaker who has the name of the utterance is unknown, as in Kaldi.

    Raises CorpusError where no folder is found, a line is malformed or given twice, or a recording is a command.
    """
    root = Path(corpus.root)
    found = sorted(glob.glob(corpus.table, root_dir=root))  # noqa: PTH207 (Path.glob raises for odd patterns)
    folders = [root / name for name in found if (root / name / "text").is_file()]
    if not folders:
        raise CorpusError(
            f"no folder that matches {root / corpus.table} has a file text; set corpus.table to the data folders, for "
            "example data/*, absolute or relative to corpus.root"
        )
    clips = [clip for folder in folders for clip in _clips_in(folder, root)]
    return counted(with_splits(clips, corpus, root), root)


def _clips_in(folder: Path, root: Path) -> list[Transcript]:
    media = next((name for name in _RECORDINGS if (folder / name).is_file()), None)
    if media is None:
        raise CorpusError(
            f"{folder} has neither {' nor '.join(_RECORDINGS)}; write video.scp: in each line the name of a recording "
            "and the path of its video, relative to corpus.root"
        )
    recordings = _rows(folder / media)
    texts, speakers, segments = (
        _rows(folder / name) if (folder / name).is_file() else {} for name in ("text", "utt2spk", "segments")
    )
    utterances = segments or recordings
    if unknown := [name for name in speakers if name not in utterances and name not in texts]:
        _log.warning(
            "%s: utt2spk has %d utterances that are in no other file: %s", folder, len(unknown), unknown[0]
        )
    for name, (where, speaker) in speakers.items():
        if not speaker:
            raise refused(where, name, "utterance and speaker")
    clips = []
    for utterance in dict.fromkeys([*utterances, *texts]):
        where, rest = utterances.get(utterance) or texts[utterance]
        recording, start_s, end_s = utterance, None, None
        if utterance in segments:
            recording, start_s, end_s = _segment(where, rest)
            if recording not in recordings:
                raise CorpusError(
                    f"{where}: recording {recording} is not in {folder / media}; add it, or remove the line"
                )
        speaker = speakers.get(utterance, ("", ""))[1]
        clips.append(
            Transcript(
                clip_id=clip_id_of(utterance),
                split=split_of_name(folder.name) or UNSPLIT,
                speaker=speaker if speaker != utterance else None,
                gender=None,
                age=None,
                topic=None,
                media=_video(*recordings[recording], root) if recording in recordings else "",
                text=texts.get(utterance, ("", ""))[1],
                where=where,
                start_s=start_s,
                end_s=end_s,
            )
        )
    return clips


def _rows(path: Path) -> _Rows:
    rows: _Rows = {}
    for where, line in lines_of(path):
        name, *rest = line.split(maxsplit=1)
        if name in rows:
            raise CorpusError(f"{where}: {name} already occurs at {rows[name][0]}; remove one of the lines")
        rows[name] = where, rest[0] if rest else ""
    return rows


def _segment(where: str, rest: str) -> tuple[str, float | None, float | None]:
    fields = rest.split()
    # a fourth field is the audio channel
    if len(fields) not in (3, 4):
        raise refused(where, rest, "recording, start and end, for example rec1 1.10 2.36")
    recording, start, end = fields[:3]
    start_s = time_s("start", start, where) or None
    end_s = None if end in ("-1", "-1.0") else time_s("end", end, where)
    if end_s is not None and end_s <= (start_s or 0):
        raise CorpusError(f"{where}: end {end} is not after start {start}; correct the times")
    return recording, start_s, end_s


def _video(where: str, path: str, root: Path) -> str:
    if path.endswith("|") or not path:
        raise refused(where, path, "the path of a video, not a command")
    return video_path(path, root, where, "list the videos in video.scp")
