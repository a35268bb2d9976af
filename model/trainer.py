"""The training loop: streams the shards, accumulates, validates, checkpoints, goes on where it stood."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from model import schedule
from model.augment import augmented_input, draw_change
from model.checkpoints import CHECKPOINT_VERSION, load_checkpoint, refuse_other_model, save_checkpoint
from model.device import Precision, choose_device, fastest_threads
from model.job import Progress, TrainingJob, TrainingSummary
from model.losses import LossParams, ctc_steps_needed, joint_loss_B, refuse_unspellable
from model.metrics import total_counts
from model.network import build_network, num_parameters
from model.reader import LipReader, as_channels_last
from model.runs import RunFolder, logger, refuse_foreign_checkpoints, run_fingerprint, training_log
from model.scoring import score_batches
from model.text import NORMALISER_VERSION, Tokenizer
from shards.cores import usable_cores
from shards.errors import CheckpointError, Interrupted, TrainingError
from shards.plan import EpochPlan, plan_epoch, plan_hash, plan_scoring, read_samples, samples_hash, splits_of
from shards.stream import ClipBatch, ShardStream, read_sample
from shards.terms import TRAIN_SPLIT, VALID_SPLIT

SAVE_EVERY_S = 60.0


def train(job: TrainingJob) -> TrainingSummary:
    """Trains to the end, or says that it was done before; publishes to `job.checkpoints` and `job.logs`.

    Goes on by itself where a run of the same fingerprint was interrupted. Raises TrainingError, ShardError,
    CheckpointError; Interrupted after SIGTERM or Ctrl-C.
    """
    trainer = _Trainer(job)
    with training_log(trainer.run, job.logs):
        return trainer.train()


class _Trainer:
    def __init__(self, job: TrainingJob) -> None:
        self.job = job
        self.device = choose_device(job.machine.device)
        self.precision = Precision.choose(job.train.mixed_precision, self.device)
        self.samples = read_samples(job.samples, TRAIN_SPLIT)
        has_valid = VALID_SPLIT in splits_of(job.samples)
        self.valid_samples = read_samples(job.samples, VALID_SPLIT) if has_valid else self.samples.slice(0, 0)
        first_clip, metadata = read_sample(job.shards, self.samples.slice(0, 1).to_pylist()[0])
        self.fps, self.crop_px = float(str(metadata["fps"])), first_clip.shape[1]
        if job.model.window_px > self.crop_px:
            raise TrainingError(
                f"model.window_px {job.model.window_px} is more than the {self.crop_px} px of the packed crops"
            )
        self.tokenizer = Tokenizer.of_labels(self.samples["label"].to_pylist())
        self.with_decoder = job.train.ctc_weight < 1
        self.plan_hash = plan_hash(self.samples, job.loader, job.train.batch_size)
        run_id = run_fingerprint(
            sections=(job.model, job.text, job.train, job.decode),
            plan_hash=self.plan_hash,
            valid_hash=samples_hash(self.valid_samples),
        )
        self.run = RunFolder(job.runs, run_id)
        if job.train.ctc_weight > 0:
            for table in (self.samples, self.valid_samples):
                refuse_unspellable(table, self.tokenizer, job.model.temporal_stride)
        torch.manual_seed(job.train.seed)
        self.network = build_network(job.model, self.tokenizer.num_tokens, self.with_decoder).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=job.train.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=job.train.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision.dtype == torch.float16)
        self.progress = Progress()
        self.threads = job.machine.threads
        self.stop_signal: int | None = None

    # -- the whole -------------------------------------------------------------------------------------

    def train(self) -> TrainingSummary:
        job = self.job
        refuse_foreign_checkpoints(job.checkpoints)
        resumed_from = self._restore()
        progress = self.progress
        self.run.start(job.config_text, self.tokenizer.to_json())
        finished_before = progress.epoch >= job.train.num_epochs
        if not finished_before:
            self._tell_start(resumed_from)
            self._train_epochs()
        else:
            logger.info("run %s is finished already: %d epochs", self.run.folder.name, progress.epoch)
            if not self.run.best.exists():
                save_checkpoint(self.run.best, self._state(None))
        self.run.write_curves(progress.curves, job.logs)
        self.run.publish(job.checkpoints)
        return TrainingSummary(
            epochs=progress.epoch,
            best_epoch=progress.best_epoch,
            best_val_cer=progress.best_val_cer if self.valid_samples.num_rows else None,
            num_parameters=num_parameters(self.network),
            seconds=progress.total_s,
            already_done=finished_before,
        )

    def _train_epochs(self) -> None:
        job, progress = self.job, self.progress
        pin_memory = self.device.type == "cuda"
        stream = ShardStream(job.shards, self.samples, job.machine, pin_memory)
        valid_stream = ShardStream(job.shards, self.valid_samples, job.machine, pin_memory)
        valid_batches = plan_scoring(self.valid_samples, job.loader, job.train.batch_size)
        if self.device.type == "cpu":
            self._choose_threads(stream)
        with self._signals():
            while progress.epoch < job.train.num_epochs:
                plan = plan_epoch(self.samples, job.loader, job.train.batch_size, progress.epoch)
                if len(plan.left_out) and progress.batches_done == 0:
                    logger.info(
                        "epoch %d: %d clips are left out (loader.max_frames)",
                        progress.epoch,
                        len(plan.left_out),
                    )
                self._train_epoch(stream, plan)
                self._end_epoch(valid_stream, valid_batches, plan)

    # -- one epoch -------------------------------------------------------------------------------------

    def _train_epoch(self, stream: ShardStream, plan: EpochPlan) -> None:
        """The windows of the epoch from where progress stands."""
        progress, accumulation = self.progress, self.job.train.accumulation_steps
        self.network.train()
        batches = stream.batches(plan.batches, progress.batches_done)
        last_save = time.monotonic()
        while progress.batches_done < len(plan.batches):
            start = time.monotonic()
            size = min(accumulation, len(plan.batches) - progress.batches_done)
            window = [next(batches) for _ in range(size)]
            progress.wait_s += time.monotonic() - start
            self._step(window, progress.epoch + progress.batches_done / len(plan.batches), len(plan.batches))
            progress.batches_done += size
            progress.seconds += time.monotonic() - start
            if self.job.on_batch:
                self.job.on_batch(progress.epoch, progress.batches_done, len(plan.batches))
            self._stop_if_asked()
            if time.monotonic() - last_save > SAVE_EVERY_S:
                self._save_last()
                last_save = time.monotonic()

    def _stop_if_asked(self, *_: int) -> None:
        if self.stop_signal is None:
            return
        self._save_last()
        raise Interrupted(
            f"stopped in epoch {self.progress.epoch} after {self.progress.batches_done} batches; "
            "the same command goes on from there"
        )

    def _step(self, window: list[ClipBatch], epochs_done: float, num_batches: int) -> None:
        """One optimiser step over the batches of `window`, normalised by all its characters."""
        train, progress = self.job.train, self.progress
        # a warm-up that began at 0 would waste its first step: the rate is that at the step's end
        rate = schedule.learning_rate(train, epochs_done + len(window) / num_batches / 2)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        num_chars = sum(len(label) for batch in window for label in batch.labels)
        for batch in window:
            loss_B = self._batch_loss(self.network, batch)
            if not torch.isfinite(loss_B).all():
                bad = [c for c, ok in zip(batch.clip_ids, torch.isfinite(loss_B), strict=True) if not ok]
                raise TrainingError(
                    f"the loss is not finite for {', '.join(bad)} in epoch {progress.epoch}; look at these clips "
                    "(`pipeline query`), or lower train.learning_rate"
                )
            self.scaler.scale(loss_B.sum() / num_chars).backward()
            progress.loss_sum += float(loss_B.detach().sum())
            progress.clips_seen += len(batch.clip_ids)
        progress.chars_seen += num_chars
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), train.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _batch_loss(self, network: torch.nn.Module, batch: ClipBatch) -> torch.Tensor:
        job, epoch = self.job, self.progress.epoch
        targets = [self.tokenizer.encode(label) for label in batch.labels]
        changes = []
        for clip_id, target, num_frames in zip(
            batch.clip_ids, targets, batch.num_frames_B.tolist(), strict=True
        ):
            change = draw_change(
                job.train.augment, job.loader.seed, epoch, clip_id, duration_s=num_frames / self.fps
            )
            # a clip is never played so fast that CTC could no longer spell its label
            fastest = num_frames / (ctc_steps_needed(target) * job.model.temporal_stride + 1)
            changes.append(replace(change, speed=min(change.speed, max(fastest, 1.0))))
        video_BCTYX, num_frames_B = augmented_input(
            batch.video_BTHW.to(self.device, non_blocking=True),
            batch.num_frames_B.to(self.device, non_blocking=True),
            changes,
            job.model,
        )
        with self.precision.autocast(self.device):
            encoded_BSE, num_steps_B = network.encode(as_channels_last(video_BCTYX), num_frames_B)  # type: ignore[operator]
            params = LossParams(
                job.train.ctc_weight, job.train.label_smoothing, schedule.teacher_forcing(job.train, epoch)
            )
            return joint_loss_B(network, encoded_BSE, num_steps_B, targets, params)  # type: ignore[arg-type]

    def _end_epoch(
        self, valid_stream: ShardStream, valid_batches: Sequence[np.ndarray], plan: EpochPlan
    ) -> None:
        """Validates, logs, checkpoints, and moves on to the next epoch."""
        job, progress, epoch = self.job, self.progress, self.progress.epoch
        train_loss = progress.loss_sum / max(progress.chars_seen, 1)
        is_last = epoch + 1 == job.train.num_epochs
        val_loss, val_cer = None, None
        if valid_batches and (epoch % job.train.valid_every == 0 or is_last):
            scored, val_loss = score_batches(
                self._reader(),
                self.valid_samples,
                valid_stream,
                valid_batches,
                decode=job.decode,
                loss=job.train,
                on_progress=self._stop_if_asked,
            )
            assert val_loss is not None
            val_cer = total_counts((clip.reference, clip.hypothesis) for clip in scored).cer
            progress.best_val_loss = min(progress.best_val_loss, val_loss)
        clips_per_s = progress.clips_seen / max(progress.seconds, 1e-9)
        wait_share = progress.wait_s / max(progress.seconds, 1e-9)
        told = "" if val_loss is None else f", val_loss={val_loss:.4f}, CER={val_cer:.4f}"
        logger.info(
            "Epoch %d: train_loss=%.4f%s, %.1f clips/s, waited %.1f %% for data",
            epoch,
            train_loss,
            told,
            clips_per_s,
            100 * wait_share,
        )
        progress.curves.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                "val_loss": val_loss,
                "val_cer": val_cer,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "clips_per_s": clips_per_s,
                "data_wait": wait_share,
                "padding": plan.padding_share,
            }
        )
        # of equals the later one, which has learnt more
        # with nothing to choose by it is the last one
        is_best = is_last and not valid_batches if val_cer is None else val_cer <= progress.best_val_cer
        if is_best:
            progress.best_epoch = epoch
            progress.best_val_cer = progress.best_val_cer if val_cer is None else val_cer
        progress.next_epoch()
        state = self._state(val_loss)
        if is_best:
            save_checkpoint(self.run.best, state)
        if epoch % job.train.checkpoint_every == 0 or is_last:
            save_checkpoint(self.run.epoch_checkpoint(epoch), state)
        save_checkpoint(self.run.last, state)
        self.run.write_curves(progress.curves, job.logs)

    # -- state -----------------------------------------------------------------------------------------

    def _state(self, val_loss: float | None) -> dict[str, Any]:
        """Everything that going on needs; `epoch` is the last whole one, as in the older trainer's files."""
        progress = self.progress
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
            "model_params": self.job.model.model_dump(mode="json"),
            "text_params": self.job.text.model_dump(mode="json"),
            "tokenizer": self.tokenizer.to_json(),
            "with_decoder": self.with_decoder,
            "ctc_weight": self.job.train.ctc_weight,
            "fps": self.fps,
            "crop_px": self.crop_px,
            "progress": vars(progress).copy(),
            "plan_hash": self.plan_hash,
            "threads": torch.get_num_threads(),
            "random_state": torch.get_rng_state(),
            "cuda_random_state": torch.cuda.get_rng_state(self.device)
            if self.device.type == "cuda"
            else None,
        }

    def _save_last(self) -> None:
        save_checkpoint(self.run.last, self._state(None))

    def _restore(self) -> Path | None:
        """Loads --resume, or the position of the same run; the file gone on from, None for a fresh start."""
        source = self.job.resume or (self.run.last if self.run.last.exists() else None)
        if source is None:
            return None
        state = load_checkpoint(source)
        refuse_other_model(state, self.job.model, self.tokenizer, self.with_decoder, source)
        self.network.load_state_dict(state["model_state_dict"])
        self.optimizer.load_state_dict(state["optimizer_state_dict"])
        for group in self.optimizer.param_groups:
            # loading brings the older run's settings back; the momenta alone are wanted
            group["weight_decay"] = self.job.train.weight_decay
        if state["scaler_state_dict"]:  # empty where the older run needed none
            self.scaler.load_state_dict(state["scaler_state_dict"])
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["random_state"])
        if self.device.type == "cuda" and state["cuda_random_state"] is not None:
            torch.cuda.set_rng_state(state["cuda_random_state"], self.device)
        if state["plan_hash"] != self.plan_hash and self.progress.batches_done:
            raise TrainingError(
                f"{source} stands within epoch {self.progress.epoch} of another epoch plan (other samples, batch "
                "size or loader parameters); resume from a checkpoint_epoch_N.pt instead"
            )
        # the sums of two thread counts differ in the last bit; the same count goes on bit for bit
        self.threads = self.threads or min(state["threads"], usable_cores())
        if self.job.resume:
            self._keep_best_of(source)
        return source

    def _keep_best_of(self, source: Path) -> None:
        """Takes over the best model beside a resumed checkpoint, where it is the one that checkpoint knew.

        Else the best starts anew: a model of later epochs, or of another run, is not this run's best.
        """
        best = source.parent / self.run.best.name
        why = "it is of other epochs, or of another run"
        try:
            state = load_checkpoint(best)
            refuse_other_model(state, self.job.model, self.tokenizer, self.with_decoder, best)
            is_known = state["progress"]["curves"] == self.progress.curves[: self.progress.best_epoch + 1]
        except CheckpointError as error:
            is_known, why = False, str(error)
        if is_known:
            save_checkpoint(self.run.best, state)
            return
        logger.info("%s is not taken over, the best model starts anew: %s", best, why)
        self.run.best.unlink(missing_ok=True)
        self.progress.best_val_cer, self.progress.best_epoch = float("inf"), -1

    def _reader(self) -> LipReader:
        return LipReader(
            self.network,
            self.tokenizer,
            self.job.model,
            self.job.text,
            self.fps,
            self.device,
            self.precision,
            self.job.train.ctc_weight,
            self.crop_px,
        )

    # -- before the first step ---------------------------------------------------------------------------

    def _choose_threads(self, stream: ShardStream) -> None:
        if not self.threads:
            plan = plan_epoch(self.samples, self.job.loader, self.job.train.batch_size, self.progress.epoch)
            batch = next(stream.batches(plan.batches))
            self.threads, told = fastest_threads(
                self.network, lambda network: self._batch_loss(network, batch).sum()
            )
            logger.info(told)
        torch.set_num_threads(self.threads)

    def _tell_start(self, resumed_from: Path | None) -> None:
        logger.info("Train samples: %d", self.samples.num_rows)
        logger.info("Val samples: %d", self.valid_samples.num_rows)
        if not self.valid_samples.num_rows:
            logger.warning(
                "no clips in split %s: no CER along the way, and the last model is taken", VALID_SPLIT
            )
        logger.info("Vocabulary size: %d", self.tokenizer.num_tokens)
        logger.info("Total parameters: %s", f"{num_parameters(self.network):,}")
        logger.info("Device: %s, %s", self.device, self.precision.name)
        if resumed_from:
            logger.info(
                "Going on from %s: epoch %d, batch %d",
                resumed_from,
                self.progress.epoch,
                self.progress.batches_done,
            )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C stop at the end of the step at hand, after saving; a second Ctrl-C at once."""

        def note(number: int, _: FrameType | None) -> None:
            if self.stop_signal is not None:
                raise KeyboardInterrupt
            self.stop_signal = number

        former = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
