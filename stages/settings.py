"""The sections `corpus`, `crop`, `inference` and `report` of params.yaml."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from shards.settings import Section

KindSetting = Literal["auto", "face", "mouth"]
"""Whether a video is searched for a face or is a ready mouth crop."""
LETTERS_A_SYLLABLE = 2.5
"""Letters that `crop.max_chars_per_s` counts as one syllabic sign. English has about 3, Italian 2.3, Arabic 2 to 2.5,
since it does not write short vowels."""


class CorpusParams(Section):
    """Where the videos and transcripts are, and their layout."""

    kind: Literal["chinese_lips", "grid", "table", "cmlr", "cnvsrc", "lrs2", "lrs3", "manifest", "kaldi"] = (
        Field(
            "chinese_lips",
            description="layout: chinese_lips (raw, processed or older header), grid, table, cmlr, "
            "cnvsrc (and CN-CVS), lrs2, lrs3, manifest (JSON lines), kaldi",
        )
    )
    root: str = Field(description="folder of the corpus")
    license: str = Field(
        "",
        max_length=200,
        description="licence of the corpus, an SPDX name if possible; written into every pack; empty: unknown",
    )
    table: str = Field(
        "clips.csv",
        description="the CSV or Parquet file (kind table), or a pattern of files (manifest) or data folders (kaldi): "
        "absolute or relative to the root, inside it or not; its videos must be inside",
    )
    follow_links: bool = Field(
        False,
        description="also read videos outside the corpus that its links lead to (links of a Hugging Face cache count "
        "as inside)",
    )
    audio: str = Field(
        "",
        description="for pack.audio: the file with a clip's sound, relative to the root, with {clip_id}, {speaker} or "
        "{name} (of the video, without extension), such as audio/{speaker}/{name}.wav; empty: the video's own sound. "
        "A table names it in its column audio",
    )
    media_kind: KindSetting = Field(
        "auto",
        description="what the videos show: face, mouth (ready mouth crops, not searched for a face), or auto: "
        "checks small videos",
    )
    speaker_overlap: Literal["error", "warn"] = Field(
        "error", description="what to do when one speaker or one video is in two splits"
    )
    unlabelled: Literal["reject", "keep"] = Field(
        "reject",
        description="training clips without a text: reject them as empty_text, or keep them in the split unlabelled",
    )
    valid_fraction: float = Field(
        0.05, ge=0, lt=1, description="clips without a split, and lrs3: share of valid"
    )
    test_fraction: float = Field(0.1, ge=0, lt=1, description="clips without a split: share of test")
    seed: int = Field(0, ge=0, description="seed of that split")

    @field_validator("audio")
    @classmethod
    def _names_known_fields(cls, pattern: str) -> str:
        try:
            pattern.format(clip_id="", speaker="", name="")
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{pattern} may have only the fields {{clip_id}}, {{speaker}} and {{name}} ({error!r})"
            ) from error
        return pattern

    @model_validator(mode="after")
    def _fractions_leave_training_clips(self) -> "CorpusParams":
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                "valid_fraction + test_fraction must be below 1, or no clip is left for training"
            )
        return self


class CropParams(Section):
    """How a mouth clip is cut, and which clips are rejected."""

    size_px: int = Field(96, ge=16, le=512, description="width and height of the mouth crop, px")
    target_fps: float = Field(25.0, ge=1, le=120, description="frame rate of the mouth clip, 1/s")
    smoothing_s: float = Field(0.5, ge=0, le=5, description="window of the smoothing of the transform, s")
    max_lag_px: float = Field(
        1.8, ge=0, description="how far the smoothed window may lag behind a moving head, crop px"
    )
    landmarker: Literal["litert", "mediapipe"] = Field(
        "litert", description="landmark detector: the bundle's models in LiteRT, or mediapipe's graph"
    )
    tolerance_px: float = Field(
        0.35,
        ge=0,
        le=10,
        description="the largest error of the smoothed window that skipping detection may cause, crop px",
    )
    max_faces: int = Field(3, ge=1, le=16, description="largest number of faces tracked at once")
    speaker: Literal["motion", "sound"] = Field(
        "motion", description="of several faces, take the one whose lips move most, or follow the sound best"
    )
    max_gap_s: float = Field(0.5, ge=0, description="longest gap without the face that is interpolated, s")
    min_frames: int = Field(10, ge=1, description="shorter clips are too_short, frames at target_fps")
    max_frames: int = Field(1_000, ge=1, description="longer clips are too_long, frames at target_fps")
    split_long: bool = Field(
        False, description="ingest cuts longer clips at pauses if the transcript has times"
    )
    max_chars_per_s: float = Field(
        12.0, gt=0, description="faster labels are label_too_long, syllabic signs/s; 2.5 letters count as one"
    )
    min_detection_rate: float = Field(0.8, ge=0, le=1, description="less is low_detection, share of frames")
    min_mouth_width_px: float = Field(16.0, ge=0, description="less is small_mouth, source px")
    max_yaw_deg: float = Field(65.0, gt=0, le=90, description="more is turned_away, median over the clip")
    max_jitter_px: float = Field(3.0, gt=0, description="more is unstable_track, mean crop px per frame")
    min_mouth_motion: float = Field(
        0.0, ge=0, description="less is still_mouth, standard deviations of the crop; 0: off"
    )
    max_source_pixels: int = Field(3_840 * 2_160, gt=0, description="larger pictures are oversized, px")
    max_source_s: float = Field(600.0, gt=0, description="longer videos are oversized, s")
    max_source_mb: float = Field(4_096.0, gt=0, description="larger files are oversized, MB")
    timeout_s: float = Field(600.0, gt=0, description="longer work on one clip is stopped: timeout, s")

    def cache_values(self) -> dict[str, Any]:
        """Returns the values for a clip's cache key: all that can change it, so not `split_long` and `timeout_s`."""
        # clips that were cut before `speaker` existed keep their keys
        by_motion = {"speaker"} if self.speaker == "motion" else set()
        return self.model_dump(mode="json", exclude={"split_long", "timeout_s"} | by_motion)

    def track_values(self) -> dict[str, Any]:
        """Returns the values that a video's faces depend on. Changing others cuts again without new landmarks."""
        names = {"landmarker", "tolerance_px", "max_faces", "smoothing_s", "max_lag_px", "min_mouth_width_px"}
        # these reject a video while it is decoded
        names |= {"max_gap_s", "max_source_pixels", "max_source_s"}
        return self.model_dump(mode="json", include=names)


class InferenceParams(Section):
    """How a video of any length is cut into clips for the model, and how its characters get their times."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset(("times",))

    longest_s: float = Field(10.0, ge=1, le=60, description="a longer part is cut, s")
    min_pause_s: float = Field(
        0.4, ge=0.1, le=5, description="shortest rest of the mouth that separates sentences, s"
    )
    overlap_s: float = Field(
        1.0, ge=0, le=10, description="overlap of neighbouring windows if a part has no pause, s"
    )
    max_video_s: float = Field(14_400.0, gt=0, description="longer videos are oversized, s")
    times: Literal["auto", "path", "evidence"] = Field(
        "auto",
        description="of characters and words: path (of CTC, fast, may be off by several frames), evidence (frames that "
        "show them, slow), auto (evidence for karaoke, ctm, textgrid, elan)",
    )

    @model_validator(mode="after")
    def _overlap_leaves_something(self) -> "InferenceParams":
        if self.overlap_s > self.longest_s / 2:
            raise ValueError("overlap_s must be at most half of longest_s")
        return self


class ReportParams(Section):
    """Contents of the report."""

    split: str = Field("test", description="split that is scored")
    seed: int = Field(0, ge=0, description="random seed of the bootstrap")
    num_examples: int = Field(
        6, ge=1, le=100, description="clips in each of the lists worst, median and best"
    )
    resamples: int = Field(
        2_000, ge=100, le=100_000, description="bootstrap resamples of speakers for the 95 % interval"
    )
