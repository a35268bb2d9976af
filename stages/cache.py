"""Mouth clips and landmarks found by content: what a rerun need not do again.

    <folder>/content.sqlite       sha256 of sources, memoised by (path, size, mtime)
    <folder>/tracks/ab/abcd….npz  landmarks of one video; key: content, number of faces, TRACK_VERSION
    <folder>/clips/ab/abcd….npz   outcome of one clip; key: content, crop parameters, both code versions

A damaged entry is named in the log and made anew. Nothing is pickled.
"""

import json
import logging
import sqlite3
import zipfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import ClipRejected
from shards.files import atomic_file, fingerprint, sha256_of
from shards.schema import MediaKind, Reason
from stages.cropping import CODE_VERSION, Figures, MouthClip, crop_video
from stages.landmarks import TRACK_VERSION, Landmarks, landmark_video
from stages.settings import CropParams

log = logging.getLogger(__name__)

SQLITE_WAIT_S = 60.0
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Outcome:
    """What became of one clip: a mouth clip, or a rejection; and what was measured either way."""

    figures: Figures
    mouth: MouthClip | None
    rejection: ClipRejected | None
    track_key: str | None
    clip_key: str
    from_cache: bool


class ClipCache:
    """The cache in one folder; any number of processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def crop(self, path: Path, media_kind: MediaKind, params: CropParams) -> Outcome:
        """The outcome for the video at `path`: from the cache, or made and kept."""
        content = self._content(path)
        clip_key = fingerprint(
            "clip", CODE_VERSION, TRACK_VERSION, content, media_kind.value, params.model_dump(mode="json")
        )
        track_key = None
        if media_kind is MediaKind.FACE:
            track_key = fingerprint("track", TRACK_VERSION, content, params.max_faces)
        found = self._read_outcome(clip_key, track_key)
        if found is not None:
            return found
        figures = Figures()

        def find_landmarks(video: Path, crop_params: CropParams) -> Landmarks:
            assert track_key is not None, "ready mouth crops are never landmarked"
            return self._landmarks(video, crop_params, track_key)

        try:
            mouth = crop_video(path, media_kind, params, figures, find_landmarks)
        except ClipRejected as rejection:
            self._write_outcome(clip_key, figures, None, rejection)
            return Outcome(figures, None, rejection, track_key, clip_key, from_cache=False)
        self._write_outcome(clip_key, mouth.figures, mouth, None)
        return Outcome(mouth.figures, mouth, None, track_key, clip_key, from_cache=False)

    def read_clip(self, clip_key: str) -> NDArray[np.uint8] | None:
        """The clip kept under a key, uint8, T×H×W; None where it is not there (any more)."""
        found = self._read_outcome(clip_key, None)
        return found.mouth.clip_THW if found is not None and found.mouth is not None else None

    # -- sources ---------------------------------------------------------------------------------------

    def _content(self, path: Path) -> str:
        """sha256 of the file; read again only where its size or time of change differ."""
        status = path.stat()
        place = (str(path.absolute()), status.st_size, status.st_mtime_ns)
        self.folder.mkdir(parents=True, exist_ok=True)
        # one connection a call: sqlite's are not to be shared over a fork, and a call costs far less than a clip
        with closing(sqlite3.connect(self.folder / "content.sqlite", timeout=SQLITE_WAIT_S)) as database:
            with database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS content (path TEXT PRIMARY KEY, size INT, mtime_ns INT, sha256 TEXT)"
                )
            known = database.execute(
                "SELECT sha256 FROM content WHERE path = ? AND size = ? AND mtime_ns = ?", place
            ).fetchone()
            if known is not None:
                return str(known[0])
            content = sha256_of(path)
            with database:
                database.execute("INSERT OR REPLACE INTO content VALUES (?, ?, ?, ?)", (*place, content))
        return content

    # -- landmarks -------------------------------------------------------------------------------------

    def _landmarks(self, path: Path, params: CropParams, track_key: str) -> Landmarks:
        place = self._place("tracks", track_key)
        kept = self._read(place)
        if kept is not None:
            try:
                return Landmarks(
                    int(kept["width"]),
                    int(kept["height"]),
                    **{name: kept[name] for name in _LANDMARK_ARRAYS},
                )
            except KeyError as error:
                log.warning("cache entry %s lacks %s; it is made anew", place, error)
        made = landmark_video(path, params)
        arrays = {name: getattr(made, name) for name in _LANDMARK_ARRAYS}
        self._write(place, arrays | {"width": np.array(made.width), "height": np.array(made.height)})
        return made

    # -- outcomes --------------------------------------------------------------------------------------

    def _read_outcome(self, clip_key: str, track_key: str | None) -> Outcome | None:
        place = self._place("clips", clip_key)
        kept = self._read(place)
        if kept is None:
            return None
        try:
            told = json.loads(kept["outcome"].tobytes())
            figures = Figures(**told["figures"])
            if told["reason"] is not None:
                rejection = ClipRejected(Reason(told["reason"]), told["detail"])
                return Outcome(figures, None, rejection, track_key, clip_key, from_cache=True)
            transform_T23 = kept.get("transform_T23")
            mouth = MouthClip(
                kept["clip_THW"], transform_T23, kept["frame_index_T"], kept["landmarked"], figures
            )
        except (KeyError, TypeError, ValueError) as error:
            log.warning("cache entry %s is damaged (%s); it is made anew", place, error)
            return None
        return Outcome(figures, mouth, None, track_key, clip_key, from_cache=True)

    def _write_outcome(
        self, clip_key: str, figures: Figures, mouth: MouthClip | None, rejection: ClipRejected | None
    ) -> None:
        told = {
            "figures": figures.as_row(),
            "reason": None if rejection is None else rejection.reason.value,
            "detail": None if rejection is None else rejection.detail,
        }
        arrays: dict[str, NDArray[Any]] = {
            "outcome": np.frombuffer(json.dumps(told, ensure_ascii=False).encode(), np.uint8)
        }
        if mouth is not None:
            arrays |= {
                "clip_THW": mouth.clip_THW,
                "frame_index_T": mouth.frame_index_T,
                "landmarked": mouth.landmarked,
            }
            if mouth.transform_T23 is not None:
                arrays["transform_T23"] = mouth.transform_T23
        self._write(self._place("clips", clip_key), arrays)

    # -- files -----------------------------------------------------------------------------------------

    def _place(self, kind: str, key: str) -> Path:
        return self.folder / kind / key[:2] / f"{key}.npz"

    def _read(self, place: Path) -> dict[str, NDArray[Any]] | None:
        try:
            with np.load(place, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except FileNotFoundError:
            return None
        except _DAMAGE as error:
            log.warning("cache entry %s is damaged (%s); it is made anew", place, error)
            return None

    def _write(self, place: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        with atomic_file(place) as file:
            np.savez(file, allow_pickle=False, **arrays)


_LANDMARK_ARRAYS = tuple(field.name for field in fields(Landmarks) if field.name not in ("width", "height"))
