"""Reads manifests of JSON lines: NeMo's, lhotse's cuts and supervisions, and similar ones.

A line of a plain manifest is one clip; these names are known, and only a video is needed:

| content | names |
|---|---|
| video | video_filepath, video_path, video, media, audio_filepath (if it is a video) |
| transcript | text |
| part of the video, s | offset or start; duration or end |
| clip id | id, clip_id, utt_id |
| speaker | speaker, speaker_id |
| the same as in a table | gender, age, topic, split, confidence |
| sound, next to a video | audio_filepath |

https://docs.nvidia.com/nemo/curator/main/about/concepts/audio/manifests-ingest and
https://docs.nvidia.com/deeplearning/dali/user-guide/docs/operations/nvidia.dali.fn.readers.nemo_asr.html (offset).

A cut of lhotse gives a clip for each of its supervisions, whose start counts from the start of the cut. A supervision
names its recording, which is in the file of the same name with `recordings` instead of `supervisions`.
https://lhotse.readthedocs.io/en/latest/cuts.html and corpus.html.
"""

import glob
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from shards.errors import CorpusError
from stages.corpora.layout import clip_id_of, counted, lines_of, split_of_name, video_path, with_splits
from stages.corpora.table import LIKE_TIMES, UNSPLIT, age, confidence, time_s
from stages.corpora.transcript import Transcript, relative_media
from stages.settings import CorpusParams

_log = logging.getLogger(__name__)

_VIDEO = ("video_filepath", "video_path", "video", "media")
_SOUND = "audio_filepath"
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "clip_id": ("id", "clip_id", "utt_id"),
    "text": ("text",),
    "start": ("offset", "start"),
    "duration": ("duration",),
    "end": ("end",),
    "speaker": ("speaker", "speaker_id"),
    "gender": ("gender",),
    "age": ("age",),
    "topic": ("topic",),
    "split": ("split",),
    "confidence": ("confidence",),
}
_KNOWN = {_SOUND, *_VIDEO, *(name for names in _FIELDS.values() for name in names)}
_CUTS = ("MonoCut", "MultiCut")

_Row = Mapping[str, Any]


def read_manifest(corpus: CorpusParams) -> list[Transcript]:
    """Returns the clips of the files that match `corpus.table`, for example `manifests/*.jsonl`; also packed (.gz).

    The split of a clip is its field `split`, or the file is named after it (train_manifest.json, cuts_dev.jsonl.gz);
    where neither is given for any clip, the clips are split by a seed. Raises CorpusError, which names file and line,
    for a malformed line.
    """
    root = Path(corpus.root)
    found = sorted(glob.glob(corpus.table, root_dir=root, recursive=True))  # noqa: PTH207 (Path.glob raises)
    paths = [root / name for name in found if "recordings" not in Path(name).name]
    if not paths:
        raise CorpusError(
            f"no file matches {root / corpus.table}; set corpus.table to the manifest, or to a pattern such as "
            "manifests/*.jsonl, absolute or relative to corpus.root"
        )
    clips: list[Transcript] = []
    ignored = Counter[str]()
    for path in paths:
        split = split_of_name(path.name) or UNSPLIT
        recordings: dict[str, str] | None = None
        for where, row in _objects(path):
            if "supervisions" in row or row.get("type") in (*_CUTS, "MixedCut", "PaddingCut"):
                clips += _clips_of_cut(row, root, split, where)
            elif "recording_id" in row:
                recordings = _recordings(path, root, where) if recordings is None else recordings
                video = recordings.get(_value(row, "recording_id", where))
                if video is None:
                    raise CorpusError(
                        f"{where}: recording {row['recording_id']!r} is in no recordings file; add it, or remove "
                        "the line"
                    )
                clips.append(_clip(row, video, root, split, where))
            else:
                ignored.update(_unknown(row, where))
                video = _video(row, root, where)
                sound = relative_media(_value(row, _SOUND, where), root)
                clip = _clip(row, video, root, split, where)
                clips.append(clip if sound in ("", video) else replace(clip, audio=sound))
    if ignored:
        _log.warning("fields %s are not known and are ignored", ", ".join(sorted(ignored)))
    return counted(with_splits(clips, corpus, root), root)


def _objects(path: Path) -> Iterator[tuple[str, _Row]]:
    for where, line in lines_of(path):
        try:
            row = json.loads(line, parse_constant=_refused, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise CorpusError(
                f"{where}: this is not JSON ({str(error)[:80]}); a manifest has one object a line"
            ) from error
        if not isinstance(row, dict):
            raise CorpusError(
                f"{where}: a manifest has one object a line, for example {{...}}, not {line[:40]}"
            )
        yield where, row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(row := dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return row


def _refused(number: str) -> NoReturn:
    raise ValueError(f"{number} is not a number")


def _value(row: _Row, name: str, where: str) -> str:
    """Returns a field as text, empty where it is missing or null."""
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise CorpusError(f"{where}: {name} must be a text or a number, not {str(value)[:40]}")
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        raise CorpusError(f"{where}: {name} has half a character (a surrogate); write it as UTF-8") from error
    return str(value).strip()


def _field(row: _Row, field: str, where: str) -> str:
    given = [name for name in _FIELDS[field] if row.get(name) is not None]
    if len(given) > 1:
        raise CorpusError(f"{where}: {' and '.join(given)} are the same; keep one of them")
    return _value(row, given[0], where) if given else ""


def _time_s(row: _Row, field: str, where: str) -> float | None:
    text = _field(row, field, where)
    return time_s(next((name for name in _FIELDS[field] if name in row), field), text, where)


def _video(row: _Row, root: Path, where: str) -> str:
    given = [name for name in _VIDEO if _value(row, name, where)]
    if len(given) > 1:
        raise CorpusError(f"{where}: {' and '.join(given)} are the same; keep one of them")
    path = _value(row, given[0] if given else _SOUND, where)
    return video_path(path, root, where, "name the video in video_filepath")


def _unknown(row: _Row, where: str) -> list[str]:
    unknown = [name for name in row if name not in _KNOWN]
    for name in unknown:
        if LIKE_TIMES.fullmatch("".join(filter(str.isalnum, name)).casefold()):
            raise CorpusError(
                f"{where}: {name} may be a time of the part: name the times offset and duration, or start and "
                "end, in seconds; give a field of other content another name"
            )
    return unknown


def _clip(row: _Row, media: str, root: Path, split: str, where: str, cut_start_s: float = 0.0) -> Transcript:
    times = {name: _time_s(row, name, where) for name in ("start", "duration", "end")}
    start_s = round(cut_start_s + (times["start"] or 0.0), 6)
    end_s = times["end"]
    if times["duration"] is not None:
        if end_s is not None:
            raise CorpusError(f"{where}: duration and end are the same; keep one of them")
        end_s = round(start_s + times["duration"], 6)
    if end_s is not None and end_s <= start_s:
        raise CorpusError(f"{where}: the part from {start_s:g} s to {end_s:g} s is empty; correct its times")
    name = _field(row, "clip_id", where)
    if not name:
        # the name does not depend on the line, so that a seeded split stays when lines are added
        stem = str(PurePosixPath(media).with_suffix("")).replace("/", "_")
        name = f"{stem}_{round(1000 * start_s):06d}" if start_s else stem
    return Transcript(
        clip_id=clip_id_of(name),
        split=_field(row, "split", where) or split,
        speaker=_field(row, "speaker", where) or None,
        gender=_field(row, "gender", where) or None,
        age=age(_field(row, "age", where), where),
        topic=_field(row, "topic", where) or None,
        media=media,
        text=_field(row, "text", where),
        where=where,
        start_s=start_s or None,
        end_s=end_s,
        confidence=confidence(_field(row, "confidence", where), where),
    )


def _clips_of_cut(cut: _Row, root: Path, split: str, where: str) -> Iterator[Transcript]:
    recording, supervisions = cut.get("recording"), cut.get("supervisions")
    if cut.get("type", _CUTS[0]) not in _CUTS or not isinstance(recording, dict):
        raise CorpusError(
            f"{where}: only cuts of one recording ({', '.join(_CUTS)}) have a video; {cut.get('type', 'this cut')} "
            "has none"
        )
    if not isinstance(supervisions, list) or not all(isinstance(one, dict) for one in supervisions):
        raise CorpusError(f"{where}: supervisions must be a list of objects")
    media = _source(recording, root, where)
    start_s = time_s("start", _value(cut, "start", where), where) or 0.0
    for supervision in supervisions:
        yield _clip(supervision, media, root, split, where, start_s)
    if not supervisions:
        yield _clip({**cut, "text": None}, media, root, split, where)


def _recordings(path: Path, root: Path, where: str) -> dict[str, str]:
    """Returns recording → its video."""
    other = path.with_name(path.name.replace("supervisions", "recordings"))
    if other == path:
        raise CorpusError(
            f"{where}: this line names a recording; a file of supervisions must have `supervisions` in its name, and "
            "the file of the recordings must have the same name with `recordings`"
        )
    return {_value(row, "id", line): _source(row, root, line) for line, row in _objects(other)}


def _source(recording: _Row, root: Path, where: str) -> str:
    """Returns the video of a recording of lhotse."""
    sources = recording.get("sources")
    source = sources[0] if isinstance(sources, list) and len(sources) == 1 else None
    if not isinstance(source, dict) or source.get("type") != "file":
        raise CorpusError(f'{where}: a recording must have one source of type "file", a video')
    return video_path(_value(source, "source", where), root, where, "make the recording of the video")
