"""A trained lip reader: frames in, text out. Scoring and inference both use this class."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch.nn import functional

from model.checkpoint_errors import reported_as_modified
from model.checkpoints import load_checkpoint, vocabulary_of
from model.decoding.arpa import load_language_model
from model.decoding.decode import Encoded, readings_by_attention, readings_by_ctc
from model.decoding.ngram import LanguageModel
from model.decoding.registry import chosen_decoder, ready_decoder, uses_language_model
from model.decoding.result import Reading
from model.device import Precision
from model.networks.network import LipNetwork
from model.networks.network_input import network_input
from model.pinyin import syllables_of
from model.settings import HEAD_OF_MODULE, DecodeParams, Head, ModelParams, TextParams
from model.text import NORMALISER_VERSION, describe_normaliser
from model.vocabulary import Vocabulary
from shards.errors import CheckpointError


@dataclass
class LipReader:
    """A network with its vocabulary and settings, ready to read."""

    network: LipNetwork
    vocabulary: Vocabulary
    model: ModelParams
    text: TextParams
    fps: float
    device: torch.device
    precision: Precision
    crop_px: int
    """Side of the mouth crops in training."""
    epoch: int = -1
    language_model: LanguageModel | None = None
    """Over the vocabulary's characters, for beam searches."""
    normaliser_version: int = NORMALISER_VERSION
    """Of the training labels."""

    @classmethod
    def from_checkpoint(cls, path: Path, device: torch.device) -> "LipReader":
        """Returns the reader of a checkpoint, in float32 on `device`.

        Raises CheckpointError like `load_checkpoint`, and if imported weights lack parts that reading needs.
        """
        state = load_checkpoint(path)
        _refuse_unlearnt(state.get("learnt_parts"), path)
        try:
            model = ModelParams.model_validate(state["model_params"])
        except ValidationError as error:
            raise CheckpointError(
                f"checkpoint {path} has a model that this program does not know: {error.errors()[0]['loc']} "
                f"{error.errors()[0]['msg']}"
            ) from error
        vocabulary = vocabulary_of(state, path)
        with reported_as_modified(path):
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
            normaliser_version=state["normaliser_version"],
        )

    def encode(
        self, video_BTHW: torch.Tensor, num_frames_B: torch.Tensor, blind: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the encoder output (B, S, E), float32, of uint8 clips, and the numbers of steps (B,).

        The numbers of steps are on the device of `num_frames_B`.
        """
        video_BTHW, frames_B = (one.to(self.device, non_blocking=True) for one in (video_BTHW, num_frames_B))
        inputs = network_input(video_BTHW, frames_B, self.model, blind)
        with self.precision.autocast(self.device):
            encoded_BSE, num_steps_B = self.network.encode(inputs, num_frames_B)
        return encoded_BSE.float(), num_steps_B  # decoders and losses are computed in float32

    @property
    def normaliser(self) -> str:
        """Returns the normaliser of the training labels, in one line."""
        return describe_normaliser(self.text, self.normaliser_version)

    @property
    def heads(self) -> list[Head]:
        """Returns the heads of the network."""
        return [head for module, head in HEAD_OF_MODULE.items() if getattr(self.network, module) is not None]

    def decoder(self, params: DecodeParams) -> str:
        """Returns the decoder of `params`. Raises ConfigError if the model lacks its heads or its language model."""
        return ready_decoder(params, self.heads, self.language_model is not None)

    def open_language_model(self, path: Path, params: DecodeParams) -> None:
        """Opens the ARPA file at `path` if the decoder of `params` uses a language model.

        Warns if the file is of another normaliser. Raises TableError if it is missing or damaged.
        """
        if self.language_model is None and uses_language_model(chosen_decoder(params, self.heads), params):
            self.language_model = load_language_model(path, self.vocabulary.characters, self.text)

    @torch.no_grad()
    def decode(
        self,
        encoded_BSE: torch.Tensor,
        num_steps_B: torch.Tensor,
        num_frames_B: torch.Tensor,
        params: DecodeParams,
    ) -> list[Reading]:
        """Returns the text of each clip, read by the decoder of `params`."""
        name, encoded = self.decoder(params), Encoded(encoded_BSE, num_steps_B, num_frames_B / self.fps)
        if name in ("attention", "attention_beam", "joint_beam"):
            return readings_by_attention(
                name, self.network, self.vocabulary, encoded, params, self.language_model
            )
        return readings_by_ctc(name, self.network, self.vocabulary, encoded, params, self.language_model)

    def reference(self, label: str, params: DecodeParams) -> str:
        """Returns the reference for this decoder: the label, or its syllables."""
        return " ".join(syllables_of(label)) if self.decoder(params) == "syllables" else label

    @torch.no_grad()
    def read(
        self,
        video_BTHW: torch.Tensor,
        num_frames_B: torch.Tensor,
        params: DecodeParams,
        blind: bool = False,
    ) -> list[Reading]:
        """Returns the text of each uint8 clip; with `blind` the model sees only each clip's mean frame."""
        assert not self.network.training, "a reader scores in eval mode"
        encoded_BSE, num_steps_B = self.encode(video_BTHW, num_frames_B, blind)
        return self.decode(encoded_BSE, num_steps_B, num_frames_B, params)

    @torch.no_grad()
    def ctc_log_probs(self, clip_THW: np.ndarray, head: Head = "ctc") -> np.ndarray | None:
        """Returns log-probabilities (S, V) at each encoder step of one uint8 clip; None if the head is missing.

        They are over characters, or over syllables if `head` is "syllables".
        """
        video_BTHW = torch.from_numpy(np.ascontiguousarray(clip_THW))[None]
        encoded_BSE, _ = self.encode(video_BTHW, torch.tensor([len(clip_THW)]))
        logits_of = self.network.syllable_logits if head == "syllables" else self.network.ctc_logits
        logits_BSV = logits_of(encoded_BSE)
        return None if logits_BSV is None else functional.log_softmax(logits_BSV[0], dim=1).cpu().numpy()

    def read_clip(self, clip_THW: np.ndarray, params: DecodeParams) -> Reading:
        """Returns the text of one uint8 clip."""
        video_BTHW = torch.from_numpy(np.ascontiguousarray(clip_THW))[None]
        return self.read(video_BTHW, torch.tensor([len(clip_THW)]), params)[0]


def _refuse_unlearnt(learnt: Collection[str] | None, path: Path) -> None:
    """Raises CheckpointError if imported weights lack frontend, encoder or every head; None: a trained checkpoint."""
    if learnt is None:
        return
    fresh = [part for part in ("frontend", "encoder") if part not in learnt]
    fresh += [] if HEAD_OF_MODULE.keys() & set(learnt) else ["every head"]
    if fresh:
        raise CheckpointError(
            f"checkpoint {path} has only imported weights of {' and '.join(learnt)} (pipeline import-weights), so it "
            f"cannot read: {' and '.join(fresh)} is not trained; train with --set train.init_from={path} first"
        )
