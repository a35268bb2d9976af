"""Figures of the ledger that separate good from bad mouth clips, their limits, and every reason in words."""

from collections.abc import Callable
from dataclasses import dataclass

from shards.schema import Reason
from stages.settings import LETTERS_A_SYLLABLE, CropParams


@dataclass(frozen=True, slots=True)
class Limit:
    """A key of the section crop that rejects clips, in the unit of the figure."""

    key: str
    value: float
    is_least: bool
    slack: float = 1e-4
    """How far an accepted clip may be beyond the limit: the ledger's float32, and half frames."""


@dataclass(frozen=True, slots=True)
class Quality:
    """One figure of a clip: a column of the ledger, or a share made of two.

    `lowest` and `highest` name the clips at that end, None where that end is not a fault; `bounds` is the possible
    range of the figure, None where there is none.
    """

    name: str
    title: str
    short: str
    about: str
    lowest: str | None = None
    highest: str | None = None
    unit: str = ""
    digits: int = 1
    bounds: tuple[float, float] | None = None
    limits: Callable[[CropParams], tuple[Limit, ...]] = lambda crop: ()

    def text(self, value: float | None) -> str:
        """`value` as people read it; a dash where it was not measured."""
        return "–" if value is None else self._with_unit(f"{self._scaled(value):.{self.digits}f}")

    def tick(self, value: float) -> str:
        """`value` on an axis, where it is round."""
        return self._with_unit(f"{self._scaled(value):g}")

    def _scaled(self, value: float) -> float:
        return 100 * value if self.unit == "%" else value

    def _with_unit(self, number: str) -> str:
        return f"{number}{'' if self.unit in ('', '°') else chr(0x202F)}{self.unit}"


def _least(name: str) -> Callable[[CropParams], tuple[Limit, ...]]:
    return lambda crop: (Limit(f"crop.{name}", getattr(crop, name), is_least=True),)


def _most(name: str) -> Callable[[CropParams], tuple[Limit, ...]]:
    return lambda crop: (Limit(f"crop.{name}", getattr(crop, name), is_least=False),)


def _seconds(crop: CropParams) -> tuple[Limit, ...]:
    # counted in frames at the target rate; a clip's duration may be a frame off
    frame_s = 1 / crop.target_fps
    return (
        Limit("crop.min_frames", crop.min_frames * frame_s, is_least=True, slack=frame_s),
        Limit("crop.max_frames", crop.max_frames * frame_s, is_least=False, slack=frame_s),
    )


def _least_motion(crop: CropParams) -> tuple[Limit, ...]:
    # 0 rejects no clip
    return _least("min_mouth_motion")(crop) if crop.min_mouth_motion else ()


QUALITIES = (
    Quality(
        "detection_rate",
        "Detection rate",
        "detected",
        "share of the frames in which the mouth was detected or tracked",
        lowest="Mouth least often detected",
        unit="%",
        bounds=(0, 1),
        limits=_least("min_detection_rate"),
    ),
    Quality(
        "mouth_width_px",
        "Mouth width",
        "mouth",
        "median width in the source; a narrow mouth is a blurred crop",
        lowest="Smallest mouths",
        unit="px",
        limits=_least("min_mouth_width_px"),
    ),
    Quality(
        "yaw_deg",
        "Turn of the head",
        "turn",
        "median turn to the side, 0 towards the camera",
        highest="Most turned away",
        unit="°",
        limits=_most("max_yaw_deg"),
    ),
    Quality(
        "jitter_px",
        "Jitter",
        "jitter",
        "mean shift per frame of eyes and nose in the crop, after smoothing",
        highest="Least steady",
        unit="px",
        digits=2,
        limits=_most("max_jitter_px"),
    ),
    Quality(
        "mouth_motion",
        "Motion of the mouth",
        "motion",
        "change of the mouth within 0.12 s, without that of light and head, in standard deviations of the crop",
        lowest="Most still mouths",
        digits=2,
        limits=_least_motion,
    ),
    Quality(
        "sharpness",
        "Sharpness",
        "sharpness",
        "median variance of the Laplacian of the crop",
        lowest="Most blurred",
        digits=0,
    ),
    Quality(
        "mean_luma",
        "Brightness",
        "brightness",
        "mean gray level of the crop, 0 to 255",
        lowest="Darkest",
        highest="Brightest",
        digits=0,
        bounds=(0, 255),
    ),
    Quality(
        "landmarked_share",
        "Landmarked share",
        "landmarked",
        "share of the source frames that were landmarked; more where the head moves more",
        highest="Most often landmarked",
        unit="%",
        bounds=(0, 1),
    ),
    Quality(
        "duration_s",
        "Duration",
        "length",
        "length of the source",
        lowest="Shortest",
        highest="Longest",
        unit="s",
        digits=2,
        limits=_seconds,
    ),
)

EXPLAINED = {
    Reason.MISSING_FILE: "The transcript names a video that is not below the corpus root.",
    Reason.UNREADABLE: "FFmpeg cannot read the file as a video: empty, damaged, or another kind of file.",
    Reason.UNSAFE_PATH: "The name leads out of the corpus, by “..”, an absolute path or a link; it was not opened.",
    Reason.NO_VIDEO: "The file holds sound or data, but no picture track.",
    Reason.TRUNCATED: "The video ends too early or has missing pictures, so it does not show the whole label.",
    Reason.OVERSIZED: "Pictures, duration or file are larger than the limits that protect against hostile files.",
    Reason.NO_FACE: "No face was found in any of the frames that were searched.",
    Reason.LOW_DETECTION: "The mouth is hidden, or out of the picture, in too many frames or for too long at once.",
    Reason.MOUTH_OUTSIDE: "The edge of the picture cuts off the mouth or the chin; no other face is whole.",
    Reason.SCENE_CUT: "The video contains a hard cut, so the clip would show two shots.",
    Reason.SMALL_MOUTH: "The mouth is so small in the source that the crop would be enlarged from few pixels.",
    Reason.TURNED_AWAY: "The head is turned so far to the side that half of the lips is hidden.",
    Reason.UNSTABLE_TRACK: "The face was not tracked steadily: it jumps in the crop.",
    Reason.STILL_MOUTH: "The mouth does not move: a still picture, or something covers the mouth.",
    Reason.TOO_SHORT: "Fewer frames than a syllable needs.",
    Reason.TOO_LONG: "More frames than one clip may have; transcripts with times can be cut at pauses.",
    Reason.EMPTY_TEXT: "Nothing is left of the transcript after normalising, so there is nothing to learn.",
    Reason.LABEL_TOO_LONG: "Nobody can speak so many characters in that time: the video is wrong or truncated.",
    Reason.CRASHED: "The process that read the file crashed.",
    Reason.TIMEOUT: "The work on the clip took longer than crop.timeout_s and was stopped.",
}
"""Each reason of the ledger in words."""


def applied_limits(crop: CropParams) -> dict[str, str]:
    """Returns the keys that reject clips and their values, in words."""
    return {
        "crop.min_detection_rate": f"{100 * crop.min_detection_rate:g}\u202f% of the frames",
        "crop.max_gap_s": f"{crop.max_gap_s:g}\u202fs without the face, bridged",
        "crop.min_mouth_width_px": f"{crop.min_mouth_width_px:g}\u202fpx in the source",
        "crop.max_yaw_deg": f"{crop.max_yaw_deg:g}°",
        "crop.max_jitter_px": f"{crop.max_jitter_px:g}\u202fpx of the crop",
        "crop.min_mouth_motion": f"{crop.min_mouth_motion:g} of the crop’s contrast"
        if crop.min_mouth_motion
        else "off",
        "crop.min_frames": f"{crop.min_frames} frames, {crop.min_frames / crop.target_fps:g}\u202fs",
        "crop.max_frames": f"{crop.max_frames} frames, {crop.max_frames / crop.target_fps:g}\u202fs",
        "crop.max_chars_per_s": f"{crop.max_chars_per_s:g} syllabic signs or "
        f"{crop.max_chars_per_s * LETTERS_A_SYLLABLE:g} letters per second",
        "crop.max_source_pixels": f"{crop.max_source_pixels:,} pixels per picture",
        "crop.max_source_s": f"{crop.max_source_s:g}\u202fs",
        "crop.max_source_mb": f"{crop.max_source_mb:g}\u202fMB",
        "crop.timeout_s": f"{crop.timeout_s:g}\u202fs of work",
    }
