"""What training has come to: network, optimiser, random state and position; into a checkpoint and back."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from model.checkpoints import (
    CHECKPOINT_VERSION,
    load_checkpoint,
    plan_identity_of,
    refuse_other_model,
    save_checkpoint,
)
from model.device import Precision
from model.fine_tuning import parameter_groups
from model.job import Progress, TrainingJob
from model.network import LipNetwork, differences
from model.reader import LipReader
from model.runs import RunFolder, logger, run_fingerprint
from model.text import NORMALISER_VERSION
from model.training_data import TrainingData
from shards.cores import usable_cores
from shards.errors import CheckpointError


class TrainingState:
    """Fresh weights, drawn from torch's global random state; `restore` takes others."""

    def __init__(
        self, job: TrainingJob, device: torch.device, precision: Precision, data: TrainingData
    ) -> None:
        self.job, self.device, self.data = job, device, data
        self.valid_hash = data.valid_hash
        self.network = LipNetwork(data.model, data.vocabulary, job.train.heads).to(device)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.network, job.train),
            lr=job.train.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.dtype == torch.float16)
        self.progress = Progress()
        self.threads = job.machine.threads
        """CPU threads of a step; 0: not chosen yet."""

    def set_learning_rate(self, rate: float) -> None:
        """`rate` is the top layer's; each group has its share of it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_share"]

    def stepped(self) -> None:
        """After every optimiser step that was taken."""

    def reader(self, precision: Precision) -> LipReader:
        """The network as it stands, to validate with."""
        data, job = self.data, self.job
        return LipReader(
            self.network,
            data.vocabulary,
            data.model,
            job.text,
            data.fps,
            self.device,
            precision,
            data.crop_px,
        )

    def as_checkpoint(self, val_loss: float | None) -> dict[str, Any]:
        """Everything that going on needs; `epoch` is the last whole one, as in the older trainer's files."""
        job, progress = self.job, self.progress
        sections, vocabulary = job.deciding_sections.items(), self.data.vocabulary
        return {
            "epoch": progress.epoch - 1,
            "model_state_dict": self.network.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "scheduler_state_dict": {"epoch": progress.epoch, "batches_done": progress.batches_done},
            "scaler_state_dict": self.scaler.state_dict(),
            "val_loss": val_loss,
            "best_val_loss": progress.best_val_loss,
            "val_cer": progress.curves[-1]["val_cer"] if progress.curves else None,
            "best_val_cer": progress.best_val_cer,
            "version": CHECKPOINT_VERSION,
            "normaliser_version": NORMALISER_VERSION,
            **{f"{name}_params": section.model_dump(mode="json") for name, section in sections},
            "model_params": self.data.model.model_dump(mode="json"),
            "tokenizer": vocabulary.characters.to_json(),
            "syllables": vocabulary.syllables.to_json() if vocabulary.syllables else None,
            "heads": list(job.train.heads),
            "training_state_dict": None,
            "fps": self.data.fps,
            "crop_px": self.data.crop_px,
            "progress": vars(progress).copy(),
            "plan_identity": self.data.plan_identity.as_dict(),
            "valid_hash": self.valid_hash,
            "threads": torch.get_num_threads(),
            "random_state": torch.get_rng_state(),
            "cuda_random_state": torch.cuda.get_rng_state(self.device)
            if self.device.type == "cuda"
            else None,
        }

    def restore(self, run: RunFolder) -> Path | None:
        """Loads --resume, or the position of the same run; the file gone on from, None for a fresh start.

        Raises CheckpointError where the file is of another model or vocabulary, or followed another epoch plan
        and `job.accept_new_plan` is not set.
        """
        job = self.job
        source = job.resume or (run.last if run.last.exists() else None)
        if source is None:
            return None
        state = load_checkpoint(source)
        refuse_other_model(state, self.data.model, self.data.vocabulary, job.train.heads, source)
        other_plan = self.data.plan_identity.differences(plan_identity_of(state, source))
        if other_plan and not job.accept_new_plan:
            raise CheckpointError(_told_refusal(source, other_plan, state["progress"]))
        self.network.load_state_dict(state["model_state_dict"])
        wanted = [(group["weight_decay"], group["rate_share"]) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer_state_dict"])
        for group, (weight_decay, rate_share) in zip(self.optimizer.param_groups, wanted, strict=True):
            # loading brings the older run's settings back; the momenta alone are wanted
            group["weight_decay"], group["rate_share"] = weight_decay, rate_share
        if state["scaler_state_dict"]:  # empty where the older run needed none
            self.scaler.load_state_dict(state["scaler_state_dict"])
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["random_state"])
        if self.device.type == "cuda" and state["cuda_random_state"] is not None:
            torch.cuda.set_rng_state(state["cuda_random_state"], self.device)
        # the sums of two thread counts differ in the last bit; the same count goes on bit for bit
        self.threads = self.threads or min(state["threads"], usable_cores())
        if job.resume:
            self._keep_best_of(source, state, run)
        if other_plan:
            self._leave_plan(source, other_plan)
        return source

    def _leave_plan(self, source: Path, other_plan: list[str]) -> None:
        """Positions of two plans are not comparable: an epoch under way starts anew."""
        anew = ""
        if self.progress.batches_done:
            anew = (
                f": epoch {self.progress.epoch} starts anew from its first batch, "
                f"not after batch {self.progress.batches_done}"
            )
            self.progress.restart_epoch()
        logger.warning("%s followed another epoch plan (%s)%s", source, "; ".join(other_plan), anew)

    def _keep_best_of(self, source: Path, resumed: dict[str, Any], run: RunFolder) -> None:
        """Takes over the best model beside a resumed checkpoint, where it is the one that checkpoint knew.

        Else the best starts anew: a model of later epochs, of another run, or chosen by other clips or another
        decoding, is not this run's best.
        """
        best = source.parent / run.best.name
        if other_choice := self._other_choice(resumed):
            why = f"its CER cannot be compared ({'; '.join(other_choice)})"
            self.progress.best_val_loss = float("inf")
        else:
            why = "it is of other epochs, or of another run"
            try:
                state = load_checkpoint(best)
                refuse_other_model(state, self.data.model, self.data.vocabulary, self.job.train.heads, best)
                if state["progress"]["curves"] == self.progress.curves[: self.progress.best_epoch + 1]:
                    save_checkpoint(run.best, state)
                    return
            except CheckpointError as error:
                why = str(error)
        logger.info("%s is not taken over, the best model starts anew: %s", best, why)
        run.best.unlink(missing_ok=True)
        self.progress.best_val_cer, self.progress.best_epoch = float("inf"), -1

    def _other_choice(self, state: dict[str, Any]) -> list[str]:
        """What the best model is chosen by, where it differs from that of a checkpoint."""
        told = ["other valid clips"] if state["valid_hash"] != self.valid_hash else []
        return told + other_params(self.job, state, ("text", "decode"))


def other_params(job: TrainingJob, state: dict[str, Any], names: Iterable[str]) -> list[str]:
    """A line for each parameter of these of the deciding sections that differs from the checkpoint's."""
    return [
        f"{name}.{line}"
        for name in names
        for line in differences(job.deciding_sections[name].model_dump(mode="json"), state[f"{name}_params"])
    ]


def run_of(job: TrainingJob, data: TrainingData) -> RunFolder:
    """Where training `job` with `data` stands, or would stand."""
    run_id = run_fingerprint(
        sections=tuple(job.deciding_sections.values()),
        plan_hash=data.plan_identity.hash,
        valid_hash=data.valid_hash,
    )
    return RunFolder(job.runs, run_id)


def _told_refusal(source: Path, other_plan: list[str], progress: dict[str, Any]) -> str:
    anew = f", epoch {progress['epoch']} anew from its first batch" if progress["batches_done"] else ""
    lines = "\n  ".join(other_plan)
    return (
        f"{source} followed another epoch plan:\n  {lines}\n"
        f"--accept-new-plan goes on from its weights by the plan of this run{anew}"
    )
