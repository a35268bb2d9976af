"""What an epoch plan depends on, named: a checkpoint keeps it, and a resumed run can say what differs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shards.files import fingerprint


@dataclass(frozen=True)
class PlanIdentity:
    """Two runs of equal identities see the same batches in the same order, epoch by epoch."""

    plan_version: int
    samples: str
    """Hash of the catalogue's rows, as `samples_hash` gives it."""
    loader: dict[str, int | float]
    """The section `loader` but for max_bad_fraction, which a run that met a bad sample may raise."""
    batch_size: int
    world_size: int

    @property
    def hash(self) -> str:
        """Hex sha256 of all of it."""
        return fingerprint(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or JSON; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PlanIdentity":
        """The identity that a checkpoint keeps; TypeError where the keys are other ones."""
        return cls(**values)

    def differences(self, there: "PlanIdentity") -> list[str]:
        """Sentences that name what differs from the plan of a checkpoint; empty where nothing does."""
        told = []
        if self.plan_version != there.plan_version:
            told.append(
                f"plan version {self.plan_version} here, {there.plan_version} there: the code has changed"
            )
        if self.samples != there.samples:
            told.append("other clips: samples.parquet was packed anew")
        for key in sorted(self.loader.keys() | there.loader.keys()):
            here, other = self.loader.get(key), there.loader.get(key)
            if here != other:
                told.append(f"loader.{key} is {_shown(here)}, the checkpoint has {_shown(other)}")
        if self.batch_size != there.batch_size:
            told.append(f"train.batch_size {self.batch_size} here, {there.batch_size} there")
        if self.world_size != there.world_size:
            told.append(f"{self.world_size} {_ranks(self.world_size)} here, {there.world_size} there")
        return told


def _shown(value: int | float | None) -> str:
    return "none" if value is None else str(value)


def _ranks(number: int) -> str:
    return "rank" if number == 1 else "ranks"
