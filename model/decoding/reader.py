"""A trained lip reader: frames in, text out, with any decoder. Scoring and inference both use this class.

Shapes: B clips, S encoder steps, E encoder width, V characters, W syllables.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from torch.nn import functional

from model.adapters import load_adapted
from model.checkpoints import reported_as_modified, vocabulary_of
from model.decoding.alignment import masked_copies, with_times
from model.decoding.arpa import load_language_model
from model.decoding.attention import joint_beam, read_greedily
from model.decoding.calibration import UNCALIBRATED, ConfidenceScale
from model.decoding.ctc import SyllableScores, spiking_head
from model.decoding.ctc_beam import best_of, best_reading, ctc_readings, greedy_reading, with_syllables
from model.decoding.ctc_prefix import CtcPrefixes
from model.decoding.ngram import LanguageModel
from model.decoding.part_scores import with_part_scores
from model.decoding.registry import GREEDY, chosen_decoder, ready_decoder, used_settings, uses_language_model
from model.decoding.result import Candidate, Reading, with_posteriors
from model.device import Precision
from model.losses import LossParams, joint_loss_B
from model.networks.network import LipNetwork
from model.networks.network_input import network_input, step_mask, targets_of
from model.settings import HEAD_OF_MODULE, DecodeParams, Head, ModelParams, TextParams
from model.text import BLANK_ID, NORMALISER_VERSION, Tokenizer, describe_normaliser
from model.vocabulary import Vocabulary
from shards.errors import CheckpointError

ATTENTION_ALONE = LossParams(ctc_weight=0.0, label_smoothing=0.0)
"""The loss is the negative log-probability of a text and its end by the attention decoder."""


class Encoded(NamedTuple):
    """The encoder's output for some clips."""

    encoded_BSE: torch.Tensor
    """float32."""
    num_steps_B: torch.Tensor
    duration_s_B: torch.Tensor


def _readings_by_attention(
    reader: "LipReader", name: str, encoded: Encoded, params: DecodeParams
) -> list[Reading]:
    """Decodes with `name`: attention, attention_beam or joint_beam."""
    network, vocabulary, lm = reader.network, reader.vocabulary, reader.language_model
    assert network.decoder is not None
    encoded_BSE, device = encoded.encoded_BSE, encoded.encoded_BSE.device
    padding_BS = ~step_mask(encoded.num_steps_B.to(device, non_blocking=True), encoded_BSE.shape[1])
    max_chars_B = (
        (encoded.duration_s_B.to(device, non_blocking=True) * params.max_chars_per_s)
        .ceil()
        .long()
        .clamp(min=1)
    )
    table = vocabulary.characters
    if name == "attention":
        ids, scores = read_greedily(network.decoder.stepping(encoded_BSE, padding_BS), max_chars_B)
        return [greedy_reading(table, i, s) for i, s in zip(ids, scores, strict=True)]
    ctc = None
    if name == "joint_beam":
        logits_BSV = network.ctc_logits(encoded_BSE)
        assert logits_BSV is not None
        ctc = CtcPrefixes(functional.log_softmax(logits_BSV, dim=2), encoded.num_steps_B)
    syllables, searched = None, params
    if params.syllable_weight > 0 and vocabulary.syllables is not None:
        logits_BSW = network.syllable_logits(encoded_BSE)
        assert logits_BSW is not None
        syllables = SyllableScores(padded_log_probs(logits_BSW, padding_BS), vocabulary.syllables)
        # the syllable head reorders the whole beam, so the search must not stop at the first num_candidates
        searched = params.model_copy(update={"num_candidates": params.beam})
    texts = joint_beam(network.decoder.stepping(encoded_BSE, padding_BS), ctc, lm, max_chars_B, searched)
    found = [
        [Candidate(table.decode(text.ids), text.log_probability, text.rank_score) for text in of_clip]
        for of_clip in texts
    ]
    if syllables is not None:
        found = with_syllables(found, syllables, params.syllable_weight)
    return [best_reading(best_of(with_posteriors(candidates), params)) for candidates in found]


def _readings_by_ctc(reader: "LipReader", name: str, encoded: Encoded, params: DecodeParams) -> list[Reading]:
    """Decodes with `name`: ctc, ctc_beam, syllables or pinyin.

    On a GPU it searches all clips at once, on other devices one clip at a time on the CPU: in a batch every clip tries
    as many units as the clip that needs most, which is slow on a CPU, and on small arrays numpy is faster there than
    torch. The sums need float64, which some other devices lack.
    """
    network, vocabulary, lm = reader.network, reader.vocabulary, reader.language_model
    encoded_BSE, num_steps_B = encoded.encoded_BSE, encoded.num_steps_B
    padding_BS = ~step_mask(num_steps_B.to(encoded_BSE.device), encoded_BSE.shape[1])
    by_syllables = name in ("syllables", "pinyin")
    uses_syllable_head = by_syllables or (params.syllable_weight > 0 and name not in GREEDY)
    logits = (
        None if by_syllables else network.ctc_logits(encoded_BSE),
        network.syllable_logits(encoded_BSE) if uses_syllable_head else None,
    )
    on_gpu = encoded_BSE.device.type == "cuda"
    log_probs_BSV, log_probs_BSW = (
        None if head is None else padded_log_probs(head if on_gpu else head.cpu(), padding_BS)
        for head in logits
    )
    if on_gpu or name in GREEDY:
        return ctc_readings(name, log_probs_BSV, log_probs_BSW, vocabulary, params, lm)
    readings = []
    for clip, num_steps in enumerate(num_steps_B.tolist()):
        of_clip_1SV, of_clip_1SW = (
            None if log_probs is None else log_probs[clip : clip + 1, :num_steps].numpy()
            for log_probs in (log_probs_BSV, log_probs_BSW)
        )
        readings += ctc_readings(name, of_clip_1SV, of_clip_1SW, vocabulary, params, lm)
    return readings


def padded_log_probs(logits_BSV: torch.Tensor, padding_BS: torch.Tensor) -> torch.Tensor:
    """Returns log-probabilities. After the end of a clip the blank has all probability, so nothing is read there."""
    padding_BS = padding_BS.to(logits_BSV.device)
    log_probs_BSV = functional.log_softmax(logits_BSV, dim=2).masked_fill(padding_BS[..., None], -torch.inf)
    log_probs_BSV[..., BLANK_ID] = log_probs_BSV[..., BLANK_ID].masked_fill(padding_BS, 0.0)
    return log_probs_BSV


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
    confidence_scale: ConfidenceScale = UNCALIBRATED
    """Calibrates the characters' confidences."""
    times_by_evidence: bool = False
    """Whether `read_clip` reads a clip again with many masks, to find the frames that show each character."""

    @classmethod
    def from_checkpoint(cls, path: Path, device: torch.device, adapter: Path | None = None) -> "LipReader":
        """Returns the reader of a checkpoint, with the changes of `adapter`, in float32 on `device`.

        Raises CheckpointError like `load_adapted`, and if imported weights lack parts that reading needs.
        """
        return cls.of_state(load_adapted(path, adapter), path, device)

    @classmethod
    def of_state(cls, state: Mapping[str, Any], path: Path, device: torch.device) -> "LipReader":
        """Works like `from_checkpoint`, for the loaded `state` of the checkpoint `path`."""
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
            scale = ConfidenceScale.of(state.get("confidence_scale"))
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
            confidence_scale=scale,
        )

    def encode(
        self, video_BTHW: torch.Tensor, num_frames_B: torch.Tensor, blind: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the encoder output (B, S, E), float32, of uint8 clips, and the numbers of steps (B,).

        The numbers of steps are on the device of `num_frames_B`.
        """
        video_BTHW, frames_B = (one.to(self.device, non_blocking=True) for one in (video_BTHW, num_frames_B))
        return self.encode_input(network_input(video_BTHW, frames_B, self.model, blind), num_frames_B)

    def encode_input(
        self, inputs_BCTYX: torch.Tensor, num_frames_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what `encode` returns, of normalised clips on the device."""
        with self.precision.autocast(self.device):
            encoded_BSE, num_steps_B = self.network.encode(inputs_BCTYX, num_frames_B)
        return encoded_BSE.float(), num_steps_B  # decoders and losses are computed in float32

    @property
    def normaliser(self) -> str:
        """Returns the normaliser of the training labels, in one line."""
        return describe_normaliser(self.text, self.normaliser_version)

    @property
    def models(self) -> Sequence["LipReader"]:
        """Returns itself, as a reader of several models (model/decoding/fusion.py) returns them."""
        return (self,)

    @property
    def num_views(self) -> int:
        """Returns how many views of a clip are encoded: only the clip as it is."""
        return 1

    @property
    def heads(self) -> list[Head]:
        """Returns the heads of the network."""
        return [head for module, head in HEAD_OF_MODULE.items() if getattr(self.network, module) is not None]

    def decoder(self, params: DecodeParams) -> str:
        """Returns the decoder of `params`. Raises ConfigError if the model lacks its heads or its language model."""
        return ready_decoder(params, self.heads, self.language_model is not None)

    def settings(self, params: DecodeParams) -> dict[str, Any]:
        """Returns the decoder's name and the settings of `params` that reading uses."""
        return used_settings(self.decoder(params), params, self.heads)

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
            return _readings_by_attention(self, name, encoded, params)
        return _readings_by_ctc(self, name, encoded, params)

    def reference(self, label: str, params: DecodeParams) -> str:
        """Returns the reference for this decoder: the label, or its syllables."""
        return self.vocabulary.pinyin_of(label) if self.decoder(params) == "syllables" else label

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

    @torch.no_grad()
    def read_clip(self, clip_THW: np.ndarray, params: DecodeParams) -> Reading:
        """Returns the text of one uint8 clip, with the times of its characters and the parts of its candidates."""
        video_BTHW = torch.from_numpy(np.ascontiguousarray(clip_THW))[None]
        num_frames_B = torch.tensor([len(clip_THW)])
        encoded_BSE, num_steps_B = self.encode(video_BTHW, num_frames_B)
        readings = self.decode(encoded_BSE, num_steps_B, num_frames_B, params)
        readings = self.with_part_scores(readings, encoded_BSE, num_steps_B)
        masked = self.masked_log_probs(clip_THW, params) if self.times_by_evidence else ()
        return self.timed(readings, encoded_BSE, num_steps_B, num_frames_B, params, masked)[0]

    def masked_log_probs(
        self, clip_THW: np.ndarray, params: DecodeParams
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the middle frame of each mask, and the log-probabilities (S, V) of the masked clip."""
        for frames, copies_BTHW in masked_copies(clip_THW, self.fps):
            num_frames_B = torch.full((len(frames),), len(clip_THW))
            encoded_BSE, _ = self.encode(torch.from_numpy(copies_BTHW), num_frames_B)
            log_probs_BSV, _ = self._timing_head(encoded_BSE, params)
            assert log_probs_BSV is not None, "read_clip has used this head"
            yield from zip(frames, log_probs_BSV, strict=True)

    def _timing_head(
        self, encoded_BSE: torch.Tensor, params: DecodeParams
    ) -> tuple[np.ndarray | None, Tokenizer]:
        """Returns log-probabilities (B, S, V) of the CTC head that times the texts, None without it, and its units."""
        network, table = self.network, self.vocabulary.characters
        logits_of = network.ctc_logits
        if network.ctc_head is None or spiking_head(self.decoder(params)) == "syllables":
            logits_of, table = network.syllable_logits, self.vocabulary.syllables or table
        logits_BSV = logits_of(encoded_BSE)
        if logits_BSV is None:
            return None, table
        return functional.log_softmax(logits_BSV, dim=2).cpu().numpy(), table

    @torch.no_grad()
    def with_part_scores(
        self, readings: Sequence[Reading], encoded_BSE: torch.Tensor, num_steps_B: torch.Tensor
    ) -> list[Reading]:
        """Returns the readings with the score of each candidate by each part of the model."""
        scored = []
        for reading, encoded_SE, num_steps in zip(readings, encoded_BSE, num_steps_B.tolist(), strict=True):
            if texts := [candidate.text for candidate in reading.candidates]:
                encoded_NSE = encoded_SE[:num_steps].expand(len(texts), -1, -1)
                targets = targets_of(texts, self.vocabulary, encoded_NSE.device)
                outputs = self.network.outputs(encoded_NSE, torch.full((len(texts),), num_steps), targets)
                log_probs_SV, log_probs_SW = (
                    None if logits is None else functional.log_softmax(logits[0], dim=1).cpu().numpy()
                    for logits in (outputs.ctc_logits_BSV, outputs.syllable_logits_BSW)
                )
                attention_N = None
                if outputs.decoder_logits_BLV is not None:
                    attention_N = (-joint_loss_B(outputs, targets, ATTENTION_ALONE)).tolist()
                vocabulary, lm = self.vocabulary, self.language_model
                reading = with_part_scores(reading, log_probs_SV, log_probs_SW, vocabulary, lm, attention_N)
            scored.append(reading)
        return scored

    @torch.no_grad()
    def timed(
        self,
        readings: Sequence[Reading],
        encoded_BSE: torch.Tensor,
        num_steps_B: torch.Tensor,
        num_frames_B: torch.Tensor,
        params: DecodeParams,
        masked: Iterable[tuple[int, np.ndarray]] = (),
    ) -> list[Reading]:
        """Returns the readings with times and confidences of their characters; unchanged without a CTC head.

        `masked` is for a single clip (`with_times`).
        """
        log_probs_BSV, table = self._timing_head(encoded_BSE, params)
        if log_probs_BSV is None:
            return list(readings)
        sizes = zip(num_steps_B.tolist(), num_frames_B.tolist(), strict=True)
        scale = self.confidence_scale
        return [
            with_times(reading, log_probs_SV[:num_steps], table, num_frames, self.fps, scale, masked)
            for reading, log_probs_SV, (num_steps, num_frames) in zip(
                readings, log_probs_BSV, sizes, strict=True
            )
        ]


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
