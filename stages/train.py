"""The training loop: streams the shards, accumulates gradients, validates, saves checkpoints and resumes."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from model.checkpoints import save_checkpoint
from model.exports.files import write_weights
from model.networks.network import num_parameters
from model.progress import Progress
from model.runs import RunFolder, locked_run_folder, logger, refuse_foreign_checkpoints, training_log
from model.training import schedule
from model.training.calibrate import calibrate
from model.training.epoch_figures import (
    choose_threads,
    curve_of,
    epoch_line,
    flop_utilisation,
    flops_per_frame_if_known,
    peak_memory_mb,
)
from model.training.fine_tuning import to_training_mode
from model.training.last_checkpoint import save_last
from model.training.metric_logger import MetricLogger
from model.training.pixel_statistics import with_pixel_statistics
from model.training.quarantine import Quarantine
from model.training.ranks import StopSignals, only_warnings, process_group
from model.training.run_choice import record_command, run_of
from model.training.run_messages import log_left_out, log_other_shape, log_start
from model.training.self_training import SelfTraining
from model.training.sound_tokens import with_sound_tokens
from model.training.step import StepFigures, set_up
from model.training.trackers import refuse_missing_trackers
from model.training.training_data import TrainingData, TrainingJob, TrainingSummary
from model.training.validation import ValidationResult, validate
from shards.elastic_plan import ElasticPlan, Window
from shards.errors import Interrupted, TrainingError
from shards.stream import ClipBatch, ShardStream
from stages.corpora.pack_overlap import compared_packs, find_overlap

SAVE_EVERY_S = 60.0
MAX_COMPARED_CLIPS = 50_000
"""More training clips of several packs are not searched for copies; this number takes some minutes on two cores."""
WAIT_S = 60.0
"""The first rank shows the others after this time that it still works: torch lets them wait for 30 min at most."""
SKIPPED_IN_A_ROW = 3
"""This number of consecutive skipped steps ends a training."""


def train(job: TrainingJob) -> TrainingSummary:
    """Trains to the end, unless the run is already finished; publishes to `job.checkpoints` and `job.logs`.

    Resumes an interrupted run of the same parameters (model/training/run_choice.py). Started by torchrun, the processes
    train one model together, and the first rank writes. Raises TrainingError, ShardError, CheckpointError,
    MachineError, and Interrupted after SIGTERM or Ctrl-C.
    """
    with process_group() as ranks:
        refuse_foreign_checkpoints(job.checkpoints)
        refuse_missing_trackers(job.machine.trackers)
        data = TrainingData(job, ranks)
        if len(set(ranks.lines([data.plan_identity.hash]))) > 1:
            raise TrainingError(
                "the processes read different training clips; all machines need the same samples.parquet and the same "
                "parameters"
            )
        # all ranks train in the folder that the first one finds
        run = RunFolder(job.runs, ranks.lines([run_of(job, data).folder.name])[0])
        with locked_run_folder(run.folder) if ranks.is_first else contextlib.nullcontext():
            data.model = with_pixel_statistics(job, run, data.samples, ranks)
            data.sound_tokens = with_sound_tokens(job, run, data.samples, ranks)
            trainer = _Trainer(job, data, run)
            with training_log(run, job.logs) if ranks.is_first else only_warnings(logger):
                try:
                    return trainer.train()
                finally:
                    trainer.state.learner = trainer.state.trained  # see Ranks.wrap


class _Trainer:
    """Runs on all ranks with the same control flow: all ranks must make every call that uses `ranks`."""

    def __init__(self, job: TrainingJob, data: TrainingData, run: RunFolder) -> None:
        self.job, self.data, self.run = job, data, run
        self.ranks = ranks = data.ranks
        self.device = ranks.device(job.machine.device)
        self.quarantine = Quarantine(run.quarantine, job.loader.max_bad_fraction, ranks)
        self.step = set_up(job, data, self.device, ranks)
        self.state, self.precision = self.step.state, self.step.precision
        # raises before training if the network lacks the head of job.decode
        self.state.reader(self.precision).decoder(job.decode)
        self.stop = self.step.stop = StopSignals()
        self.self_training = SelfTraining(job, self.state, run, self.precision)
        self.metric_logger: MetricLogger | None = None
        """Only on the first rank."""
        self.flops_per_frame = 0.0
        """Operations of a training step per frame; 0 before the first batch, or if the device's peak is unknown."""

    @property
    def progress(self) -> Progress:
        return self.state.progress

    # -- all epochs ------------------------------------------------------------------------------------

    def train(self) -> TrainingSummary:
        job, run = self.job, self.run
        resumed_from = self.state.restore(run)
        progress = self.progress
        self._check_same_position()
        self.state.learner = self.ranks.wrap(self.state.trained)
        finished_before = progress.is_over(job.train)
        if self.ranks.is_first:
            if job.resume:
                self.quarantine.copy_from(job.resume)
            self.quarantine.rewind_to(progress.epoch, progress.batches_done)
            run.start(job.config_text, self.data.vocabulary.characters.to_json())
            if not finished_before:
                log_start(job, self.data, self.state, run, self.precision, resumed_from)
            record_command(run, job, self.data, is_finished=finished_before)
        if job.packs.is_blend and not resumed_from and not finished_before:
            self._warn_of_overlap()
        with self._metric_logging():
            if finished_before:
                self._log_finished()
            else:
                self._train_epochs()
        if self.ranks.is_first:
            self.quarantine.log_damaged_share(progress.bad_readings, progress.epoch)
            self._publish_logs()
            write_weights(run, calibrate(run.best, job, self.data, self.device, logger.info))
            run.publish(job.checkpoints)
            record_command(run, job, self.data, is_finished=True)
        return TrainingSummary(
            epochs=progress.epoch,
            best_epoch=progress.best_epoch,
            best_val_cer=progress.best_val_cer if math.isfinite(progress.best_val_cer) else None,
            num_parameters=num_parameters(self.state.network),
            seconds=progress.total_s,
            already_done=finished_before,
        )

    def _warn_of_overlap(self) -> None:
        """Logs the videos and names of speakers that several packs share, unless there are very many clips.

        The first rank searches, and the others wait for it.
        """
        num_clips, ranks, last = self.data.samples.num_rows, self.ranks, time.monotonic()
        if num_clips > MAX_COMPARED_CLIPS:
            if ranks.is_first:
                logger.warning(
                    "train.data: %d clips are not searched for copies: it would take long; run `pipeline overlap` once",
                    num_clips,
                )
            return

        @contextlib.contextmanager
        def shown(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
            with self.job.shown(what, unit) as on_progress:

                def update(done: int, total: int) -> None:
                    nonlocal last
                    on_progress(done, total)
                    if time.monotonic() - last > WAIT_S:
                        last = time.monotonic()
                        ranks.any(True)

                yield update

        if ranks.is_first:
            others = "" if ranks.world_size == 1 else "; the other processes wait"
            logger.info(
                "searching the packs for copies of videos (once; %d training clips%s)", num_clips, others
            )
            for warning in find_overlap(compared_packs(self.job.packs), self.job.machine, shown).warnings():
                logger.warning("train.data: %s", warning)
        elif ranks.local_rank == 0:  # on another machine, which does not show the progress
            logger.warning(
                "rank %d waits for rank 0, which searches the packs for copies of videos", ranks.rank
            )
        while ranks.any(False):
            pass

    def _train_epochs(self) -> None:
        job, progress = self.job, self.progress
        stream, valid_stream = self.data.streams(pin_memory=self.device.type == "cuda")
        self.self_training.restore()
        choose_threads(self.step, stream)
        self.flops_per_frame = flops_per_frame_if_known(self.step, stream)
        with self.stop.handlers():
            while not progress.is_over(job.train):
                if self.self_training.label_if_due(stream, self._stop_if_asked):
                    self._save_last()
                plan = self.state.plan()
                if self.state.resumed_shape:
                    log_other_shape(plan, self.data.shape, self.state.resumed_shape, progress)
                    self.state.resumed_shape = None
                if progress.batches_done == 0:
                    log_left_out(plan, self.data.samples, job.loader, progress.epoch)
                self._train_epoch(stream, plan)
                self._end_epoch(valid_stream, plan)

    @contextlib.contextmanager
    def _metric_logging(self) -> Iterator[None]:
        if not self.ranks.is_first:
            yield
            return
        with contextlib.closing(MetricLogger(self.job, self.run, self.progress)) as self.metric_logger:
            yield

    def _check_same_position(self) -> None:
        """Raises TrainingError if the ranks resume from different positions."""
        progress = self.progress
        positions = self.ranks.gathered(torch.tensor([progress.epoch, progress.batches_done, progress.steps]))
        if (positions != positions[0]).any():
            raise TrainingError(
                f"the processes found different checkpoints, {positions.tolist()} (epoch, batches, steps); "
                f"{self.job.resume or self.run.folder} must be on storage that all machines share"
            )

    # -- one epoch -------------------------------------------------------------------------------------

    def _train_epoch(self, stream: ShardStream, plan: ElasticPlan) -> None:
        """Trains the rest of the epoch, from the position in `progress`."""
        progress = self.progress
        to_training_mode(self.state.network, self.job.train)
        windows = [window for window in plan.windows if window.first_step >= progress.batches_done]
        batches = stream.batches([batch for window in windows for batch in window.batches])
        last_save = time.monotonic()
        for planned in windows:
            start = time.monotonic()
            window = [next(batches) for _ in planned.batches]
            progress.wait_s += time.monotonic() - start
            bad_clips = progress.bad_clips
            if self._quarantine_bad(window, planned, plan):
                # the rate at the middle of the step: at its start, the first step of a warm-up would have rate 0
                middle = (planned.clips_before + planned.num_clips / 2) / plan.num_clips
                num_steps = planned.stop_step - planned.first_step
                try:
                    self._take(self.step(window, progress.epoch, progress.epoch + middle, num_steps))
                except Interrupted:
                    progress.bad_clips = bad_clips  # the window is read again
                    self._stop_if_asked()
                    raise
            progress.batches_done = planned.stop_step
            progress.seconds += time.monotonic() - start
            progress.process_s += (time.monotonic() - start) * self.ranks.world_size
            if self.job.on_batch and self.ranks.is_first:
                self.job.on_batch(progress.epoch, progress.batches_done, plan.num_steps, progress.mean_loss)
            self._stop_if_asked()
            if self.ranks.is_first and time.monotonic() - last_save > SAVE_EVERY_S:
                self._save_last()
                last_save = time.monotonic()

    def _take(self, figures: StepFigures) -> None:
        progress = self.progress
        progress.clips_seen += figures.num_clips
        if figures.was_taken:
            progress.loss_sum += figures.loss_sum
            progress.chars_seen += figures.num_chars
            progress.audio_loss_sum += figures.audio_loss_sum
            progress.audio_right += figures.audio_right
            progress.audio_tokens += figures.audio_tokens
            progress.steps += 1
            if math.isfinite(figures.gradient_norm):  # not finite: float16 overflowed
                progress.gradient_norm_sum += figures.gradient_norm
                progress.steps_in_epoch += 1
            progress.skipped_in_a_row = []
        else:
            progress.skipped_steps += 1
            progress.skipped_in_a_row.append(", ".join(self.ranks.lines(figures.skipped)))
        if self.metric_logger:
            self.metric_logger.step(progress, figures)
        if len(progress.skipped_in_a_row) >= SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"{len(progress.skipped_in_a_row)} steps in a row had no finite loss or gradient, in epoch "
                f"{progress.epoch}: {'; '.join(progress.skipped_in_a_row)}. Check these clips (`pipeline query`), or "
                "lower train.learning_rate"
            )

    def _quarantine_bad(self, window: Sequence[ClipBatch], planned: Window, plan: ElasticPlan) -> bool:
        """Records the bad samples of all ranks; returns whether any rank has a clip left."""
        progress, quarantine = self.progress, self.quarantine
        if quarantine.max_fraction == 0:
            return True  # the stream raises for a bad sample
        bad = [(step, batch.bad) for step, batch in zip(planned.steps, window, strict=True)]
        if num_bad := quarantine.add(progress.epoch, bad):
            progress.bad_clips += num_bad
            quarantine.refuse_too_many(progress.bad_clips, plan.num_clips, progress.epoch)
        return self.ranks.any(any(batch.clip_ids for batch in window))

    def _stop_if_asked(self) -> None:
        """Saves and raises Interrupted on all ranks if one of them has received a signal."""
        if not self.ranks.any(self.stop.requested):
            return
        self._save_last()
        raise Interrupted(
            f"stopped in epoch {self.progress.epoch} after {self.progress.batches_done} batches; run the same command "
            + ("without --resume to resume" if self.job.resume else "to resume")
        )

    # -- the end of an epoch -----------------------------------------------------------------------------

    def _end_epoch(self, valid_stream: ShardStream, plan: ElasticPlan) -> None:
        """Validates, logs, saves checkpoints, and starts the next epoch."""
        job, data, progress, epoch = self.job, self.data, self.progress, self.progress.epoch
        is_last = epoch + 1 == job.train.num_epochs
        validated: ValidationResult | None = None
        if data.valid_batches and (epoch % job.train.valid_every == 0 or is_last):
            reader = self.state.reader(self.precision)
            validated = validate(job, data, reader, valid_stream, self.ranks, self._stop_if_asked)
        # without valid clips, the last model is the best
        is_best = is_last and not data.valid_batches
        if validated:
            is_best = progress.record_validation(validated.loss, validated.cer)
        progress.best_epoch = epoch if is_best else progress.best_epoch
        self._log_epoch(plan, validated)
        if progress.stopped_early(job.train):
            logger.info(
                "%d validations without a better CER than %.4f of epoch %d: stopping early (train.patience)",
                job.train.patience,
                progress.best_val_cer,
                progress.best_epoch,
            )
            is_last = True
        progress.next_epoch()
        files = [self.run.best] if is_best else []
        if epoch % job.train.checkpoint_every == 0 or is_last:
            files.append(self.run.epoch_checkpoint(epoch))
        if self.ranks.is_first:
            state = self.state.as_checkpoint(validated.loss if validated else None)
            for file in files:
                save_checkpoint(file, state)
            save_last(self.run, state)
            self._publish_logs()

    def _log_epoch(self, plan: ElasticPlan, validated: ValidationResult | None) -> None:
        """Adds a row to the curves and a line to the log."""
        job, progress = self.job, self.progress
        curve = curve_of(
            progress,
            plan,
            schedule.learning_rate(job.train, progress.epoch + 1),
            validated.loss if validated else None,
            validated.cer if validated else None,
            peak_memory_mb(self.device),
            self._flop_utilisation(plan),
            validated.cer_of_pack if validated else None,
        )
        if self.data.pseudo_labels:
            curve |= self.data.pseudo_labels.figures
        logger.info(epoch_line(curve))
        progress.curves.append(curve)
        if self.metric_logger:
            self.quarantine.log_epoch(progress.bad_clips, plan.num_clips, progress.epoch)
            self.metric_logger.epoch(curve, validated.clips if validated else [])

    def _flop_utilisation(self, plan: ElasticPlan) -> float | None:
        """Returns the utilisation of the devices over the epoch, including the time waiting for data."""
        flops = self.flops_per_frame * plan.padded_frames
        return flop_utilisation(flops, self.progress.process_s, self.device)

    # -- output files ------------------------------------------------------------------------------------

    def _publish_logs(self) -> None:
        self.run.write_curves(self.progress.curves, self.job.logs)
        self.quarantine.publish(self.job.logs)

    def _save_last(self) -> None:
        if self.ranks.is_first:
            save_last(self.run, self.state.as_checkpoint(None))

    def _log_finished(self) -> None:
        """Logs that the run is finished. Without a best model (resumed from a lone file), the last model becomes it."""
        progress, is_missing = self.progress, not self.run.best.exists()
        why = ", stopped early (train.patience)" if progress.stopped_early(self.job.train) else ""
        logger.info("run %s is already finished: %d epochs%s", self.run.folder.name, progress.epoch, why)
        if is_missing:
            progress.best_epoch = progress.epoch - 1
        if is_missing and self.ranks.is_first:
            save_checkpoint(self.run.best, self.state.as_checkpoint(None))
