"""The section `report` of params.yaml."""

from pydantic import Field

from shards.settings import Section


class ReportParams(Section):
    """What the report shows."""

    split: str = Field("test", description="split that is scored")
    seed: int = Field(0, ge=0, description="permutation of the chance CER")
    num_examples: int = Field(
        6, ge=1, le=100, description="worst, median and best clips shown as film strips"
    )
    resamples: int = Field(2_000, ge=100, le=100_000, description="of speakers, for the 95 % interval")
