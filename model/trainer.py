"""The training loop: streams the shards, accumulates, validates, checkpoints, goes on where it stood."""

import math
import time
from collections.abc import Sequence

import torch

from model import schedule
from model.checkpoints import save_checkpoint
from model.device import Precision, choose_device, fastest_threads
from model.job import Progress, TrainingJob, TrainingSummary
from model.metrics import total_counts
from model.network import num_parameters
from model.quarantine import Quarantine
from model.runs import logger, refuse_foreign_checkpoints, training_log
from model.scored import ScoredClip
from model.scoring import score_batches
from model.step import StepFigures, TrainingStep
from model.stopping import StopSignals
from model.training_data import TrainingData
from model.training_state import TrainingState, run_of
from model.training_words import tell_left_out, tell_start
from model.watching import Watch
from shards.errors import Interrupted
from shards.plan import EpochPlan
from shards.stream import ClipBatch, ShardStream

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
        self.data = TrainingData(job)
        self.run = run_of(job, self.data)
        self.quarantine = Quarantine(self.run.quarantine, job.loader.max_bad_fraction)
        torch.manual_seed(job.train.seed)
        self.state = TrainingState(job, self.device, self.precision, self.data)
        self.step = TrainingStep(job, self.data, self.state, self.precision)
        self.stop = StopSignals()

    @property
    def progress(self) -> Progress:
        return self.state.progress

    # -- the whole -------------------------------------------------------------------------------------

    def train(self) -> TrainingSummary:
        job = self.job
        refuse_foreign_checkpoints(job.checkpoints)
        resumed_from = self.state.restore(self.run)
        progress = self.progress
        if job.resume:
            self.quarantine.take_over(job.resume)
        self.quarantine.go_on_from(progress.epoch, progress.batches_done)
        self.run.start(job.config_text, self.data.vocabulary.characters.to_json())
        finished_before = progress.epoch >= job.train.num_epochs
        self.watch = Watch(job, self.run, progress)
        if not finished_before:
            tell_start(job, self.data, self.state, self.run, self.precision, resumed_from)
            self._train_epochs()
        else:
            logger.info("run %s is finished already: %d epochs", self.run.folder.name, progress.epoch)
            if not self.run.best.exists():
                progress.best_epoch = progress.epoch - 1
                save_checkpoint(self.run.best, self.state.as_checkpoint(None))
        self.quarantine.tell_whole(progress.bad_readings, progress.epoch)
        self._publish_logs()
        self.run.publish(job.checkpoints)
        return TrainingSummary(
            epochs=progress.epoch,
            best_epoch=progress.best_epoch,
            best_val_cer=progress.best_val_cer if math.isfinite(progress.best_val_cer) else None,
            num_parameters=num_parameters(self.state.network),
            seconds=progress.total_s,
            already_done=finished_before,
        )

    def _train_epochs(self) -> None:
        job, progress = self.job, self.progress
        stream, valid_stream = self.data.streams(pin_memory=self.device.type == "cuda")
        if self.device.type == "cpu":
            self._choose_threads(stream)
        with self.stop.noted():
            while progress.epoch < job.train.num_epochs:
                plan = self.data.epoch(progress.epoch)
                if progress.batches_done == 0:
                    tell_left_out(plan, self.data.samples, job.loader, progress.epoch)
                self._train_epoch(stream, plan)
                self._end_epoch(valid_stream, plan)

    # -- one epoch -------------------------------------------------------------------------------------

    def _train_epoch(self, stream: ShardStream, plan: EpochPlan) -> None:
        """The windows of the epoch from where progress stands."""
        progress, accumulation = self.progress, self.job.train.accumulation_steps
        self.state.network.train()
        batches = stream.batches(plan.batches, progress.batches_done)
        last_save = time.monotonic()
        while progress.batches_done < len(plan.batches):
            start = time.monotonic()
            size = min(accumulation, len(plan.batches) - progress.batches_done)
            window = [next(batches) for _ in range(size)]
            progress.wait_s += time.monotonic() - start
            self._set_bad_aside(window, plan)
            if any(batch.clip_ids for batch in window):  # a scaler refuses to step without a gradient
                # a warm-up that began at 0 would waste its first step: the rate is that at the step's middle
                middle = (progress.batches_done + size / 2) / len(plan.batches)
                self._take(self.step(window, progress.epoch, progress.epoch + middle))
            progress.batches_done += size
            progress.seconds += time.monotonic() - start
            if self.job.on_batch:
                self.job.on_batch(progress.epoch, progress.batches_done, len(plan.batches))
            self._stop_if_asked()
            if time.monotonic() - last_save > SAVE_EVERY_S:
                self._save_last()
                last_save = time.monotonic()

    def _take(self, figures: StepFigures) -> None:
        progress = self.progress
        progress.loss_sum += figures.loss_sum
        progress.chars_seen += figures.num_chars
        progress.clips_seen += figures.num_clips
        progress.steps += 1
        self.watch.step(progress, figures)

    def _set_bad_aside(self, window: Sequence[ClipBatch], plan: EpochPlan) -> None:
        progress = self.progress
        for number, batch in enumerate(window, progress.batches_done):
            self.quarantine.add(progress.epoch, number, batch.bad)
            progress.bad_clips += len(batch.bad)
        if any(batch.bad for batch in window):
            self.quarantine.refuse_too_many(progress.bad_clips, _num_clips(plan), progress.epoch)

    def _stop_if_asked(self, *_: int) -> None:
        if not self.stop.has_come:
            return
        self._save_last()
        raise Interrupted(
            f"stopped in epoch {self.progress.epoch} after {self.progress.batches_done} batches; "
            + ("the same command without --resume" if self.job.resume else "the same command")
            + " goes on from there"
        )

    def _end_epoch(self, valid_stream: ShardStream, plan: EpochPlan) -> None:
        """Validates, logs, checkpoints, and moves on to the next epoch."""
        job, progress, epoch = self.job, self.progress, self.progress.epoch
        valid_batches = self.data.valid_batches
        train_loss = progress.loss_sum / max(progress.chars_seen, 1)
        is_last = epoch + 1 == job.train.num_epochs
        val_loss, val_cer = None, None
        scored: list[ScoredClip] = []
        if valid_batches and (epoch % job.train.valid_every == 0 or is_last):
            scored, val_loss = score_batches(
                self.state.reader(self.precision),
                self.data.valid_samples,
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
        self.quarantine.tell(progress.bad_clips, _num_clips(plan), epoch)
        progress.curves.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                "val_loss": val_loss,
                "val_cer": val_cer,
                "learning_rate": schedule.learning_rate(job.train, epoch + 1),
                "clips_per_s": clips_per_s,
                "data_wait": wait_share,
                "padding": plan.padding_share,
            }
        )
        self.watch.epoch(progress.curves[-1], scored)
        # of equals the later one, which has learnt more
        # with nothing to choose by it is the last one
        is_best = is_last and not valid_batches if val_cer is None else val_cer <= progress.best_val_cer
        if is_best:
            progress.best_epoch = epoch
            progress.best_val_cer = progress.best_val_cer if val_cer is None else val_cer
        progress.next_epoch()
        state = self.state.as_checkpoint(val_loss)
        if is_best:
            save_checkpoint(self.run.best, state)
        if epoch % job.train.checkpoint_every == 0 or is_last:
            save_checkpoint(self.run.epoch_checkpoint(epoch), state)
        save_checkpoint(self.run.last, state)
        self._publish_logs()

    def _publish_logs(self) -> None:
        self.run.write_curves(self.progress.curves, self.job.logs)
        self.quarantine.publish(self.job.logs)

    def _save_last(self) -> None:
        save_checkpoint(self.run.last, self.state.as_checkpoint(None))

    # -- before the first step ---------------------------------------------------------------------------

    def _choose_threads(self, stream: ShardStream) -> None:
        if not self.state.threads:
            plan = self.data.epoch(self.progress.epoch)
            batch = next(batch for batch in stream.batches(plan.batches) if batch.clip_ids)
            self.state.threads, told = fastest_threads(
                self.state.network,
                lambda network: self.step.batch_loss_B(network, batch, self.progress.epoch).sum(),
            )
            logger.info(told)
        torch.set_num_threads(self.state.threads)


def _num_clips(plan: EpochPlan) -> int:
    return sum(map(len, plan.batches))
