"""How well labels fit their clips: CTC log-probabilities of a clip's label, of its best reading, and of other labels.

Shapes: B clips, S steps, V tokens of the head, U = V + 1 with the wildcard, K other labels of a clip.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from model.decoding.ctc import ctc_log_probabilities, greedy_ctc
from model.decoding.reader import LipReader, padded_log_probs
from model.decoding.scoring import refuse_other_pack
from model.metrics import EditCounts, edit_counts
from model.networks.network_input import step_mask
from model.text import SPECIAL_TOKENS, UNKNOWN_ID
from shards.errors import ConfigError
from shards.plan import plan_scoring
from shards.settings import LoaderParams, MachineParams
from shards.store import ShardStore
from shards.stream import ShardStream

NUM_OTHERS = 16
"""Labels of other clips that each label is compared with. With 3, the mean and deviation are too rough."""
FEWEST_OTHERS = 3
LOWEST = -50.0
"""Nats a unit: the score of a label that needs more steps than its clip has, whose probability is 0."""


@dataclass(frozen=True, slots=True)
class LabelScores:
    """Scores are log-probabilities of all paths, in nats by unit of the scored label; of the reading: of the label."""

    clip_id: str
    label: str
    reading: str
    counts: EditCounts
    """Errors of the reading; of syllables if the model reads those."""
    label_score: float
    reading_score: float
    other_scores: tuple[float, ...]


def score_labels(
    reader: LipReader,
    samples: pa.Table,
    store: ShardStore,
    others: Mapping[str, Sequence[str]],
    *,
    batch_size: int,
    loader: LoaderParams,
    machine: MachineParams,
) -> Iterator[LabelScores]:
    """Yields the scores of each sample, in no particular order. `others`: clip_id → the labels to compare with.

    Raises ConfigError if the model has no CTC head, CheckpointError if the clips have another frame rate or size.
    """
    network, table = reader.network, reader.vocabulary.characters
    if network.ctc_head is None:
        if network.syllable_head is None:
            raise ConfigError(
                "an audit compares CTC probabilities, but the model has no CTC head; set train.ctc_weight above 0"
            )
        assert reader.vocabulary.syllables is not None
        table = reader.vocabulary.syllables
    refuse_other_pack(reader, samples, store)
    network.eval()
    stream = ShardStream(store, samples, machine, reader.device.type == "cuda")

    def target_of(label: str) -> list[int]:
        return [table.num_tokens if token == UNKNOWN_ID else token for token in table.encode(label)]

    for batch in stream.batches(plan_scoring(samples, loader, batch_size)):
        with torch.no_grad():
            encoded_BSE, num_steps_B = reader.encode(batch.video_BTHW, batch.num_frames_B)
            logits_of = network.syllable_logits if network.ctc_head is None else network.ctc_logits
            logits_BSV = logits_of(encoded_BSE)
            assert logits_BSV is not None
            padding_BS = ~step_mask(num_steps_B.to(encoded_BSE.device), encoded_BSE.shape[1])
            # other devices than GPUs may lack float64
            on_gpu = reader.device.type == "cuda"
            log_probs_BSV = padded_log_probs(logits_BSV if on_gpu else logits_BSV.cpu(), padding_BS)
        readings = greedy_ctc(log_probs_BSV)
        targets = [
            list(map(target_of, (label, *others[clip_id])))
            for clip_id, label in zip(batch.clip_ids, batch.labels, strict=True)
        ]
        scores = ctc_log_probabilities(
            _with_wildcard(log_probs_BSV),
            [clip for clip, of_clip in enumerate(targets) for _ in of_clip],
            [target for of_clip in targets for target in of_clip],
        )
        lengths = [max(len(target), 1) for of_clip in targets for target in of_clip]
        by_unit = iter(np.maximum(scores / lengths, LOWEST).tolist())
        for clip_id, label, of_clip, (tokens, log_probability) in zip(
            batch.clip_ids, batch.labels, targets, readings, strict=True
        ):
            own, *other_scores = (next(by_unit) for _ in of_clip)
            reading = table.decode(tokens)
            reference = label if network.ctc_head else reader.vocabulary.pinyin_of(label)
            yield LabelScores(
                clip_id,
                label,
                reading,
                edit_counts(reference, reading),
                own,
                max(log_probability / max(len(of_clip[0]), 1), LOWEST),
                tuple(other_scores),
            )


def _with_wildcard(log_probs_BSV: torch.Tensor) -> torch.Tensor:
    """Returns (B, S, U): the last column is the probability that any unit is spoken.

    It represents a unit that the model's training labels lack: such a unit speaks neither for nor against a label.
    """
    spoken_BSV = log_probs_BSV[..., len(SPECIAL_TOKENS) :]
    return torch.cat([log_probs_BSV, spoken_BSV.logsumexp(dim=2, keepdim=True)], dim=2)


def other_labels(labels: Sequence[str], num_others: int = NUM_OTHERS) -> dict[str, tuple[str, ...]]:
    """Returns for each distinct label the others that it is compared with: of about its length, else by their hash.

    Raises ConfigError if there are too few.
    """
    distinct = sorted(set(labels), key=lambda label: (len(label), hashlib.md5(label.encode()).digest()))
    if len(distinct) <= FEWEST_OTHERS:
        raise ConfigError(
            f"an audit compares each label with other labels, but the clips have only {len(distinct)} distinct ones; "
            f"{FEWEST_OTHERS + 1} are needed"
        )
    num_others = min(num_others, len(distinct) - 1)
    others = {}
    for place, label in enumerate(distinct):
        first = min(max(place - num_others // 2, 0), len(distinct) - num_others - 1)
        nearby = distinct[first : first + num_others + 1]
        others[label] = tuple(other for other in nearby if other != label)
    return others
