"""Everything that an epoch plan depends on. A checkpoint stores it, so a resumed run can list the differences."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from shards.files import fingerprint


@dataclass(frozen=True)
class PlanIdentity:
    """Two runs with equal identities see the same batches in the same order in every epoch."""

    plan_version: int
    samples: str
    """Result of `samples_hash`."""
    loader: dict[str, int | float | str]
    """The section `loader` without max_bad_fraction, which a user may raise after a bad sample."""
    batch_size: int
    world_size: int
    blend: dict[str, Any] | None = None
    """The packs, their unlabelled clips and the condition on clips (`Packs.blend_of`); None for one whole pack."""

    @property
    def hash(self) -> str:
        """Hex sha256 of all fields."""
        return fingerprint(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for a checkpoint or JSON; `from_dict` is the inverse."""
        values = asdict(self)
        if self.blend is None:
            del values["blend"]  # identities from before it existed stay equal
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PlanIdentity":
        """Returns the identity stored in a checkpoint; raises TypeError for wrong keys."""
        return cls(**values)

    def in_shape(self, batch_size: int, world_size: int) -> "PlanIdentity":
        """Returns the identity of the plan of the same clips for another batch size and number of ranks."""
        return replace(self, batch_size=batch_size, world_size=world_size)

    def differences(self, stored: "PlanIdentity") -> list[str]:
        """Returns messages about the differences to the epoch plan of a checkpoint; empty if there are none."""
        messages = []
        if self.plan_version != stored.plan_version:
            messages.append(
                f"plan version is {self.plan_version}, the checkpoint has {stored.plan_version}: the code has changed"
            )
        blends = blend_differences(self.blend or {}, stored.blend or {})
        messages += blends
        if self.samples != stored.samples and not blends:
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


def blend_differences(here: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Returns messages about the differences of two values of `Packs.blend_of`."""
    messages = []
    where, stored_where = here.get("where", ""), stored.get("where", "")
    if where != stored_where:
        messages.append(f"train.where is '{where}', the checkpoint has '{stored_where}'")
    unlabelled, stored_unlabelled = here.get("unlabelled"), stored.get("unlabelled")
    if unlabelled and stored_unlabelled and unlabelled != stored_unlabelled and where == stored_where:
        messages.append("the unlabelled clips differ: samples.parquet was packed again")
    packs, stored_packs = here.get("packs", {}), stored.get("packs", {})
    if list(packs) != list(stored_packs):
        shown = [", ".join(names) or "none" for names in (packs, stored_packs)]
        return [*messages, f"train.data has the packs {shown[0]}, the checkpoint has {shown[1]}"]
    for name, pack in packs.items():
        other = stored_packs[name]
        if pack["samples"] != other["samples"] and where == stored_where:
            messages.append(f"the clips of pack {name} differ: its samples.parquet was packed again")
        if pack["weight"] != other["weight"]:
            messages.append(
                f"the weight of pack {name} is {pack['weight']}, the checkpoint has {other['weight']}"
            )
    return messages


def _shown(value: int | float | str | None) -> str:
    return "none" if value is None else str(value)


def _ranks(number: int) -> str:
    return "rank" if number == 1 else "ranks"
