"""A run that starts afresh may be a mistake: another one of the same folder may wait to be gone on with."""

from typing import Any

from model.checkpoints import load_checkpoint, plan_identity_of
from model.job import TrainingJob
from model.network import differences
from model.runs import RunFolder
from shards.errors import CheckpointError
from shards.identity import PlanIdentity


def told_unfinished(run: RunFolder, job: TrainingJob, identity: PlanIdentity) -> str | None:
    """A line about the latest unfinished run beside `run`: what differs, how to go on with it. None: there is none."""
    others = [path for path in job.runs.glob("*/last.pt") if path != run.last]
    for last in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            state = load_checkpoint(last, mapped=True)
            there = plan_identity_of(state, last)
        except CheckpointError:
            continue  # of another version: nothing goes on from it
        epoch, num_epochs = state["progress"]["epoch"], state["train_params"]["num_epochs"]
        if epoch < num_epochs:
            told = [*_other_params(job, state), *identity.differences(there)]
            go_on = f"pipeline train --params {last.parent / 'config.yaml'}"
            if identity.samples != there.samples:
                go_on = f"pipeline train --resume {last} --accept-new-plan"
            return (
                f"a fresh run starts, though {last.parent} stands unfinished in epoch {epoch} of {num_epochs} "
                f"({'; '.join(told) or 'other valid clips'}); to go on with that one: {go_on}"
            )
    return None


def _other_params(job: TrainingJob, state: dict[str, Any]) -> list[str]:
    return [
        f"{name}.{line}"
        for name, section in job.deciding_sections.items()
        for line in differences(section.model_dump(mode="json"), state[f"{name}_params"])
    ]
