"""The sections of params.yaml that `stages` owns."""

from typing import Any, Literal

from pydantic import Field, model_validator

from shards.settings import Section

KindSetting = Literal["auto", "face", "mouth"]
"""What decides whether a video is searched for a face or is a ready mouth crop."""


LETTERS_A_SYLLABLE = 2.5
"""By which `crop.max_chars_per_s` counts scripts of letters: English has about 3, Italian 2.3, Arabic, which writes no
short vowels, 2 to 2.5."""


class CorpusParams(Section):
    """Where the videos and transcripts are, and how they are laid out."""

    kind: Literal["chinese_lips", "grid", "table"] = Field(
        "chinese_lips", description="layout: chinese_lips (raw, processed or older header), grid, table"
    )
    root: str = Field(description="folder of the corpus")
    license: str = Field(
        "",
        max_length=200,
        description="licence of the corpus, an SPDX name where there is one; stands in every pack; empty: unknown",
    )
    table: str = Field("clips.csv", description="kind table: CSV or Parquet, relative to the root")
    follow_links: bool = Field(
        False,
        description="read videos that links of the corpus lead to outside of it (those of a Hugging Face cache "
        "are within)",
    )
    media_kind: KindSetting = Field(
        "auto",
        description="what the videos show: face, mouth (ready mouth crops, not searched for a face), or auto: "
        "small videos are looked at",
    )
    speaker_overlap: Literal["error", "warn"] = Field(
        "error", description="what to do when one speaker or one video is in two splits"
    )
    valid_fraction: float = Field(
        0.05, ge=0, lt=1, description="kind table without a split column: share of valid"
    )
    test_fraction: float = Field(
        0.1, ge=0, lt=1, description="kind table without a split column: share of test"
    )
    seed: int = Field(0, ge=0, description="kind table without a split column: the split's seed")

    @model_validator(mode="after")
    def _fractions_leave_training_clips(self) -> "CorpusParams":
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                "valid_fraction + test_fraction must stay below 1, or nothing is left to train on"
            )
        return self


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


class ReportParams(Section):
    """What the report shows."""

    split: str = Field("test", description="split that is scored")
    seed: int = Field(0, ge=0, description="permutation of the chance CER")
    num_examples: int = Field(
        6, ge=1, le=100, description="worst, median and best clips shown as film strips"
    )
    resamples: int = Field(2_000, ge=100, le=100_000, description="of speakers, for the 95 % interval")


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
