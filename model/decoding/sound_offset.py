"""Sound as a referee: the offset between sound and picture of a clip, by a model that was trained with sound.

Shapes: B clips, T frames, J = 4T vectors of sound of a clip, V tokens, O offsets.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional

from model.checkpoints import load_checkpoint, reported_as_modified
from model.decoding.reader import LipReader
from model.decoding.scoring import refuse_other_pack
from model.networks.sound_head import SoundHead, SoundTokens
from shards.errors import CheckpointError
from shards.files import Progress
from shards.plan import plan_scoring
from shards.settings import LoaderParams, MachineParams
from shards.sound import VECTORS_A_FRAME
from shards.store import ShardStore
from shards.stream import ClipBatch, ShardStream

MAX_OFFSET = 15
"""Largest offset that is searched, frames."""


@dataclass(frozen=True, slots=True)
class SoundOffset:
    """How sound and picture of one clip belong together. None for a silent clip."""

    row: int
    """Row of the table of samples."""
    offset_frames: int | None
    """By how many frames the sound is late; negative: early."""
    agreement: float | None
    """How much more likely the sound is at that offset than at others, nats by frame."""


@dataclass
class SoundReferee:
    """A reader with the sound head of its training."""

    reader: LipReader
    head: SoundHead
    tokens: SoundTokens

    @classmethod
    def from_checkpoint(cls, path: Path, device: torch.device) -> "SoundReferee":
        """Raises CheckpointError if the model was not trained with sound, or like `LipReader.from_checkpoint`."""
        reader = LipReader.from_checkpoint(path, device)
        state = load_checkpoint(path, mapped=True)
        if "audio_head" not in state:
            raise CheckpointError(
                f"checkpoint {path} was trained without sound; set train.audio_weight above 0 and train, or choose "
                "another checkpoint with --checkpoint"
            )
        with reported_as_modified(path):
            tokens = SoundTokens(**state["audio_head"]["tokens"])
            head = SoundHead(reader.network, len(tokens.centre_VD))
            head.load_state_dict(state["audio_head"]["weights"])
        return cls(reader, head.to(device).eval(), tokens)

    @torch.no_grad()
    def offsets_of(self, batch: ClipBatch) -> list[SoundOffset]:
        """Returns the results of the clips of a batch, which has their sound."""
        assert batch.audio_BTKM is not None and batch.has_audio_B is not None
        encoded_BSE, _ = self.reader.encode(batch.video_BTHW, batch.num_frames_B)
        log_probs_BJV = functional.log_softmax(self.head.logits(encoded_BSE), dim=2).cpu()
        tokens_BJ = self.tokens.of(batch.audio_BTKM)
        found = []
        for number, (row, num_frames) in enumerate(zip(batch.rows, batch.num_frames_B.tolist(), strict=True)):
            inside = slice(num_frames * VECTORS_A_FRAME)
            found.append(
                SoundOffset(row, *best_offset(log_probs_BJV[number, inside], tokens_BJ[number, inside]))
                if batch.has_audio_B[number]
                else SoundOffset(row, None, None)
            )
        return found

    def offsets(
        self,
        samples: pa.Table,
        store: ShardStore,
        *,
        batch_size: int,
        loader: LoaderParams,
        machine: MachineParams,
        on_progress: Progress | None = None,
    ) -> list[SoundOffset]:
        """Returns one result per sample, in the table's order.

        Raises CheckpointError if the clips have another frame rate or size than the training clips.
        """
        refuse_other_pack(self.reader, samples, store)
        stream = ShardStream(store, samples, machine, self.reader.device.type == "cuda", audio=True)
        found: dict[int, SoundOffset] = {}
        for batch in stream.batches(plan_scoring(samples, loader, batch_size)):
            found |= {offset.row: offset for offset in self.offsets_of(batch)}
            if on_progress:
                on_progress(len(found), samples.num_rows)
        return [found[row] for row in sorted(found)]


def best_offset(log_probs_JV: torch.Tensor, tokens_J: torch.Tensor) -> tuple[int, float]:
    """Returns the offset of the sound, frames, and its gain over the mean of the other offsets, nats by frame."""
    score_O = offset_scores(log_probs_JV, tokens_J)
    if len(score_O) == 1:
        return 0, 0.0
    best = int(score_O.argmax())
    others_O = torch.cat([score_O[:best], score_O[best + 1 :]])
    return best - len(score_O) // 2, float((score_O[best] - others_O.mean()) * VECTORS_A_FRAME)


def offset_scores(log_probs_JV: torch.Tensor, tokens_J: torch.Tensor) -> torch.Tensor:
    """Returns how well the tokens fit at each offset (O,), nats by vector; the middle one is offset 0.

    The fit of a token is its log-probability at the picture that it would belong to, minus that at the mean of all
    pictures of the clip: else offsets that leave much silence in common would win. Offsets are at most `MAX_OFFSET`
    frames, and leave half of the clip in common.
    """
    num_frames = len(tokens_J) // VECTORS_A_FRAME
    farthest = min(MAX_OFFSET, num_frames // 2)
    fit_JV = log_probs_JV - log_probs_JV.logsumexp(dim=0) + float(np.log(len(log_probs_JV)))
    return torch.stack(
        [_common(fit_JV, tokens_J, offset * VECTORS_A_FRAME) for offset in range(-farthest, farthest + 1)]
    )


def _common(fit_JV: torch.Tensor, tokens_J: torch.Tensor, late: int) -> torch.Tensor:
    """Returns the mean fit if token j + `late` belongs to the picture of vector j."""
    first, stop = max(0, -late), min(len(tokens_J), len(tokens_J) - late)
    return fit_JV[first:stop].gather(1, tokens_J[first + late : stop + late, None]).mean()
