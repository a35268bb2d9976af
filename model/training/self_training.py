"""Self-training: at the start of some epochs the model labels the unlabelled clips, and trains on the labels it keeps.

The teacher is the network that is validated, so the average of the weights with train.ema_decay. The labels are a
function of its weights at that moment. A checkpoint names their file by its sha256, so a resumed epoch uses the same
labels.

Shapes: B clips of a batch, U unlabelled clips.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from model.decoding.reader import LipReader
from model.decoding.result import Reading
from model.device import Precision
from model.losses import is_spellable
from model.runs import RunFolder, logger
from model.training.augment import ClipChange, augmented_input, draw_change
from model.training.pseudo_labels import (
    PseudoLabel,
    PseudoLabels,
    consensus,
    disagreement,
    labels_file,
    read_labels,
    table_of,
    with_doubtful,
    write_labels,
)
from model.training.training_data import TrainingJob
from model.training.training_state import TrainingState
from shards.errors import CheckpointError, TableError
from shards.files import write_bytes
from shards.plan import plan_scoring
from shards.stream import ClipBatch, ShardStream


def _confidences(reading: Reading, text: str) -> list[float]:
    """Returns the confidence of each character of `text`, which is the reading without superfluous spaces."""
    found, place = [], 0
    for character in text:
        while place < len(reading.characters) and reading.characters[place].text != character:
            place += 1
        found += [reading.characters[place].confidence] if place < len(reading.characters) else []
        place += 1
    return found if len(found) == len(text) else []


class SelfTraining:
    """Makes, stores and restores the pseudo labels of a run. All ranks must make the same calls.

    Raises TableError if the language model of `job.teacher` is missing or damaged.
    """

    def __init__(self, job: TrainingJob, state: TrainingState, run: RunFolder, precision: Precision) -> None:
        self.job, self.state, self.run, self.precision = job, state, run, precision
        self.params, self.data, self.ranks = job.train.self_training, state.data, state.ranks
        self._language_model = None
        if self.params.is_on:
            reader = state.reader(precision)
            reader.open_language_model(job.lm, job.teacher)
            self._language_model = reader.language_model

    def restore(self) -> None:
        """Reads the labels that the restored checkpoint names, if its epoch needs them.

        Raises CheckpointError if they are lost, and the checkpoint's weights are not those that wrote them.
        """
        progress = self.state.progress
        if not self.params.is_on:
            progress.labels_epoch, progress.labels_sha256 = -1, ""
        if progress.labels_epoch < 0 or self._is_due():
            return
        table = self._stored()
        if table is not None:
            self.data.pseudo_labels = PseudoLabels.of(table, self.data.samples, self.params)
            return
        if progress.batches_done:
            progress.restart_epoch()  # --accept-new-plan
        progress.labels_epoch, progress.labels_sha256 = -1, ""

    def label_if_due(self, stream: ShardStream, between_batches: Callable[[], None]) -> bool:
        """Labels the clips if the current epoch needs new labels; returns whether it did.

        `between_batches` is called equally often on every rank.
        """
        if not self._is_due():
            return False
        progress = self.state.progress
        share = self.params.kept_share(progress.epoch, self.job.train.num_epochs)
        table = self._label(stream, share, between_batches)
        sha256 = ""
        if self.ranks.is_first:
            sha256 = write_labels(labels_file(self.run.folder, progress.epoch), table)
        progress.labels_epoch, progress.labels_sha256 = progress.epoch, self.ranks.lines([sha256])[0]
        self.data.pseudo_labels = PseudoLabels.of(table, self.data.samples, self.params)
        logger.info("epoch %d, pseudo labels: %s", progress.epoch, self.data.pseudo_labels)
        return True

    def _is_due(self) -> bool:
        """Returns whether the current position is the start of an epoch whose labels are still to be made."""
        progress, params = self.state.progress, self.params
        number = params.round_of(progress.epoch)
        if number < 0 or progress.batches_done:
            return False
        assert params.start_epoch is not None
        return progress.labels_epoch < params.start_epoch + number * params.every_epochs

    # -- reading -----------------------------------------------------------------------------------------

    def _label(self, stream: ShardStream, share: float, between_batches: Callable[[], None]) -> pa.Table:
        """Returns a row per unlabelled clip, in the order of the training clips; each rank reads its part."""
        data, ranks = self.data, self.ranks
        num_frames_N = data.samples["num_frames"].to_numpy()
        longest = self.job.loader.max_frames or num_frames_N.max()
        row_U = np.flatnonzero(~data.is_labelled_N & (num_frames_N <= longest))
        planned = plan_scoring(
            data.samples.select(["clip_id", "num_frames"]).take(pa.array(row_U)),
            self.job.loader,
            self.job.train.batch_size,
        )
        logger.info("epoch %d: reading %d unlabelled clips", self.state.progress.epoch, len(row_U))
        own = [row_U[batch] for batch in planned[ranks.rank :: ranks.world_size]]
        reader = replace(self.state.reader(self.precision), language_model=self._language_model)
        reader.network.eval()
        lines = []
        for batch in stream.batches(own):
            lines += [json.dumps([row, *label]) for row, label in self._read(reader, batch)]
            between_batches()
        for _ in range(-(-len(planned) // ranks.world_size) - len(own)):
            between_batches()
        found = {row: PseudoLabel(*values) for row, *values in map(json.loads, ranks.lines(lines))}
        if num_bad := len(row_U) - len(found):
            logger.warning("%d of %d unlabelled clips are damaged and get no label", num_bad, len(row_U))
        rows = sorted(found)
        is_spellable_U = np.array(
            [
                self._is_spellable(found[row].learnt or found[row].text, int(num_frames_N[row]))
                for row in rows
            ],
            bool,
        )
        labels = [found[row] for row in rows]
        return table_of(labels, num_frames_N[rows], is_spellable_U, self.params, share)

    def _is_spellable(self, text: str, num_frames: int) -> bool:
        return not self.data.has_ctc or is_spellable(
            text, num_frames, self.data.vocabulary, self.job.model.temporal_stride
        )

    @torch.no_grad()
    def _read(self, reader: LipReader, batch: ClipBatch) -> Iterator[tuple[int, PseudoLabel]]:
        """Yields the row and the label of each clip of a batch."""
        if not batch.clip_ids:
            return
        views = [self._read_view(reader, batch, view) for view in range(self.params.views)]
        least = self.params.min_character_confidence
        for clip, row in enumerate(batch.rows):
            readings = [view[clip] for view in views]
            texts = [
                " ".join(reading.text.split()) for reading in readings
            ]  # as labels are: no double spaces
            best = consensus(texts)
            others = [text for view, text in enumerate(texts) if view != best]
            text, confidences = texts[best], _confidences(readings[best], texts[best])
            yield (
                row,
                PseudoLabel(
                    batch.clip_ids[clip],
                    text,
                    readings[best].score,
                    disagreement(text, others),
                    with_doubtful(text, confidences, others, least) if least else None,
                ),
            )

    def _read_view(self, reader: LipReader, batch: ClipBatch, view: int) -> list[Reading]:
        """Reads the clips as they are (view 0), mirrored (1, with train.augment.flip), or augmented but unmasked."""
        if view == 0:
            encoded_BSE, num_steps_B = reader.encode(batch.video_BTHW, batch.num_frames_B)
            num_frames_B = batch.num_frames_B
        else:
            changes = [
                self._change(clip_id, num_frames, view)
                for clip_id, num_frames in zip(batch.clip_ids, batch.num_frames_B.tolist(), strict=True)
            ]
            video_BTHW = batch.video_BTHW.to(reader.device, non_blocking=True)
            inputs, num_frames_B = augmented_input(video_BTHW, batch.num_frames_B, changes, reader.model)
            with reader.precision.autocast(reader.device):
                encoded_BSE, num_steps_B = reader.network.encode(inputs, num_frames_B)
            encoded_BSE = encoded_BSE.float()
        readings = reader.decode(encoded_BSE, num_steps_B, num_frames_B, self.job.teacher)
        if self.params.min_character_confidence:
            readings = reader.timed(readings, encoded_BSE, num_steps_B, num_frames_B, self.job.teacher)
        return readings

    def _change(self, clip_id: str, num_frames: int, view: int) -> ClipChange:
        job, epoch = self.job, self.state.progress.epoch
        if view == 1 and job.train.augment.flip:
            return ClipChange(mirror=True)
        drawn = draw_change(
            job.train.augment, job.loader.seed, epoch, clip_id, num_frames / self.data.fps, visit=view
        )
        return replace(drawn, masks=())

    # -- the file ----------------------------------------------------------------------------------------

    def _stored(self) -> pa.Table | None:
        """Returns the labels that the checkpoint names; None if they are lost and are to be made again."""
        job, progress = self.job, self.state.progress
        own = labels_file(self.run.folder, progress.labels_epoch)
        faults = []
        for path in [own] + ([labels_file(job.resume.parent, progress.labels_epoch)] if job.resume else []):
            try:
                table = read_labels(path, progress.labels_sha256)
            except TableError as error:
                faults.append(str(error))
                continue
            if path != own and self.ranks.is_first:
                write_bytes(own, path.read_bytes())
            return table
        wrote_them = progress.labels_epoch == progress.epoch and not progress.batches_done
        if not wrote_them and not job.accept_new_plan:
            raise CheckpointError(self._lost_message(faults))
        logger.warning("%s; the clips are labelled again at the start of epoch %d", faults[0], progress.epoch)
        return None

    def _lost_message(self, faults: Sequence[str]) -> str:
        progress = self.state.progress
        source = self.job.resume or self.run.last
        before = self.run.epoch_checkpoint(progress.labels_epoch - 1)
        fix = (
            f"run with --resume {before}, whose weights wrote them: epoch {progress.labels_epoch} starts again"
            if before.exists()
            else f"run with --resume {source} --accept-new-plan to label the clips again with its weights; the weights "
            f"that wrote them, at the start of epoch {progress.labels_epoch}, are not kept"
        )
        return (
            f"{source} trains on the pseudo labels of epoch {progress.labels_epoch}, but {'; '.join(faults)}. Restore "
            f"the file, or {fix}"
        )
