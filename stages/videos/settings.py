"""The sections `crop` and `inference` of params.yaml."""

from typing import Any, Literal

from pydantic import Field, model_validator

from shards.settings import Section

LETTERS_A_SYLLABLE = 2.5
"""By which `crop.max_chars_per_s` counts scripts of letters: English has about 3, Italian 2.3, Arabic, which writes no
short vowels, 2 to 2.5."""


class CropParams(Section):
    """How a mouth clip is cut, and which clips are turned down."""

    size_px: int = Field(96, ge=16, le=512, description="width and height of the mouth crop, px")
    target_fps: float = Field(25.0, ge=1, le=120, description="frame rate of the mouth clip, 1/s")
    smoothing_s: float = Field(0.5, ge=0, le=5, description="window of the smoothing of the transform, s")
    max_lag_px: float = Field(
        1.8, ge=0, description="how far the smoothed window may lag behind a moving head, crop px"
    )
    landmarker: Literal["litert", "mediapipe"] = Field(
        "litert", description="what finds the landmarks: the bundle's models in LiteRT, or mediapipe's graph"
    )
    tolerance_px: float = Field(
        0.35,
        ge=0,
        le=10,
        description="error of the smoothed window that skipping frames should not pass, crop px",
    )
    max_faces: int = Field(3, ge=1, le=16, description="faces followed at once")
    max_gap_s: float = Field(0.5, ge=0, description="longest time without the face that is bridged, s")
    min_frames: int = Field(10, ge=1, description="shorter clips are too_short, frames at target_fps")
    max_frames: int = Field(1_000, ge=1, description="longer clips are too_long, frames at target_fps")
    split_long: bool = Field(
        False, description="cut longer clips at pauses, where the transcript has times (ingest does it)"
    )
    max_chars_per_s: float = Field(
        12.0, gt=0, description="denser labels are label_too_long, syllabic signs/s; 2.5 letters are one"
    )
    min_detection_rate: float = Field(0.8, ge=0, le=1, description="less is low_detection")
    min_mouth_width_px: float = Field(16.0, ge=0, description="less is small_mouth, source px")
    max_yaw_deg: float = Field(65.0, gt=0, le=90, description="more is turned_away, median over the clip")
    max_jitter_px: float = Field(3.0, gt=0, description="more is unstable_track, mean shift a frame, crop px")
    min_mouth_motion: float = Field(
        0.0, ge=0, description="less is still_mouth, standard deviations of the crop; 0: off"
    )
    max_source_pixels: int = Field(3_840 * 2_160, gt=0, description="larger pictures are oversized, px")
    max_source_s: float = Field(600.0, gt=0, description="longer videos are oversized, s")
    max_source_mb: float = Field(4_096.0, gt=0, description="larger files are oversized, MB")
    timeout_s: float = Field(600.0, gt=0, description="a clip that takes longer is given up (timeout), s")

    def cache_values(self) -> dict[str, Any]:
        """What a clip depends on: its cache key. Left out is what decides only whether or from where it is made."""
        return self.model_dump(mode="json", exclude={"split_long", "timeout_s"})

    def track_values(self) -> dict[str, Any]:
        """What the faces of a video depend on: changing the rest cuts again without new landmarks."""
        names = {"landmarker", "tolerance_px", "max_faces", "smoothing_s", "max_lag_px", "min_mouth_width_px"}
        # by these a video is turned down while it is decoded
        names |= {"max_gap_s", "max_source_pixels", "max_source_s"}
        return self.model_dump(mode="json", include=names)


class InferenceParams(Section):
    """How a video of any length is cut into clips that the model reads."""

    longest_s: float = Field(10.0, ge=1, le=60, description="a longer stretch is cut, s")
    min_pause_s: float = Field(
        0.4, ge=0.1, le=5, description="stillness of the mouth that parts sentences, s"
    )
    overlap_s: float = Field(
        1.0, ge=0, le=10, description="shared by neighbouring windows where a stretch has no pause, s"
    )
    max_video_s: float = Field(14_400.0, gt=0, description="longer videos are oversized, s")

    @model_validator(mode="after")
    def _overlap_leaves_something(self) -> "InferenceParams":
        if self.overlap_s > self.longest_s / 2:
            raise ValueError("overlap_s must be at most half of longest_s")
        return self
