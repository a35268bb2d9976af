"""Reads the mouth clips of the ledger's rows for pack and qc, from the cache or cropped again by the same code."""

import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shards.errors import ClipRejected, ShardError, TableError
from shards.schema import MediaKind
from shards.settings import MachineParams
from stages.clips.cache import ClipCache
from stages.clips.shared_cache import SharedCache
from stages.mouths.cropping import crop_video, render_from_track
from stages.settings import CorpusParams, CropParams
from stages.videos.media import Source, resolve_media
from stages.videos.sound import NoSound, sound_of_clip


class ClipSource:
    """Mouth clips of `ok` rows of crops.parquet; `clips` maps clip_id to its row of clips.parquet.

    `read_tracks` returns tracks.parquet; it is called once, and only where a face clip is no longer in the cache.
    `num_rendered` counts the clips that were cropped again. Threads may share one source.
    """

    def __init__(
        self,
        corpus: CorpusParams,
        crop: CropParams,
        machine: MachineParams,
        clips: Mapping[str, Mapping[str, Any]],
        read_tracks: Callable[[], pa.Table],
    ) -> None:
        self.root, self.params, self.clips = Path(corpus.root), crop, clips
        self.follow_links, self._corpus = corpus.follow_links, corpus
        self.cache = ClipCache(Path(machine.cache_dir))
        self.mirror = SharedCache(machine.share, self.cache.folder) if machine.share else None
        self.read_tracks = read_tracks
        self.num_rendered = 0
        self._cutting = threading.Lock()

    def read(self, crop_row: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Returns the clip, uint8, T×H×W.

        Raises ShardError where it is not in the cache and its video or the crop parameters changed since, and
        TableError where the tables do not match.
        """
        if self.mirror:
            self.mirror.fetch_clip(crop_row["clip_key"])
        expected = (crop_row["num_frames"], self.params.size_px, self.params.size_px)
        clip_THW = self.cache.read_clip(crop_row["clip_key"], expected)
        if clip_THW is None:
            # rare: one at a time, since a decoder and its frames take far more memory than a clip
            with self._cutting:
                clip_THW = self._render(crop_row)
                self.num_rendered += 1
        if clip_THW.shape != expected:
            raise TableError(
                f"clip {crop_row['clip_id']} is {clip_THW.shape}, but ledger and parameters say {expected} (frames, "
                "height, width); run `pipeline crop` again"
            )
        return clip_THW

    def video_of(self, clip: Mapping[str, Any]) -> Source:
        """Returns the video, or its part, of a row of clips.parquet. Raises ClipRejected if missing or outside."""
        return resolve_media(self.root, clip["media"], clip["start_s"], clip["end_s"], self.follow_links)

    def read_sound(self, crop_row: Mapping[str, Any]) -> NDArray[np.float16]:
        """Returns the log-mel vectors of the clip's sound, float16, T×4×40. Raises NoSound."""
        clip = self.clips[crop_row["clip_id"]]
        try:
            video, name = self.video_of(clip), self._audio_of(clip)
            file = resolve_media(self.root, name, follow_links=self.follow_links) if name else None
        except ClipRejected as error:
            raise NoSound(error.detail) from error
        return sound_of_clip(video, file, crop_row["num_frames"], self.params)

    def _audio_of(self, clip: Mapping[str, Any]) -> str:
        """Returns the file with the sound, relative to the root; empty: the video has it."""
        name = PurePosixPath(clip["media"]).stem
        return clip["audio"] or self._corpus.audio.format(
            clip_id=clip["clip_id"], speaker=clip["speaker"] or "", name=name
        )

    def _render(self, crop_row: Mapping[str, Any]) -> NDArray[np.uint8]:
        clip_id = crop_row["clip_id"]
        clip = self.clips[clip_id]
        # as in crop, where ingest did not find the kind; a face has landmarks
        kind = MediaKind.MOUTH if crop_row["track_key"] is None else MediaKind.FACE
        try:
            source = self.video_of(clip)
            self._refuse_other_content(source, kind, crop_row)
            clip_THW = self._cut(source, kind, clip_id)
            # the video may be replaced while it is read
            self._refuse_other_content(source, kind, crop_row)
            return clip_THW
        except ClipRejected as error:
            raise ShardError(
                f"clip {clip_id} is not in the cache and cannot be cropped again ({error}); run `pipeline crop` again"
            ) from error

    def _refuse_other_content(self, source: Source, kind: MediaKind, crop_row: Mapping[str, Any]) -> None:
        if self.cache.keys(source, kind, self.params).clip != crop_row["clip_key"]:
            raise ShardError(
                f"clip {crop_row['clip_id']} is not in the cache, and its video or the crop parameters changed "
                "since it was cropped; run `pipeline crop` again"
            )

    def _cut(self, source: Source, kind: MediaKind, clip_id: str) -> NDArray[np.uint8]:
        if kind is MediaKind.MOUTH:
            return crop_video(source, kind, self.params).clip_THW
        tracks, row_of = self._tracks
        if clip_id not in row_of:
            raise TableError(f"tracks.parquet lacks clip {clip_id}; run `pipeline crop` again")
        track = tracks.slice(row_of[clip_id], 1).to_pylist()[0]
        transform_T23 = np.array(track["transform"], np.float32).reshape(-1, 2, 3)
        return render_from_track(source, transform_T23, np.array(track["frame_index"], np.int32), self.params)

    @cached_property
    def _tracks(self) -> tuple[pa.Table, dict[str, int]]:
        tracks = self.read_tracks()
        return tracks, {clip_id: row for row, clip_id in enumerate(tracks["clip_id"].to_pylist())}
