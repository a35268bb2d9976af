"""The state of a training: network, optimiser and position. Saves and restores checkpoints."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.checkpoints import (
    CHECKPOINT_VERSION,
    load_checkpoint,
    plan_identity_of,
    refuse_other_model,
    reported_as_modified,
    save_checkpoint,
)
from model.decoding.reader import LipReader
from model.device import Precision, channels_last_weights
from model.networks.network import LipNetwork, differences
from model.networks.sound_head import SoundHead, SoundLearner
from model.progress import Progress
from model.runs import RunFolder, logger
from model.settings import TrainParams
from model.text import NORMALISER_VERSION
from model.training.fine_tuning import head_groups, parameter_groups, start_from
from model.training.last_checkpoint import load_last
from model.training.ranks import SINGLE_PROCESS, Ranks
from model.training.schedule import WeightAverage
from model.training.training_data import TrainingData, TrainingJob
from shards.elastic_plan import ElasticPlan, PlanShape
from shards.errors import CheckpointError
from shards.machine import usable_cores


class TrainingState:
    """Starts with fresh weights from torch's global random state; `restore` loads a checkpoint."""

    def __init__(
        self,
        job: TrainingJob,
        device: torch.device,
        precision: Precision,
        data: TrainingData,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.job, self.device, self.data, self.ranks = job, device, data, ranks
        self.network = LipNetwork(data.model, data.vocabulary, job.train.heads).to(device)
        if device.type == "cuda":
            channels_last_weights(self.network)
        self.sound_head: SoundHead | None = None
        groups = parameter_groups(self.network, job.train)
        self.trained: nn.Module = self.network
        """Everything that training changes: the network, and the sound head if there is one."""
        if job.train.audio_weight > 0:
            self.sound_head = SoundHead(self.network, job.train.audio_tokens).to(device)
            self.trained = SoundLearner(self.network, self.sound_head)
            groups += head_groups(self.sound_head, job.train)
        self.learner: nn.Module = self.trained
        """The network that a step calls. With several ranks, the trainer wraps it."""
        decay = job.train.ema_decay
        self.average = WeightAverage(self.network, decay) if decay else None
        self.sound_average = WeightAverage(self.sound_head, decay) if decay and self.sound_head else None
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=job.train.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.dtype == torch.float16)
        self.progress = Progress(shape=list(data.shape))
        self.resumed_shape: PlanShape | None = None
        """The shape of the checkpoint's plan, if it is another than that of these processes and parameters."""
        self.threads = job.machine.threads
        """CPU threads of a step; 0 means not chosen yet."""

    def set_learning_rate(self, rate: float) -> None:
        """Sets the learning rate: `rate` for the top layer, and each group's share of it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_share"]

    def after_step(self) -> None:
        """Updates the averages. Call it after each optimiser step that was taken."""
        for average in (self.average, self.sound_average):
            if average:
                average.step()

    @property
    def evaluation_network(self) -> LipNetwork:
        """The network that is validated and saved: the average of the weights, or the weights themselves."""
        return self.average.network if self.average else self.network

    def reader(self, precision: Precision) -> LipReader:
        """Returns a reader with the current weights, for validation."""
        data, job = self.data, self.job
        return LipReader(
            self.evaluation_network,
            data.vocabulary,
            data.model,
            job.text,
            data.fps,
            self.device,
            precision,
            data.crop_px,
        )

    def as_checkpoint(self, val_loss: float | None) -> dict[str, Any]:
        """Returns everything that resuming needs. `epoch` is the last complete epoch, as in the older trainer's files.

        It is the same on all ranks.
        """
        job, progress = self.job, self.progress
        shape = progress.plan_shape
        sections, vocabulary = job.deciding_sections.items(), self.data.vocabulary
        return {
            "epoch": progress.epoch - 1,
            "model_state_dict": self.evaluation_network.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "scheduler_state_dict": {"epoch": progress.epoch, "batches_done": progress.batches_done},
            "scaler_state_dict": self.scaler.state_dict(),
            "val_loss": val_loss,
            "best_val_loss": progress.best_val_loss,
            "val_cer": progress.curves[-1]["val_cer"] if progress.curves else None,
            "best_val_cer": progress.best_val_cer,
            "version": CHECKPOINT_VERSION,
            "normaliser_version": NORMALISER_VERSION,
            **{f"{name}_params": section.recorded() for name, section in sections},
            "model_params": self.data.model.model_dump(mode="json"),
            "tokenizer": vocabulary.characters.to_json(),
            "syllables": vocabulary.syllables.to_json() if vocabulary.syllables else None,
            "heads": list(job.train.heads),
            "training_state_dict": self.network.state_dict() if self.average else None,
            "averaged_steps": self.average.num_steps if self.average else 0,
            **self.data.clips,
            **self._sound_head_state(),
            "progress": progress.recorded(),
            "plan_identity": self.data.plan_identity.in_shape(shape.batch_size, shape.world_size).as_dict(),
            "valid_hash": self.data.valid_hash,
            "threads": torch.get_num_threads(),
            "world_size": self.ranks.world_size,
            # checkpoints of earlier programs hold it; now every random draw depends on the clips and the epoch only
            "random_state": None,
            "cuda_random_state": None,
        }

    def _sound_head_state(self) -> dict[str, Any]:
        if not self.sound_head:
            return {}
        assert self.data.sound_tokens is not None
        kept = self.sound_average.network if self.sound_average else self.sound_head
        return {
            "audio_head": {
                "weights": kept.state_dict(),
                "training_weights": self.sound_head.state_dict() if self.sound_average else None,
                "tokens": self.data.sound_tokens._asdict(),
            }
        }

    def plan(self) -> ElasticPlan:
        """Returns this process's part of the current epoch."""
        return self.data.epoch(self.progress.epoch, self.progress.plan_shape, self.progress.done)

    def restore(self, run: RunFolder) -> Path | None:
        """Loads `job.resume`, or the last checkpoint of the run; returns that file, or None for a new run.

        Raises CheckpointError if the file has another model or vocabulary, was modified, or used another epoch plan
        while `job.accept_new_plan` is not set.
        """
        job = self.job
        found = (load_checkpoint(job.resume), job.resume) if job.resume else load_last(run)
        if found is None:
            self._start()
            return None
        state, source = found
        if state["optimizer_state_dict"] is None:
            raise CheckpointError(
                f"{source} has only weights and no training to resume (pipeline import-weights or average wrote it); "
                f"start from it with --set train.init_from={source}"
            )
        with reported_as_modified(source):
            other_plan = self._take_over(state, source)
        if job.resume:
            self._keep_best_of(source, state, run)
        if other_plan:
            self._leave_plan(source, other_plan)
        else:
            self._change_shape()
        return source

    def _take_over(self, state: dict[str, Any], source: Path) -> list[str]:
        """Loads a checkpoint that fits; returns the differences of its epoch plan, apart from its shape."""
        job = self.job
        self._refuse_other_model(state, source)
        progress, theirs = Progress.of(state["progress"]), plan_identity_of(state, source)
        if not progress.shape:  # of an earlier program
            accumulation_steps = TrainParams.model_validate(state["train_params"]).accumulation_steps
            progress.shape = [theirs.world_size, theirs.batch_size, accumulation_steps]
            progress.process_s = progress.seconds * theirs.world_size
        ours = self.data.plan_identity.in_shape(theirs.batch_size, theirs.world_size)
        other_plan = ours.differences(theirs)
        if other_plan and not job.accept_new_plan:
            raise CheckpointError(_other_plan_message(source, other_plan, progress))
        self._refuse_other_sound(state, source)
        self._refuse_other_groups(state, source)
        self._restore_weights(state, source)
        self._restore_momenta(state["optimizer_state_dict"])
        if state["scaler_state_dict"]:  # empty if that run used no scaler
            self.scaler.load_state_dict(state["scaler_state_dict"])
        self.progress = progress
        # another thread count changes the last bit of sums; with the same count, resuming is bit-identical. Another
        # number of processes shares the cores in another way.
        if state.get("world_size", theirs.world_size) == self.ranks.world_size:
            self.threads = self.threads or min(state["threads"], usable_cores())
        return other_plan

    def _start(self) -> None:
        """Copies the weights of train.init_from into the fresh network."""
        train, data = self.job.train, self.data
        if train.init_from:
            path = Path(train.init_from)
            for line in start_from(self.network, data.vocabulary, data.model, path, train.seed, data.clips):
                logger.info("%s", line)
            if self.average:
                self.average.restore(self.network.state_dict(), 0)

    def _refuse_other_model(self, state: dict[str, Any], source: Path) -> None:
        data = self.data
        refuse_other_model(state, data.model, data.vocabulary, self.job.train.heads, data.clips, source)

    def _refuse_other_sound(self, state: dict[str, Any], source: Path) -> None:
        """Raises CheckpointError if only one of the runs learns from sound, or with another number of tokens."""
        theirs = len(state["audio_head"]["tokens"]["centre_VD"]) if "audio_head" in state else 0
        ours = self.job.train.audio_tokens if self.sound_head else 0
        if theirs != ours:
            raise CheckpointError(
                f"{source} was trained with {theirs or 'no'} sound tokens, this run has {ours or 'none'} "
                "(train.audio_weight, train.audio_tokens); set them to the checkpoint's values, or start a new run "
                f"from its weights with --set train.init_from={source}"
            )

    def _refuse_other_groups(self, state: dict[str, Any], source: Path) -> None:
        """Raises CheckpointError if the groups differ: momenta belong to parameters by their position in the groups."""
        groups = (state["optimizer_state_dict"]["param_groups"], self.optimizer.param_groups)
        there, here = ([len(group["params"]) for group in some] for some in groups)
        if there != here:
            raise CheckpointError(
                f"{source} was trained with another train.freeze or train.layer_decay (its optimiser has {sum(there)} "
                f"tensors in {len(there)} groups, this run's has {sum(here)} in {len(here)}); set them to the "
                f"checkpoint's values, or start a new run from its weights with --set train.init_from={source}"
            )

    def _restore_weights(self, state: dict[str, Any], source: Path) -> None:
        """Restores the weights, and their average if it is used: the checkpoint's, or a new one."""
        average, weights = state["model_state_dict"], state["training_state_dict"]
        if self.sound_head:
            head = state["audio_head"]
            self.sound_head.load_state_dict(head["training_weights"] or head["weights"])
            if self.sound_average:
                num_steps = state["averaged_steps"] if head["training_weights"] else 0
                self.sound_average.restore(head["weights"], num_steps)
        self.network.load_state_dict(weights or average)
        if self.average and weights:
            self.average.restore(average, state["averaged_steps"])
        elif self.average:
            self.average.restore(average, 0)
            logger.info("%s has no average of the weights: starting one (train.ema_decay)", source)
        elif weights:
            logger.info("%s has an average of the weights: no longer updated (train.ema_decay)", source)

    def _restore_momenta(self, theirs: dict[str, Any]) -> None:
        """Restores momenta, without the settings of that run. Raises ValueError if a shape differs."""
        wanted = [(group["weight_decay"], group["rate_share"]) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(theirs)
        for group, (weight_decay, rate_share) in zip(self.optimizer.param_groups, wanted, strict=True):
            group["weight_decay"], group["rate_share"] = weight_decay, rate_share
        for parameter, values in self.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):  # torch does not check the shapes
                if values[name].shape != parameter.shape:
                    raise ValueError(
                        f"{name} has shape {list(values[name].shape)}, its parameter {list(parameter.shape)}"
                    )

    def _change_shape(self) -> None:
        """Keeps the plan of the checkpoint if it has the same global batch; else plans the rest of the epoch again."""
        ours, theirs = self.data.shape, self.progress.plan_shape
        if ours != theirs:
            self.resumed_shape = theirs
            if ours.global_batch != theirs.global_batch:
                self.progress.plan_again(ours)

    def _leave_plan(self, source: Path, other_plan: list[str]) -> None:
        """Restarts an unfinished epoch: positions of two plans are not comparable."""
        restart = ""
        if self.progress.batches_done:
            restart = (
                f": epoch {self.progress.epoch} restarts at its first batch, "
                f"not after batch {self.progress.batches_done}"
            )
            self.progress.restart_epoch()
        self.progress.shape = list(self.data.shape)
        logger.warning("%s used another epoch plan (%s)%s", source, "; ".join(other_plan), restart)

    def _keep_best_of(self, source: Path, resumed: dict[str, Any], run: RunFolder) -> None:
        """Copies the best model next to a resumed checkpoint, if it belongs to that checkpoint.

        Else this run starts without a best model: a model of later epochs, of another run, or chosen by other clips or
        another decoding, is not this run's best.
        """
        best = source.parent / run.best.name
        if other_choice := self._other_choice(resumed):
            why = f"its CER cannot be compared ({'; '.join(other_choice)})"
            self.progress.best_val_loss = float("inf")
        else:
            why = "it belongs to other epochs or to another run"
            try:
                state = load_checkpoint(best)
                with reported_as_modified(best):
                    self._refuse_other_model(state, best)
                    curves = Progress.of(state["progress"]).curves
                if curves == self.progress.curves[: self.progress.best_epoch + 1]:
                    if self.ranks.is_first:
                        save_checkpoint(run.best, state)
                    return
            except CheckpointError as error:
                why = str(error)
        logger.info("%s is not copied, this run starts without a best model: %s", best, why)
        if self.ranks.is_first:
            run.best.unlink(missing_ok=True)
        self.progress.best_val_cer, self.progress.best_epoch = float("inf"), -1
        self.progress.validations_since_best = 0

    def _other_choice(self, state: dict[str, Any]) -> list[str]:
        """Returns what differs from the checkpoint in choosing the best model."""
        changes = ["other valid clips"] if state["valid_hash"] != self.data.valid_hash else []
        return changes + other_params(self.job, state, ("text", "decode"))


def other_params(job: TrainingJob, state: dict[str, Any], names: Iterable[str]) -> list[str]:
    """Returns a line per parameter of the sections `names` that differs from the checkpoint's."""
    return [
        f"{name}.{line}"
        for name in names
        if f"{name}_params" in state  # the teacher of self-training, only where that is on
        for line in differences(job.deciding_sections[name].recorded(), state[f"{name}_params"])
    ]


def _other_plan_message(source: Path, other_plan: list[str], progress: Progress) -> str:
    restart = f"; epoch {progress.epoch} restarts at its first batch" if progress.batches_done else ""
    lines = "\n  ".join(other_plan)
    return (
        f"{source} used another epoch plan:\n  {lines}\n"
        f"--accept-new-plan resumes from its weights with the plan of this run{restart}"
    )
