"""An export against the network that it was made of.

Shapes: B clips, T frames, S encoder steps, V characters or syllables.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional

from model.exports.graph import ExportedNetwork
from model.reader import LipReader
from shards.errors import CheckpointError

TOLERANCE = 1e-3
"""Of log-probabilities, nats; and a ten-thousandth of them, for what is less likely than e^-10."""
CHECKED = ((23,), (40, 31, 8), (64, 64), (1_000,))
"""Frames of the clips of each batch: other lengths and batch sizes than the one that was recorded, padding, and as
long a clip as `crop.max_frames` allows by default: what rounding adds up to shows there."""

Run = Callable[[torch.Tensor, torch.Tensor], Sequence[np.ndarray]]
"""An export: from video_BTHW and num_frames_B to its outputs."""


@torch.no_grad()
def largest_difference(run: Run, graph: ExportedNetwork, reader: LipReader) -> float:
    """The largest one of log-probabilities, nats, over batches of noise; CheckpointError where it is too large."""
    largest = 0.0
    for seed, num_frames in enumerate(CHECKED):
        video_BTHW, num_frames_B = graph.example(num_frames, seed)
        *exported, num_steps_B = run(video_BTHW, num_frames_B)
        encoded_BSE, true_steps_B = reader.encode(video_BTHW, num_frames_B)
        logits = (reader.network.ctc_logits(encoded_BSE), reader.network.syllable_logits(encoded_BSE))
        expected = [functional.log_softmax(head, dim=2).cpu().numpy() for head in logits if head is not None]
        steps = true_steps_B.tolist()
        assert list(num_steps_B) == steps, f"{num_steps_B} steps, not {steps}"
        for theirs_BSV, ours_BSV in zip(exported, expected, strict=True):
            for number, count in enumerate(steps):
                theirs_SV, ours_SV = theirs_BSV[number, :count], ours_BSV[number, :count]
                largest = max(largest, float(np.abs(theirs_SV - ours_SV).max()))
                if not np.allclose(theirs_SV, ours_SV, rtol=TOLERANCE / 10, atol=TOLERANCE):
                    raise CheckpointError(
                        f"the export differs from the network by {largest:g} in a log-probability ({TOLERANCE:g} is "
                        "allowed); nothing was written. Weights that are not finite do that, and versions of torch or "
                        "onnxruntime that are not those of constraints.txt may"
                    )
    return largest
