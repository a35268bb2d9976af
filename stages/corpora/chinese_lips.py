"""Reads Chinese-LiPS: three CSVs and their videos, in the raw, the processed, or the older trainer's layout."""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.errors import ClipRejected, CorpusError
from stages.corpora.csv_rows import read_csv
from stages.corpora.transcript import Transcript, leaves_root, relative_media
from stages.videos.zip_directory import zip_members

_log = logging.getLogger(__name__)

HEADER = ("ID", "TOPIC", "WAV", "PPT", "FACE", "TEXT")
OLDER_HEADER = ("file_id", "category", "wav_path", "ppt_path", "face_path", "text")
# speaker, age, gender, topic, number
_ID = re.compile(r"(\d+)_(\d{1,3})_([MF])_([A-Z]+)_\d+", re.ASCII)

# the CSVs say valid where the official zips say val
_SPLIT_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "processed_train"),
    "valid": ("valid", "val", "processed_val", "processed_valid"),
    "test": ("test", "processed_test"),
}
# their files may have the same names as the face videos
_OTHER_MEDIA_FOLDERS = frozenset({"PPT", "WAV"})


def read_chinese_lips(root: Path, follow_links: bool = False) -> list[Transcript]:
    """Returns the rows of meta_train.csv, meta_valid.csv and meta_test.csv below `root`.

    A video is found by the CSV's path (relative to `root`), else as `<ID>.mp4` or `<ID>_FACE.mp4` anywhere
    below `root`; of several, the one in a folder of its split (train/, val/, processed_test/, …). A video that is in no
    folder is searched in the same ways in the official zips in `root` (train.zip, processed_val.zip, …).
    So a table with another machine's absolute paths can be read too. Where no file is found, the path stays as given,
    or points into the zip of its split if that is damaged, so that crop reports it. An ID gives speaker, age, gender
    and topic; under the older header an ID of another form is allowed, and leaves speaker, age and gender unknown.

    Raises CorpusError where a CSV is missing or wrong, or two videos match one clip.
    """
    index: dict[str, list[str]] | None = None
    zips: _Zips | None = None
    transcripts = []
    for split in _SPLIT_FOLDERS:
        path = root / f"meta_{split}.csv"
        if not path.is_file():
            raise CorpusError(
                f"{path} is missing; copy meta_train.csv, meta_valid.csv and meta_test.csv of Chinese-LiPS "
                f"into corpus.root (a split without clips needs a CSV with only the header)"
            )
        for where, row in read_csv(path, _check_header):
            older = "file_id" in row
            clip_id, topic, _, _, face, text = (row[name] for name in (OLDER_HEADER if older else HEADER))
            clip_id = clip_id.strip()
            match = _ID.fullmatch(clip_id)
            if match is None and not older:
                raise CorpusError(
                    f"{where}: ID {clip_id!r} must have the form speaker_age_gender_TOPIC_number, "
                    f"for example 012_25_F_KJ_003"
                )
            media = relative_media(face.strip(), root)
            # Path.is_file raises at a name too long for the file system; one row must not stop the others
            if leaves_root(media) or not (media and os.path.isfile(root / media)):  # noqa: PTH113
                if index is None or zips is None:
                    index, zips = _index_videos(root, follow_links), _index_zips(root)
                media = (
                    _find(clip_id, split, index, where)
                    or zips.find(clip_id, media, split, where)
                    or media
                    or f"{clip_id}.mp4"
                )
            transcripts.append(
                Transcript(
                    clip_id=clip_id,
                    split=split,
                    speaker=match[1] if match else None,
                    gender=match[3] if match else None,
                    age=int(match[2]) if match else None,
                    topic=match[4] if match else topic.strip() or None,
                    media=media,
                    text=text,
                    where=where,
                )
            )
    return transcripts


def _check_header(header: Sequence[str]) -> str | None:
    if tuple(header) in (HEADER, OLDER_HEADER):
        return None
    return f"header {','.join(header)} should be {','.join(HEADER)} (or the older {','.join(OLDER_HEADER)})"


def _index_videos(root: Path, follow_links: bool) -> dict[str, list[str]]:
    """Returns clip id → possible videos, as paths relative to `root`, sorted; walks the tree once."""
    index = defaultdict(list)
    walked = set()
    for folder, folders, files in os.walk(root, followlinks=follow_links):
        # links may form a loop
        if (real := os.path.realpath(folder)) in walked:
            folders.clear()
            continue
        walked.add(real)
        folders[:] = sorted(name for name in folders if name not in _OTHER_MEDIA_FOLDERS)
        below = Path(folder).relative_to(root)
        if links := [
            str(below / name) for name in folders if not follow_links and (Path(folder) / name).is_symlink()
        ]:
            _log.warning(
                "videos in %s are not searched, since these are links; to search them, set corpus.follow_links to true",
                ", ".join(links),
            )
        for name in sorted(files):
            if (clip_id := _clip_id_of(name)) is not None:
                index[clip_id].append((below / name).as_posix())
    return index


def _clip_id_of(name: str) -> str | None:
    """Returns the clip that a file of this name would belong to."""
    stem, extension = os.path.splitext(name)  # noqa: PTH122 - a Path for each of 100,000 files is slow
    return stem.removesuffix("_FACE") if extension.lower() == ".mp4" else None


def _find(clip_id: str, split: str, index: Mapping[str, list[str]], where: str) -> str | None:
    folders = _SPLIT_FOLDERS[split]
    return _only(
        clip_id,
        index.get(clip_id, []),
        lambda path: not set(folders).isdisjoint(path.split("/")[:-1]),
        where,
    )


def _only(clip_id: str, found: list[str], is_own: Callable[[str], bool], where: str) -> str | None:
    """Returns the only candidate for the clip's video, or of several the one in its own split."""
    if len(found) > 1:
        found = [path for path in found if is_own(path)] or found
    if len(found) > 1:
        raise CorpusError(
            f"{where}: {clip_id} matches {' and '.join(found)}; keep only one of them below corpus.root, "
            f"or give its path in the CSV"
        )
    return found[0] if found else None


@dataclass(frozen=True)
class _Zips:
    """The videos in the official zips of a folder."""

    by_path: Mapping[str, list[str]]
    """Path inside a zip → `zip!path` in each zip that has it."""
    by_clip: Mapping[str, list[str]]
    damaged: tuple[str, ...]

    def find(self, clip_id: str, media: str, split: str, where: str) -> str | None:
        own = tuple(f"{folder}.zip" for folder in _SPLIT_FOLDERS[split])
        found = self.by_path.get(media) or self.by_clip.get(clip_id, [])
        video = _only(clip_id, found, lambda path: path.startswith(tuple(f"{name}!" for name in own)), where)
        if video is None:
            damaged = next((name for name in own if name in self.damaged), None)
            return damaged and f"{damaged}!{clip_id}.mp4"
        return video


def _index_zips(root: Path) -> _Zips:
    names = tuple(
        f"{folder}.zip"
        for folders in _SPLIT_FOLDERS.values()
        for folder in folders
        # includes a link whose target is missing, so that the missing target is reported
        if (root / f"{folder}.zip").is_file() or (root / f"{folder}.zip").is_symlink()
    )
    by_path, by_clip = defaultdict(list), defaultdict(list)
    damaged = []
    for name in names:
        try:
            members = sorted(zip_members(root / name))
        except ClipRejected as error:
            # each of its clips becomes a rejected row; this warns once, before hours of cropping
            _log.warning("%s; the clips in it will be rejected", error.detail)
            damaged.append(name)
            continue
        for member in members:
            *folders, file = member.split("/")
            clip_id = _clip_id_of(file)
            if clip_id is not None and _OTHER_MEDIA_FOLDERS.isdisjoint(folders):
                by_path[member].append(f"{name}!{member}")
                by_clip[clip_id].append(f"{name}!{member}")
    return _Zips(by_path, by_clip, tuple(damaged))
