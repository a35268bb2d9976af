"""The section `corpus` of params.yaml."""

from typing import Literal

from pydantic import Field, model_validator

from shards.settings import Section

KindSetting = Literal["auto", "face", "mouth"]
"""Whether a video is searched for a face or is a ready mouth crop."""


class CorpusParams(Section):
    """Where the videos and transcripts are, and their layout."""

    kind: Literal["chinese_lips", "grid", "table"] = Field(
        "chinese_lips", description="layout: chinese_lips (raw, processed or older header), grid, table"
    )
    root: str = Field(description="folder of the corpus")
    license: str = Field(
        "",
        max_length=200,
        description="licence of the corpus, an SPDX name if possible; written into every pack; empty: unknown",
    )
    table: str = Field("clips.csv", description="kind table: CSV or Parquet, relative to the root")
    follow_links: bool = Field(
        False,
        description="also read videos outside the corpus that its links lead to (links of a Hugging Face cache count "
        "as inside)",
    )
    media_kind: KindSetting = Field(
        "auto",
        description="what the videos show: face, mouth (ready mouth crops, not searched for a face), or auto: "
        "checks small videos",
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
                "valid_fraction + test_fraction must be below 1, or no clip is left for training"
            )
        return self
