"""Joint CTC and attention loss (Watanabe et al. 2017), summed over clips and characters.

Shapes: B clips, S encoder steps, L label characters, V tokens.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch.nn import functional

from model.cnn3d_bilstm_attention import Cnn3dBilstmAttention, step_mask
from model.text import BLANK_ID, END_ID, Tokenizer
from shards.errors import TrainingError

IGNORED = -100


@dataclass(frozen=True, slots=True)
class LossParams:
    ctc_weight: float
    label_smoothing: float
    teacher_forcing: float


def joint_loss_B(
    network: Cnn3dBilstmAttention,
    encoded_BSE: torch.Tensor,
    num_steps_B: torch.Tensor,
    targets: Sequence[Sequence[int]],
    params: LossParams,
) -> torch.Tensor:
    """ctc_weight * CTC + (1 - ctc_weight) * cross-entropy of the decoder, in nats a clip (B,)."""
    device = encoded_BSE.device
    loss_B = torch.zeros(len(targets), device=device)
    if params.ctc_weight > 0:
        log_probs_SBV = functional.log_softmax(network.ctc_logits(encoded_BSE), dim=2).transpose(0, 1)
        ctc_B = functional.ctc_loss(
            log_probs_SBV,
            torch.tensor([token for target in targets for token in target], device=device),
            num_steps_B,
            torch.tensor([len(target) for target in targets], device=device),
            blank=BLANK_ID,
            reduction="none",
        )
        loss_B = loss_B + params.ctc_weight * ctc_B
    if params.ctc_weight < 1:
        assert network.decoder is not None, "a network without decoder cannot have ctc_weight < 1"
        longest = max(len(target) for target in targets)
        fed_BL = torch.full((len(targets), longest), END_ID)
        wanted_BL = torch.full((len(targets), longest + 1), IGNORED)
        for clip, target in enumerate(targets):
            fed_BL[clip, : len(target)] = torch.tensor(target)
            wanted_BL[clip, : len(target) + 1] = torch.tensor([*target, END_ID])
        padding_BS = ~step_mask(num_steps_B, encoded_BSE.shape[1])
        logits_BLV = network.decoder.teacher_forced(
            encoded_BSE, padding_BS, fed_BL.to(device), params.teacher_forcing
        )
        entropy_BL = functional.cross_entropy(
            logits_BLV.float().transpose(1, 2),
            wanted_BL.to(device),
            ignore_index=IGNORED,
            label_smoothing=params.label_smoothing,
            reduction="none",
        )
        loss_B = loss_B + (1 - params.ctc_weight) * entropy_BL.sum(dim=1)
    return loss_B


def ctc_steps_needed(target: Sequence[int]) -> int:
    """Fewest encoder steps in which CTC can spell `target`: a blank must part equal neighbours."""
    return len(target) + sum(a == b for a, b in itertools.pairwise(target))


def refuse_unspellable(samples: pa.Table, tokenizer: Tokenizer, temporal_stride: int) -> None:
    """TrainingError naming the clips whose label needs more encoder steps than they have.

    CTC's loss is infinite there: said before training, instead of in the middle of it.
    """
    short = [
        row["clip_id"]
        for piece in samples.select(["clip_id", "label", "num_frames"]).to_batches(max_chunksize=1 << 16)
        for row in piece.to_pylist()
        if ctc_steps_needed(tokenizer.encode(row["label"])) > -(-row["num_frames"] // temporal_stride)
    ]
    if short:
        raise TrainingError(
            f"{len(short)} clips have more characters than encoder steps, so CTC cannot spell them: "
            f"{', '.join(short[:5])}; lower model.temporal_stride or crop.max_chars_per_s"
        )
