"""The page of `pipeline qc`: its content, the film strips and stills of the clips, and its HTML text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.errors import ClipRejected, ShardError
from shards.files import Progress
from shards.schema import Reason
from stages.clips.clip_source import ClipSource
from stages.pages import histogram
from stages.pages.histogram import Histogram
from stages.pages.page import film_strip, jpeg_uri, rendered
from stages.statistics.quality import QUALITIES, Quality
from stages.videos.video import decode

PICTURE_BYTES = 6_400_000
"""Most bytes of pictures. Texts of the corpus are shortened too, so that every page stays below 8 MB."""
STRIP_FRAMES, FRAMES_PER_PICTURE, STRIP_PX = 8, 4, 96
STILL_WIDTH, STILL_HEIGHT = 256, 192
NAME_CHARS, LABEL_CHARS, MEDIA_CHARS, DETAIL_CHARS = 80, 60, 120, 300
# reading such a file ended its process, or did not end, so this process does not try
_UNOPENED = {
    Reason.CRASHED: "not opened here: the process that read it crashed",
    Reason.TIMEOUT: "not opened here: reading it timed out",
}
_NO_ROOM = "left out: the page has no room for more pictures"
_IN_FACTS = ("duration_s", "detection_rate", "mouth_width_px", "yaw_deg", "jitter_px", "mouth_motion")


@dataclass(frozen=True, slots=True)
class Picture:
    """Images as data: URIs, shown next to each other. `missing` says why there are none."""

    uris: tuple[str, ...]
    alt: str
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """One usable clip: its film strip, the figure that chose it (None: random), and other figures by short name."""

    clip_id: str
    split: str
    speaker: str | None
    label: str
    figure: str | None
    facts: Sequence[tuple[str, str]]
    strip: Picture
    reading: str | None = None
    """What a model read in the clip, if it was audited."""


@dataclass(frozen=True, slots=True)
class CardList:
    title: str
    about: str
    cards: tuple[Card, ...]


@dataclass(frozen=True, slots=True)
class RejectedClip:
    clip_id: str
    speaker: str | None
    media: str
    detail: str
    still: Picture


@dataclass(frozen=True, slots=True)
class Rejection:
    """The clips of one reason, some of them as examples."""

    reason: str
    explained: str
    num_clips: int
    examples: tuple[RejectedClip, ...]


@dataclass(frozen=True, slots=True)
class Speaker:
    """Name, counts, and the mean of each figure over the usable clips, as text by the figure's title."""

    name: str
    num_ok: int
    num_rejected: int
    means: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Totals:
    """Figures of the whole corpus. Shares are None if nothing was measured."""

    num_ok: int
    num_rejected: int
    num_face_videos: int
    num_ready_mouths: int
    hours: float
    num_speakers: int
    num_ok_speakers: int
    source_frames: int
    landmarked_frames: int
    num_frames: int
    bridged_frames: int

    @property
    def num_clips(self) -> int:
        return self.num_ok + self.num_rejected

    @property
    def ok_share(self) -> float:
        return self.num_ok / self.num_clips

    @property
    def landmarked_share(self) -> float | None:
        return self.landmarked_frames / self.source_frames if self.source_frames else None

    @property
    def bridged_share(self) -> float | None:
        return self.bridged_frames / self.num_frames if self.num_frames else None


@dataclass(frozen=True, slots=True)
class QcPage:
    """Everything on the page. `warnings` are at its top."""

    totals: Totals
    warnings: Sequence[str]
    limits: Mapping[str, str]
    histograms: Sequence[Histogram]
    random: CardList
    contradicted: CardList | None
    """None without an audit."""
    out_of_step: CardList | None
    """None if the sound was not compared with the pictures."""
    extremes: Sequence[CardList]
    speaker_columns: Sequence[Quality]
    speakers: Sequence[Speaker]
    speaker_strips: CardList
    rejections: Sequence[Rejection]
    seed: int


def render_qc_page(page: QcPage) -> str:
    """Returns the page as HTML. It fetches nothing and runs no script, and every text of the corpus is escaped."""
    return rendered("qc.html.j2", page=page, totals=page.totals, box=histogram)


class Pictures:
    """Makes cards with their pictures. Makes each film strip once, and stops adding pictures after PICTURE_BYTES."""

    def __init__(self, source: ClipSource, num_wanted: int, on_progress: Progress | None) -> None:
        self.source, self.num_wanted, self.on_progress = source, num_wanted, on_progress
        self.bytes_left = PICTURE_BYTES
        self.num_done = self.num_left_out = self.num_lost = 0
        self._strips: dict[str, Picture] = {}

    def audited(self, row: dict[str, Any]) -> Card:
        """Returns the card of a clip whose label the video contradicts."""
        return replace(
            self.card(row),
            figure=f"{row['contradiction']:.2f} nats" + (", doubtful" if row["is_doubtful"] else ""),
            reading=_shortened(row["reading"], LABEL_CHARS),
        )

    def heard(self, row: dict[str, Any]) -> Card:
        """Returns the card of a clip whose sound is out of step."""
        figure = (
            f"{row['offset_frames']:+d} frames, {row['offset_s']:+.2f} s; agreement {row['agreement']:.2f}"
        )
        return replace(self.card(row), figure=figure)

    def card(self, row: dict[str, Any], quality: Quality | None = None) -> Card:
        """Returns the card of a usable clip, with its figure of `quality` as the reason, if given."""
        figures = [(q, row[q.name]) for q in QUALITIES if q.name in _IN_FACTS and q is not quality]
        return Card(
            row["clip_id"],
            row["split"],
            None if row["speaker"] is None else _shortened(row["speaker"], NAME_CHARS),
            _shortened(row["label"], LABEL_CHARS),
            None if quality is None else quality.text(row[quality.name]),
            [(q.short, q.text(value)) for q, value in figures if value is not None],
            self._strip(row),
        )

    def rejected(self, row: dict[str, Any]) -> RejectedClip:
        return RejectedClip(
            row["clip_id"],
            None if row["speaker"] is None else _shortened(row["speaker"], NAME_CHARS),
            _shortened(row["media"], MEDIA_CHARS),
            _shortened(row["detail"] or "", DETAIL_CHARS),
            self._still(row),
        )

    def warnings(self) -> list[str]:
        """Returns warnings on missing pictures."""
        sentences = []
        if self.num_lost:
            sentences.append(
                f"usable clips without a film strip: {self.num_lost}; they are missing from the cache and cannot be "
                "cut again. Run `pipeline crop`"
            )
        if self.num_left_out:
            sentences.append(
                f"pictures left out to keep the page below 8 MB: {self.num_left_out}; show fewer clips with --clips"
            )
        return sentences

    def _strip(self, row: dict[str, Any]) -> Picture:
        clip_id = row["clip_id"]
        if clip_id not in self._strips:
            self._strips[clip_id] = self._make_strip(row)
            self._report_progress()
        picture = self._strips[clip_id]
        # a strip in three lists is in the page three times
        return self._within_budget(picture)

    def _make_strip(self, row: dict[str, Any]) -> Picture:
        alt = f"mouth of {row['clip_id']}"
        try:
            clip_THW = self.source.read(row)
        except ShardError as error:
            self.num_lost += 1
            return Picture((), alt, _shortened(str(error), DETAIL_CHARS))
        frames = [_fitted(frame, STRIP_PX, STRIP_PX) for frame in clip_THW]
        return Picture(tuple(film_strip(np.stack(frames), STRIP_FRAMES, FRAMES_PER_PICTURE)), alt)

    def _still(self, row: dict[str, Any]) -> Picture:
        alt = f"first picture of {row['clip_id']}"
        reason = Reason(row["reason"])
        self._report_progress()
        if reason in _UNOPENED:
            return Picture((), alt, _UNOPENED[reason])
        if row["source_frames"] is None:
            return Picture((), alt, f"not opened here: {reason}, before crop decoded the whole video")
        try:
            still = first_picture(self.source, row)
        except ClipRejected as error:
            # the page shows the detail of crops.parquet below the picture
            cause = "" if error.detail == row["detail"] else f": {error.detail}"
            return Picture((), alt, _shortened(f"no picture to show{cause}", DETAIL_CHARS))
        return self._within_budget(Picture((jpeg_uri(_fitted(still, STILL_WIDTH, STILL_HEIGHT)),), alt))

    def _within_budget(self, picture: Picture) -> Picture:
        num_bytes = sum(map(len, picture.uris))
        if num_bytes > self.bytes_left:
            self.num_left_out += 1
            return Picture((), picture.alt, _NO_ROOM)
        self.bytes_left -= num_bytes
        return picture

    def _report_progress(self) -> None:
        self.num_done += 1
        if self.on_progress:
            self.on_progress(self.num_done, self.num_wanted)


def first_picture(source: ClipSource, row: dict[str, Any]) -> NDArray[np.uint8]:
    """Returns the first decodable picture of a clip's video, BGR, upright. Raises ClipRejected if there is none."""
    for frame in decode(source.video_of(row), source.params):
        return np.ascontiguousarray(frame.rgb_HW3()[:, :, ::-1])
    raise AssertionError("decode yields a picture or raises")


def _fitted(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Returns `picture`, shrunk into the box if it is larger, with its aspect ratio."""
    scale = min(width / picture.shape[1], height / picture.shape[0])
    if scale >= 1:
        return picture
    size = tuple(max(1, round(side * scale)) for side in picture.shape[1::-1])
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _shortened(text: str, num_chars: int) -> str:
    return text if len(text) <= num_chars else text[: num_chars - 1] + "…"
