"""Validation during training: the ranks share the clips of valid, and their figures are summed."""

from collections.abc import Callable
from dataclasses import astuple, dataclass

from model.decoding.reader import LipReader
from model.decoding.result import ScoredClip
from model.decoding.scoring import score_batches
from model.metrics import EditCounts, total_counts
from model.training.ranks import Ranks
from model.training.training_data import TrainingData, TrainingJob
from shards.blend import packs_of
from shards.packs import pack_of
from shards.stream import ShardStream


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """The loss, CER and hypotheses on the valid clips."""

    loss: float
    """Nats per character, over all clips."""
    cer: float
    """Over all clips."""
    cer_of_pack: dict[str, float]
    """The CER of each pack, if there are several."""
    clips: list[ScoredClip]
    """The clips of this rank, in the order of the table."""


def validate(
    job: TrainingJob,
    data: TrainingData,
    reader: LipReader,
    stream: ShardStream,
    ranks: Ranks,
    between_batches: Callable[[], None],
) -> ValidationResult:
    """Scores valid; each rank reads its share. `between_batches` is called equally often on every rank."""
    own = data.valid_batches[ranks.rank :: ranks.world_size]
    scores = score_batches(
        reader,
        data.valid_samples,
        stream,
        own,
        decode=job.decode,
        loss=job.train,
        on_progress=lambda *_: between_batches(),
    )
    for _ in range(-(-len(data.valid_batches) // ranks.world_size) - len(own)):
        between_batches()
    names, _ = packs_of(data.valid_samples)
    counts_P = [
        total_counts(
            (clip.reference, clip.hypothesis) for clip in scores.clips if pack_of(clip.clip_id)[0] == name
        )
        for name in names
    ]
    values = [number for counts in counts_P for number in astuple(counts)]
    loss_sum, num_chars, num_clips, *edits = ranks.sum(
        [scores.loss_sum, scores.num_chars, len(scores.clips), *values]
    )
    width = len(edits) // len(names)
    counts_P = [EditCounts(*map(int, edits[first : first + width])) for first in range(0, len(edits), width)]
    assert num_clips == data.valid_samples.num_rows, (
        f"{data.valid_samples.num_rows} samples, {num_clips} scored"
    )
    cer_of_pack = {name: counts.cer for name, counts in zip(names, counts_P, strict=True)}
    return ValidationResult(
        loss_sum / max(num_chars, 1),
        sum(counts_P, EditCounts()).cer,
        cer_of_pack if job.packs.is_blend else {},
        scores.clips,
    )
