"""Chinese-LiPS: three CSVs and their videos, in the raw, the processed, or the older trainer's layout."""

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from shards.errors import CorpusError
from stages.corpora.csv_rows import read_csv
from stages.corpora.transcript import Transcript, leaves_root, relative_media

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
# their files may bear the same names as the face videos
_OTHER_MEDIA_FOLDERS = frozenset({"PPT", "WAV"})


def read_chinese_lips(root: Path) -> list[Transcript]:
    """The rows of meta_train.csv, meta_valid.csv and meta_test.csv below `root`.

    A video is found by the CSV's path (relative to `root`), else as `<ID>.mp4` or `<ID>_FACE.mp4` anywhere
    below `root`; of several, the one in a folder of its split (train/, val/, processed_test/, …). So a table
    with another machine's absolute paths is read too; where no file is found, the path stays as given. An ID
    gives speaker, age, gender and topic; under the older header an ID of another form is allowed, and leaves
    speaker, age and gender unknown.

    Raises CorpusError where a CSV is missing or untrue, or two videos could be one clip's.
    """
    index: dict[str, list[str]] | None = None
    transcripts = []
    for split in _SPLIT_FOLDERS:
        path = root / f"meta_{split}.csv"
        if not path.is_file():
            raise CorpusError(
                f"{path} is missing; copy meta_train.csv, meta_valid.csv and meta_test.csv of Chinese-LiPS "
                f"into corpus.root (a split without clips needs a CSV with the header alone)"
            )
        for where, row in read_csv(path, _check_header):
            older = "file_id" in row
            clip_id, topic, _, _, face, text = (row[name] for name in (OLDER_HEADER if older else HEADER))
            clip_id = clip_id.strip()
            match = _ID.fullmatch(clip_id)
            if match is None and not older:
                raise CorpusError(
                    f"{where}: ID {clip_id!r} is not of the form speaker_age_gender_TOPIC_number, "
                    f"as 012_25_F_KJ_003"
                )
            media = relative_media(face.strip())
            if leaves_root(media) or not (media and (root / media).is_file()):
                if index is None:
                    index = _index_videos(root)
                media = _find(clip_id, split, index, where) or media or f"{clip_id}.mp4"
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


def _index_videos(root: Path) -> dict[str, list[str]]:
    """Clip id → videos that may be its own, as paths relative to `root`, sorted; one walk of the tree."""
    index = defaultdict(list)
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _OTHER_MEDIA_FOLDERS)
        below = Path(folder).relative_to(root)
        for name in sorted(files):
            stem, extension = os.path.splitext(name)  # noqa: PTH122 - a Path for each of 100,000 files is slow
            if extension.lower() == ".mp4":
                index[stem.removesuffix("_FACE")].append((below / name).as_posix())
    return index


def _find(clip_id: str, split: str, index: Mapping[str, list[str]], where: str) -> str | None:
    found = index.get(clip_id, [])
    if len(found) > 1:
        own = [path for path in found if not set(_SPLIT_FOLDERS[split]).isdisjoint(path.split("/")[:-1])]
        found = own or found
    if len(found) > 1:
        raise CorpusError(
            f"{where}: {clip_id} may be {' or '.join(found)}; leave one of them below corpus.root, "
            f"or give its path in the CSV"
        )
    return found[0] if found else None
