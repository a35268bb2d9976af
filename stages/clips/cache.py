"""Keeps mouth clips and landmarks under keys of their content, so that a rerun need not make them again.

    <folder>/content-HOST.sqlite  sha256 of sources, memoised by (path, size, mtime); each host has its own
    <folder>/tracks/ab/abcd….npz  faces of one video; key: content, parameters of face tracking, TRACK_VERSION
    <folder>/clips/ab/abcd….npz   outcome of one clip; key: content, crop parameters, both code versions
    <folder>/pieces/ab/abcd….npz  times of the pieces of a long video; key: that of its clip, parameters, PIECES_VERSION

The .npz are plain numpy archives, without pickles. A damaged entry is logged and made again.
"""

import logging
import re
import socket
import sqlite3
import zipfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shards.codec import encode_raw
from shards.errors import ClipRejected
from shards.files import atomic_file, fingerprint, sha256_of, writable_by_this_user
from shards.schema import MediaKind, Reason
from stages.clips.entries import (
    DAMAGE,
    NOT_OF_CONTENT,
    Track,
    arrays_of_landmarks,
    arrays_of_outcome,
    clip_of,
    landmarks_of,
    outcome_of,
    piece_times_of,
)
from stages.mouths.cropping import CODE_VERSION, Figures, crop_video
from stages.mouths.face_tracking import track_faces
from stages.mouths.landmarks import TRACK_VERSION, Landmarks
from stages.mouths.mouth_pictures import MouthPatches
from stages.mouths.pieces import PIECES_VERSION
from stages.settings import CropParams, InferenceParams
from stages.videos.media import Media, Source, check_file_size, source_of
from stages.videos.zip_directory import find_member
from stages.videos.zip_member import member_sha256

log = logging.getLogger(__name__)

SQLITE_WAIT_S = 60.0
_T = TypeVar("_T")

_TRIES = 3
"""Attempts for a video that is replaced between hashing and decoding, for example by rsync."""


@dataclass(frozen=True)
class Keys:
    """The cache keys of a video's clip and of its landmarks (None for ready mouth crops)."""

    clip: str
    track: str | None


@dataclass(frozen=True)
class Outcome:
    """The result of one clip: a track, with its clip in the cache, or a rejection; and the measured figures."""

    keys: Keys
    figures: Figures
    track: Track | None
    num_bytes: int | None
    rejection: ClipRejected | None
    from_cache: bool


class ClipCache:
    """The cache in one folder; any number of processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_damaged = 0
        """Damaged entries found so far."""

    def keys(self, media: Media, media_kind: MediaKind, params: CropParams) -> Keys:
        """Returns the keys of a video, by its bytes: inside a zip it has the same keys.

        Raises ClipRejected (missing_file, unreadable, and oversized, before anything is read).
        """
        source = source_of(media)
        check_file_size(source, params.max_source_mb)
        content = self._content(source)
        part = (source.start_s, source.end_s) if source.is_part else ()
        clip_key = fingerprint(
            "clip", CODE_VERSION, TRACK_VERSION, content, *part, media_kind.value, params.cache_values()
        )
        if media_kind is MediaKind.MOUTH:
            return Keys(clip_key, None)
        return Keys(clip_key, fingerprint("track", TRACK_VERSION, content, *part, params.track_values()))

    def crop(self, path: Media, media_kind: MediaKind, params: CropParams) -> Outcome:
        """Returns the outcome for the video at `path`, from the cache, or makes and keeps it, rejections too.

        Raises ClipRejected (unreadable), which is not kept, where the file's bytes cannot be read at all, or keep
        changing.
        """
        for _ in range(_TRIES):
            keys = self.keys(path, media_kind, params)
            found = self._read_outcome(keys, params.size_px)
            if found is not None:
                return found
            try:
                return self._made(path, media_kind, params, keys)
            except _Replaced:
                log.warning("%s was replaced while it was read; reading it again", source_of(path).name)
        raise _changing(path)

    def _made(self, path: Media, media_kind: MediaKind, params: CropParams, keys: Keys) -> Outcome:
        """Makes and keeps the outcome; keeps nothing and raises _Replaced where `keys` are no longer valid."""
        figures = Figures()

        def refuse_other_content() -> None:
            if self.keys(path, media_kind, params) != keys:
                raise _Replaced

        def find_landmarks(video: Media, crop_params: CropParams, patches: MouthPatches) -> Landmarks:
            assert keys.track is not None, "ready mouth crops are never landmarked"
            place = self._place("tracks", keys.track)
            kept = self._read(place, landmarks_of)
            if kept is not None:
                return kept
            made = track_faces(video, crop_params, patches)
            refuse_other_content()
            self._write(place, arrays_of_landmarks(made))
            return made

        try:
            mouth = crop_video(path, media_kind, params, figures, find_landmarks)
        except ClipRejected as rejection:
            refuse_other_content()
            if _is_of_content(rejection):
                self._write(self._place("clips", keys.clip), arrays_of_outcome(figures, None, rejection))
            return Outcome(keys, figures, None, None, rejection, from_cache=False)
        refuse_other_content()
        self._write(self._place("clips", keys.clip), arrays_of_outcome(mouth.figures, mouth, None))
        track = Track(mouth.transform_T23, mouth.frame_index_T, mouth.landmarked)
        return Outcome(keys, mouth.figures, track, len(encode_raw(mouth.clip_THW)), None, from_cache=False)

    def read_clip(self, clip_key: str, shape: tuple[int, int, int]) -> NDArray[np.uint8] | None:
        """Returns the clip kept under a key, uint8, T×H×W; None where the cache holds none of this shape."""
        return self._read(self._place("clips", clip_key), lambda kept: clip_of(kept, shape))

    def piece_times(
        self,
        media: Media,
        media_kind: MediaKind,
        params: CropParams,
        inference: InferenceParams,
        find: Callable[[], NDArray[np.float64]],
    ) -> tuple[NDArray[np.float64], bool]:
        """Returns start and end of each piece of a long video (P, 2), seconds, and whether the cache had them.

        Keeps what `find` returns. Raises ClipRejected like `crop`.
        """

        def place_now() -> Path:
            key = self.keys(media, media_kind, params).clip
            return self._place("pieces", fingerprint("pieces", PIECES_VERSION, key, inference.recorded()))

        for _ in range(_TRIES):
            place = place_now()
            kept = self._read(place, piece_times_of)
            if kept is not None:
                return kept, True
            found = find()
            if place_now() == place:
                self._write(place, {"times_s_P2": found})
                return found, False
        raise _changing(media)

    # -- sources ---------------------------------------------------------------------------------------

    def _content(self, source: Source) -> str:
        """Returns the sha256 of the video's bytes; reads them again only where its file's size or mtime changed."""
        status = source.path.stat()
        name = str(source.path.absolute()) + ("" if source.member is None else f"!{source.member}")
        place = (name, status.st_size, status.st_mtime_ns)
        # one for each host: SQLite's locks are not reliable on a network file system
        host = re.sub(r"[^A-Za-z0-9_.-]", "_", socket.gethostname())
        memo = writable_by_this_user(self.folder / f"content-{host}.sqlite")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            # one connection for each call: it costs far less than a clip, and processes never share one
            with closing(sqlite3.connect(memo, timeout=SQLITE_WAIT_S)) as database:
                with database:
                    database.execute(
                        "CREATE TABLE IF NOT EXISTS content"
                        " (path TEXT PRIMARY KEY, size INT, mtime_ns INT, sha256 TEXT)"
                    )
                known = database.execute(
                    "SELECT sha256 FROM content WHERE path = ? AND size = ? AND mtime_ns = ?", place
                ).fetchone()
                if known is not None:
                    return str(known[0])
                content = _hashed(source)
                with database:
                    database.execute("INSERT OR REPLACE INTO content VALUES (?, ?, ?, ?)", (*place, content))
                return content
        except sqlite3.DatabaseError as error:
            # without this table each source is read once more. We do not remove it: another process may be writing
            log.warning("%s cannot be used (%s); remove it while no `pipeline crop` runs", memo, error)
            return _hashed(source)

    # -- outcomes --------------------------------------------------------------------------------------

    def _read_outcome(self, keys: Keys, size_px: int) -> Outcome | None:
        kept = self._read(
            self._place("clips", keys.clip), lambda kept: outcome_of(kept, keys.track is not None, size_px)
        )
        if kept is None:
            return None
        figures, track, num_bytes, rejection = kept
        return Outcome(keys, figures, track, num_bytes, rejection, from_cache=True)

    # -- files -----------------------------------------------------------------------------------------

    def _place(self, kind: str, key: str) -> Path:
        return self.folder / kind / key[:2] / f"{key}.npz"

    def _read(self, place: Path, taken_from: Callable[[zipfile.ZipFile], _T]) -> _T | None:
        """Returns what `taken_from` reads from the entry; None where it is missing or damaged."""
        try:
            with zipfile.ZipFile(place) as kept:
                return taken_from(kept)
        except FileNotFoundError:
            return None
        except DAMAGE as error:
            self.num_damaged += 1
            log.warning("cache entry %s is damaged (%s); it is made again", place, error)
            return None

    def _write(self, place: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        with atomic_file(place) as file:
            np.savez(file, allow_pickle=False, **arrays)


def _changing(media: Media) -> ClipRejected:
    return ClipRejected(
        Reason.UNREADABLE,
        f"{source_of(media).name} is being written: it changed {_TRIES} times while it was read; run "
        "`pipeline crop` again when it is complete",
    )


class _Replaced(Exception):
    """The video is no longer the one that was hashed."""


def _is_of_content(rejection: ClipRejected) -> bool:
    """Returns whether the same bytes would be rejected again; a file system that fails now may work later."""
    # PyAV's I/O errors are OSErrors too, those about the data ValueErrors
    return rejection.reason not in NOT_OF_CONTENT and not isinstance(
        rejection.__cause__, OSError | MemoryError
    )


def _hashed(source: Source) -> str:
    if source.member is not None:
        return member_sha256(find_member(source.path, source.member))
    try:
        return sha256_of(source.path)
    except OSError as error:
        raise ClipRejected(Reason.UNREADABLE, f"{source.name} cannot be read ({error.strerror})") from error
