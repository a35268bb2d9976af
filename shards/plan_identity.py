"""Everything that an epoch plan depends on. A checkpoint stores it, so a resumed run can list the differences."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shards.files import fingerprint


@dataclass(frozen=True)
class PlanIdentity:
    """Two runs with equal identities see the same batches in the same order in every epoch."""

    plan_version: int
    samples: str
    """Result of `samples_hash`."""
    loader: dict[str, int | float]
    """The section `loader` without max_bad_fraction, which a user may raise after a bad sample."""
    batch_size: int
    world_size: int

    @property
    def hash(self) -> str:
        """Hex sha256 of all fields."""
        return fingerprint(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for a checkpoint or JSON; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PlanIdentity":
        """Returns the identity stored in a checkpoint; raises TypeError for wrong keys."""
        return cls(**values)

    def differences(self, stored: "PlanIdentity") -> list[str]:
        """Returns messages about the differences to the epoch plan of a checkpoint; empty if there are none."""
        messages = []
        if self.plan_version != stored.plan_version:
            messages.append(
                f"plan version is {self.plan_version}, the checkpoint has {stored.plan_version}: the code has changed"
            )
        if self.samples != stored.samples:
            messages.append("the clips differ: samples.parquet was packed again")
        for key in sorted(self.loader.keys() | stored.loader.keys()):
            here, other = self.loader.get(key), stored.loader.get(key)
            if here != other:
                messages.append(f"loader.{key} is {_shown(here)}, the checkpoint has {_shown(other)}")
        if self.batch_size != stored.batch_size:
            messages.append(f"train.batch_size is {self.batch_size}, the checkpoint has {stored.batch_size}")
        if self.world_size != stored.world_size:
            messages.append(
                f"this run has {self.world_size} {_ranks(self.world_size)}, the checkpoint {stored.world_size}"
            )
        return messages


def _shown(value: int | float | None) -> str:
    return "none" if value is None else str(value)


def _ranks(number: int) -> str:
    return "rank" if number == 1 else "ranks"
