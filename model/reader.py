"""A trained lip reader: frames in, text out. Scoring and inference read with this one class."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch.nn import functional

from model.altered import altered_told
from model.checkpoints import load_checkpoint, vocabulary_of
from model.decoders.ctc_greedy import greedy_ctc
from model.device import Precision
from model.masks import step_mask
from model.network import LipNetwork
from model.network_input import network_input
from model.pinyin import syllables_of
from model.reading import Reading
from model.settings import HEAD_OF_MODULE, DecodeParams, ModelParams, TextParams
from model.text import Tokenizer
from model.vocabulary import Vocabulary
from shards.errors import CheckpointError, ConfigError


@dataclass
class LipReader:
    """A network with all it takes to read."""

    network: LipNetwork
    vocabulary: Vocabulary
    model: ModelParams
    text: TextParams
    fps: float
    device: torch.device
    precision: Precision
    crop_px: int
    """Side of the mouth crops it was trained on."""
    epoch: int = -1

    @classmethod
    def from_checkpoint(cls, path: Path, device: torch.device) -> "LipReader":
        """In float32 on `device`.

        Raises CheckpointError as `load_checkpoint` does, and where an import left parts fresh that reading takes.
        """
        state = load_checkpoint(path)
        _refuse_unlearnt(state.get("learnt_parts"), path)
        try:
            model = ModelParams.model_validate(state["model_params"])
        except ValidationError as error:
            raise CheckpointError(
                f"checkpoint {path} is of a model that this program does not know: {error.errors()[0]['loc']} "
                f"{error.errors()[0]['msg']}"
            ) from error
        vocabulary = vocabulary_of(state, path)
        with altered_told(path):
            network = LipNetwork(model, vocabulary, state["heads"])
            network.load_state_dict(state["model_state_dict"])
            text = TextParams.model_validate(state["text_params"])
        network.to(device).eval()
        return cls(
            network,
            vocabulary,
            model,
            text,
            state["fps"],
            device,
            Precision(None),
            state["crop_px"],
            epoch=state["epoch"],
        )

    def encode(
        self, video_BTHW: torch.Tensor, num_frames_B: torch.Tensor, blind: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoder output (B, S, E), float32, and number of steps (B,) of uint8 clips."""
        num_frames_B = num_frames_B.to(self.device)
        inputs = network_input(video_BTHW.to(self.device), num_frames_B, self.model, blind)
        with self.precision.autocast(self.device):
            encoded_BSE, num_steps_B = self.network.encode(inputs, num_frames_B)
        return encoded_BSE.float(), num_steps_B  # decoders and losses are computed in float32

    def decoder(self, params: DecodeParams) -> str:
        """The decoder that `params` names; ConfigError where the network has not learnt it."""
        network = self.network
        learnt = {
            "attention": network.decoder is not None,
            "ctc": network.ctc_head is not None,
            "syllables": network.syllable_head is not None,
        }
        name = params.decoder
        if name == "auto":
            return next(name for name, is_learnt in learnt.items() if is_learnt)
        if not learnt[name]:
            others = ", ".join(other for other, is_learnt in learnt.items() if is_learnt)
            raise ConfigError(f"decode.decoder: this model has not learnt {name}, it has {others}")
        return name

    def decode(
        self,
        encoded_BSE: torch.Tensor,
        num_steps_B: torch.Tensor,
        num_frames_B: torch.Tensor,
        params: DecodeParams,
    ) -> list[Reading]:
        """Greedy text of each clip, by the decoder that `params` names."""
        name, network = self.decoder(params), self.network
        if name == "attention":
            assert network.decoder is not None
            padding_BS = ~step_mask(num_steps_B, encoded_BSE.shape[1])
            duration_s_B = num_frames_B.to(self.device) / self.fps
            max_chars_B = (duration_s_B * params.max_chars_per_s).ceil().long().clamp(min=1)
            ids, scores = network.decoder.greedy(encoded_BSE, padding_BS, max_chars_B)
            return [_reading(self.vocabulary.characters, i, s) for i, s in zip(ids, scores, strict=True)]
        table: Tokenizer | None = self.vocabulary.characters
        logits = network.ctc_logits(encoded_BSE)
        if name == "syllables":
            table, logits = self.vocabulary.syllables, network.syllable_logits(encoded_BSE)
        assert table is not None and logits is not None
        log_probs_BSV = functional.log_softmax(logits, dim=2).cpu().numpy()
        paths = [
            greedy_ctc(log_probs_SV[:steps])
            for log_probs_SV, steps in zip(log_probs_BSV, num_steps_B.tolist(), strict=True)
        ]
        return [_reading(table, i, s) for i, s in paths]

    def reference(self, label: str, params: DecodeParams) -> str:
        """What a reading of `label` by this decoder is compared with: the label, or its syllables."""
        return " ".join(syllables_of(label)) if self.decoder(params) == "syllables" else label

    @torch.no_grad()
    def read(
        self,
        video_BTHW: torch.Tensor,
        num_frames_B: torch.Tensor,
        params: DecodeParams,
        blind: bool = False,
    ) -> list[Reading]:
        """Text of each uint8 clip; `blind` shows the model each clip's mean frame only."""
        assert not self.network.training, "a reader scores in eval mode"
        encoded_BSE, num_steps_B = self.encode(video_BTHW, num_frames_B, blind)
        return self.decode(encoded_BSE, num_steps_B, num_frames_B, params)

    @torch.no_grad()
    def ctc_log_probs(self, clip_THW: np.ndarray) -> np.ndarray | None:
        """Log-probabilities (S, V) of the characters at each encoder step of one uint8 clip; None: no such head."""
        video_BTHW = torch.from_numpy(np.ascontiguousarray(clip_THW))[None]
        encoded_BSE, _ = self.encode(video_BTHW, torch.tensor([len(clip_THW)]))
        logits_BSV = self.network.ctc_logits(encoded_BSE)
        return None if logits_BSV is None else functional.log_softmax(logits_BSV[0], dim=1).cpu().numpy()

    def read_clip(self, clip_THW: np.ndarray, params: DecodeParams) -> Reading:
        """Text of one uint8 clip."""
        video_BTHW = torch.from_numpy(np.ascontiguousarray(clip_THW))[None]
        return self.read(video_BTHW, torch.tensor([len(clip_THW)]), params)[0]


def _refuse_unlearnt(learnt: Collection[str] | None, path: Path) -> None:
    """CheckpointError where frontend, encoder or every head of an import are fresh; None: it is a training's."""
    if learnt is None:
        return
    fresh = [part for part in ("frontend", "encoder") if part not in learnt]
    fresh += [] if HEAD_OF_MODULE.keys() & set(learnt) else ["every head"]
    if fresh:
        raise CheckpointError(
            f"checkpoint {path} has taken over {' and '.join(learnt)} alone (pipeline import-weights), "
            f"{' and '.join(fresh)} in it is fresh and reads nothing; train with --set train.init_from={path} first"
        )


def _reading(table: Tokenizer, ids: Sequence[int], log_probability: float) -> Reading:
    return Reading(table.decode(ids), log_probability / max(len(ids), 1))
