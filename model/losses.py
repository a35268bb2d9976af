"""Joint CTC and attention loss (Watanabe et al. 2017), summed over each clip's characters.

Shapes: B clips, S encoder steps, L label characters, V tokens.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch.nn import functional

from model.networks.network import Outputs
from model.networks.network_input import Targets, step_mask
from model.settings import TrainParams
from model.text import BLANK_ID, END_ID, SPECIAL_TOKENS, UNKNOWN_ID
from model.vocabulary import Vocabulary
from shards.errors import TrainingError

IGNORED = -100


@dataclass(frozen=True, slots=True)
class LossParams:
    """The shares of the losses, as in TrainParams."""

    ctc_weight: float
    label_smoothing: float
    reverse_weight: float = 0.0
    syllable_weight: float = 0.0

    @classmethod
    def of(cls, train: TrainParams) -> "LossParams":
        return cls(train.ctc_weight, train.label_smoothing, train.reverse_weight, train.syllable_weight)


def joint_loss_B(outputs: Outputs, targets: Targets, params: LossParams) -> torch.Tensor:
    """Returns the loss of each clip (B,), in nats.

    s * CTC(syllables) + (1 - s) * (c * CTC + (1 - c) * ((1 - r) * forward + r * reverse)): s, c, r are syllable_weight,
    ctc_weight, reverse_weight; forward and reverse are the decoders' cross-entropies with label smoothing. The loss of
    a clip is multiplied by the weight of its label. With `targets.has_doubtful`, UNKNOWN_ID stands for any unit: CTC
    learns that something is said there, but not what, and the decoders' entropies leave it out.
    """
    s, c, r = params.syllable_weight, params.ctc_weight, params.reverse_weight
    loss_B = torch.zeros(len(outputs.num_steps_B), device=targets.characters_BL.device)
    if s > 0:
        assert targets.syllables_BK is not None and targets.num_syllables_B is not None
        loss_B = loss_B + s * _ctc_B(
            outputs.syllable_logits_BSW,
            outputs.num_steps_B,
            targets.syllables_BK,
            targets.num_syllables_B,
            targets.has_doubtful,
        )
    if s < 1 and c > 0:
        loss_B = loss_B + (1 - s) * c * _ctc_B(
            outputs.ctc_logits_BSV,
            outputs.num_steps_B,
            targets.characters_BL,
            targets.num_characters_B,
            targets.has_doubtful,
        )
    for weight, logits_BLV, labels_BL in (
        ((1 - s) * (1 - c) * (1 - r), outputs.decoder_logits_BLV, targets.characters_BL),
        ((1 - s) * (1 - c) * r, outputs.reverse_logits_BLV, targets.reversed_BL),
    ):
        if weight > 0:
            loss_B = loss_B + weight * _entropy_B(
                logits_BLV,
                labels_BL,
                targets.num_characters_B,
                params.label_smoothing,
                targets.has_doubtful,
            )
    return loss_B if targets.weight_B is None else loss_B * targets.weight_B


def _ctc_B(
    logits_BSV: torch.Tensor | None,
    num_steps_B: torch.Tensor,
    labels_BL: torch.Tensor,
    lengths_B: torch.Tensor,
    has_doubtful: bool,
) -> torch.Tensor:
    assert logits_BSV is not None, "a weight above 0 needs its head"
    logits_BSV = logits_BSV.float()
    excess_B: torch.Tensor | float = 0.0
    if has_doubtful:
        logits_BSV, labels_BL, excess_B = _with_any_unit(logits_BSV, num_steps_B, labels_BL)
    log_probs_SBV = functional.log_softmax(logits_BSV, dim=2).transpose(0, 1)
    # lengths stay on the CPU: torch would read them back from a GPU
    loss_B = functional.ctc_loss(
        log_probs_SBV, labels_BL, num_steps_B, lengths_B, blank=BLANK_ID, reduction="none"
    )
    return loss_B - excess_B


def _with_any_unit(
    logits_BSV: torch.Tensor, num_steps_B: torch.Tensor, labels_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns logits with two more columns, any unit, labels that use them, and what this adds to the CTC loss (B,).

    The probability of a new column is that of all units together. There are two, in turns, since equal neighbours would
    need a blank between them. torch's gradient of CTC is right only after a softmax over all columns, which makes each
    path's probability smaller by the softmax's larger sum in each step.
    """
    any_BS1 = logits_BSV[..., len(SPECIAL_TOKENS) :].logsumexp(dim=2, keepdim=True)
    extended_BSV = torch.cat([logits_BSV, any_BS1, any_BS1], dim=2)
    excess_BS = extended_BSV.logsumexp(dim=2) - logits_BSV.logsumexp(dim=2)
    is_step_BS = step_mask(num_steps_B.to(logits_BSV.device, non_blocking=True), logits_BSV.shape[1])
    in_turns_L = logits_BSV.shape[2] + torch.arange(labels_BL.shape[1], device=labels_BL.device) % 2
    labels_BL = torch.where(labels_BL == UNKNOWN_ID, in_turns_L, labels_BL)
    return extended_BSV, labels_BL, (excess_BS * is_step_BS).sum(dim=1)


def _entropy_B(
    logits_BLV: torch.Tensor | None,
    labels_BL: torch.Tensor,
    lengths_B: torch.Tensor,
    label_smoothing: float,
    has_doubtful: bool,
) -> torch.Tensor:
    """Returns the cross-entropy (B,) of each label's characters and the end token after them."""
    assert logits_BLV is not None, "a weight above 0 needs its head"
    ends_BL = functional.pad(labels_BL, (0, 1), value=END_ID)
    position_L = torch.arange(ends_BL.shape[1], device=ends_BL.device)
    lengths_B1 = lengths_B.to(ends_BL.device, non_blocking=True)[:, None]
    wanted_BL = ends_BL.masked_fill(position_L > lengths_B1, IGNORED)
    if has_doubtful:
        wanted_BL = wanted_BL.masked_fill(wanted_BL == UNKNOWN_ID, IGNORED)
    entropy_BL = functional.cross_entropy(
        logits_BLV.float().transpose(1, 2),
        wanted_BL,
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    return entropy_BL.sum(dim=1)


def ctc_steps_needed(target: Sequence[int]) -> int:
    """Returns the fewest encoder steps in which CTC can spell `target`: equal neighbours need a blank between them."""
    return len(target) + sum(a == b for a, b in itertools.pairwise(target))


def label_steps_needed(label: str, vocabulary: Vocabulary) -> int:
    """Returns the fewest encoder steps in which every CTC head can spell `label`."""
    return max(map(ctc_steps_needed, vocabulary.ctc_targets(label)))


def is_spellable(label: str, num_frames: int, vocabulary: Vocabulary, temporal_stride: int) -> bool:
    """Returns whether a clip has enough encoder steps for every CTC head to spell `label`."""
    return label_steps_needed(label, vocabulary) <= -(-num_frames // temporal_stride)


def refuse_unspellable(samples: pa.Table, vocabulary: Vocabulary, temporal_stride: int) -> None:
    """Raises TrainingError with the clips whose label needs more encoder steps than they have.

    The CTC loss of such a clip is infinite, so this check runs before training.
    """
    short = [
        row["clip_id"]
        for piece in samples.select(["clip_id", "label", "num_frames"]).to_batches(max_chunksize=1 << 16)
        for row in piece.to_pylist()
        if not is_spellable(row["label"], row["num_frames"], vocabulary, temporal_stride)
    ]
    if short:
        raise TrainingError(
            f"{len(short)} clips have fewer encoder steps than CTC needs for their labels: "
            f"{', '.join(short[:5])}; lower model.temporal_stride or crop.max_chars_per_s"
        )
