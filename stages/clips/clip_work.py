"""Crops one clip in a worker: makes its row of the ledger, its track, and its mouth clip in the cache."""

import logging
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2

from model.text import is_han
from shards.enums import TRAIN_SPLIT, UNLABELLED_SPLIT
from shards.errors import ClipRejected, PipelineError
from shards.machine import is_address_space_short
from shards.schema import MediaKind, Reason, Status
from stages.clips.cache import ClipCache, Outcome
from stages.clips.shared_cache import SharedCache
from stages.mouths.cropping import Figures
from stages.mouths.media_kind import media_kind_of
from stages.settings import LETTERS_A_SYLLABLE, CropParams, KindSetting
from stages.videos.media import Source, resolve_media
from stages.videos.video import read_header

log = logging.getLogger(__name__)

DATA_ERRORS = (cv2.error, ValueError, ArithmeticError, LookupError)
"""Errors of OpenCV and numpy for odd pixels and times. A TypeError or NameError is a bug: it ends the run."""

FASTEST_SPEECH = 10.0
"""Syllables per second that nobody can speak for long; 5 to 8 are usual (Pellegrino, Coupé, Marsico 2011)."""

_SYLLABIC = (
    "HIRAGANA LETTER",
    "KATAKANA LETTER",
    "HANGUL SYLLABLE",
    "YI SYLLABLE",
    "ETHIOPIC SYLLABLE",
    "CHEROKEE LETTER",
    "CANADIAN SYLLABICS",
)


@dataclass(frozen=True, slots=True)
class Clip:
    """The fields of a row of clips.parquet that a worker needs."""

    clip_id: str
    root: str
    media: str
    media_kind: str | None
    label: str
    num_chars: int
    start_s: float | None = None
    end_s: float | None = None
    kind_setting: KindSetting = "auto"
    """`corpus.media_kind`, used for a clip whose kind is not known."""
    follow_links: bool = False
    """`corpus.follow_links`."""
    split: str = TRAIN_SPLIT
    unlabelled: Literal["reject", "keep"] = "reject"
    """`corpus.unlabelled`."""

    @property
    def needs_label(self) -> bool:
        return self.split != UNLABELLED_SPLIT


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a clip: its row of crops.parquet, and of tracks.parquet where it has one."""

    crop_row: dict[str, Any]
    track_row: dict[str, Any] | None
    from_cache: bool
    num_damaged: int = 0
    """Damaged cache entries that were made again."""
    parts_s: tuple[tuple[float | None, float | None], ...] = ()
    """Start and end of the pieces of a long video (stages/clips/long_videos.py)."""


Work = Callable[[Clip], Done]
"""Runs in a worker process, so it must be picklable. An exception ends the run."""


class Executor(Protocol):
    """Gives clips to workers. Leaving its `with` block stops all workers at once."""

    def __enter__(self) -> "Executor": ...
    def __exit__(self, *_: object) -> None: ...
    def run(self, clips: Iterable[Clip]) -> Iterator[tuple[Clip, Done]]:
        """Yields each clip with its result, as they finish: one for each clip, also for `crashed` and `timeout`.

        Raises MachineError where the machine, not a clip, is the cause.
        """


@dataclass(frozen=True)
class CropWork:
    """The work of the crop stage."""

    params: CropParams
    cache_folder: Path
    share: str = ""

    def __call__(self, clip: Clip) -> Done:
        return crop_one(clip, self.params, self.cache_folder, self.share)


def given_up(clip: Clip, reason: Reason, detail: str) -> Done:
    """Returns the result of a clip that no worker finished; the next run retries it."""
    return Done(crop_row(clip, Figures(), reason, detail), None, from_cache=False)


def place(clip: Clip) -> str:
    """Returns the note that is added to an error."""
    return f"while cropping clip {clip.clip_id} ({clip.media})"


def crop_one(clip: Clip, params: CropParams, cache_folder: Path, share: str = "") -> Done:
    """Returns the ledger's row and the track of one clip; runs in a worker."""
    try:
        if not clip.label and clip.needs_label:
            leak = (
                f"; corpus.unlabelled does not keep clips of split {clip.split}: to train on them is a leak"
            )
            raise ClipRejected(
                Reason.EMPTY_TEXT,
                "nothing is left of the transcript after normalising"
                + (leak if clip.unlabelled == "keep" else ""),
            )
        source = resolve_media(Path(clip.root), clip.media, clip.start_s, clip.end_s, clip.follow_links)
        # without a kind, ingest could not read the header: reading it again gives the reason, or finds a new file
        if clip.media_kind is None:
            kind = media_kind_of(source, read_header(source, params), clip.kind_setting, params)
        else:
            kind = MediaKind(clip.media_kind)
        cache = ClipCache(cache_folder)
        with _mirrored(cache, share, source, kind, params):
            outcome = cache.crop(source, kind, params)
    except ClipRejected as rejection:
        return Done(crop_row(clip, Figures(), rejection.reason, rejection.detail), None, from_cache=False)
    except PipelineError:
        raise  # the machine's fault, not the clip's
    except DATA_ERRORS as error:
        if is_address_space_short():
            raise MemoryError(str(error)) from error
        # a gap in our checks must not end a run of days; the log has the traceback, the ledger the clip
        log.exception("%s", place(clip))
        return given_up(
            clip, Reason.CRASHED, f"{clip.media}: {type(error).__name__}: {error} (a bug; please report it)"
        )
    rejection_or_none = outcome.rejection or _too_dense(clip, outcome.figures, params)
    if rejection_or_none is not None:
        row = crop_row(clip, outcome.figures, rejection_or_none.reason, rejection_or_none.detail, outcome)
        return Done(row, None, outcome.from_cache, cache.num_damaged)
    row = crop_row(clip, outcome.figures, None, None, outcome)
    return Done(row, track_row(clip, outcome), outcome.from_cache, cache.num_damaged)


def _mirrored(
    cache: ClipCache, share: str, source: Source, kind: MediaKind, params: CropParams
) -> AbstractContextManager[None]:
    if not share:
        return nullcontext()
    return SharedCache(share, cache.folder).mirrored(cache.keys(source, kind, params))


def _too_dense(clip: Clip, figures: Figures, params: CropParams) -> ClipRejected | None:
    """Returns a rejection where the label takes longer to say than the video lasts: one of the two is wrong."""
    assert figures.duration_s is not None, "a clip that was cut has a duration"
    if not clip.needs_label:
        return None
    syllables = spoken_syllables(clip.label)
    if syllables <= params.max_chars_per_s * figures.duration_s:
        return None
    limit = params.max_chars_per_s
    is_impossible = syllables > FASTEST_SPEECH * figures.duration_s
    return ClipRejected(
        Reason.LABEL_TOO_LONG,
        f"{clip.num_chars} characters, about {syllables:.0f} syllables, in {figures.duration_s:.2f} s; "
        f"crop.max_chars_per_s is {limit:g} (syllabic signs; {limit * LETTERS_A_SYLLABLE:g} letters)"
        + (": check whether the video is truncated" if is_impossible else ""),
    )


def spoken_syllables(label: str) -> float:
    """Estimates the number of syllables of a label by its script, without spaces, marks and punctuation.

    A Han character, kana, Hangul syllable or digit counts as one, any other letter as a fraction.
    """
    signs = letters = 0
    for character in label:
        kind = unicodedata.category(character)[0]
        if kind == "N" or is_han(character) or unicodedata.name(character, "").startswith(_SYLLABIC):
            signs += 1
        elif kind == "L":
            letters += 1
    return signs + letters / LETTERS_A_SYLLABLE


def crop_row(
    clip: Clip, figures: Figures, reason: Reason | None, detail: str | None, outcome: Outcome | None = None
) -> dict[str, Any]:
    return {
        "clip_id": clip.clip_id,
        "status": (Status.OK if reason is None else Status.REJECTED).value,
        "reason": None if reason is None else reason.value,
        "detail": detail,
        **figures.as_row(),
        "track_key": None if outcome is None else outcome.keys.track,
        "clip_key": None if outcome is None else outcome.keys.clip,
        "bytes": None if outcome is None else outcome.num_bytes,
    }


def track_row(clip: Clip, outcome: Outcome) -> dict[str, Any] | None:
    track = outcome.track
    if track is None or track.transform_T23 is None:
        return None
    return {
        "clip_id": clip.clip_id,
        "transform": track.transform_T23.ravel(),
        "frame_index": track.frame_index_T,
        "landmarked": track.landmarked,
    }
