"""The section `report` of params.yaml."""

from pydantic import Field

from shards.settings import Section


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
