"""Several models, and several views of each clip, read together.

With a CTC decoder, and the same units in all models, the candidates of every model and view are ranked by the mean of
the log-probabilities that all of them give the whole texts. Else the candidates vote (model/decoding/rover.py). The
mean of the heads at each step would read worse than one model: two models write a character at different steps.

Shapes: B clips, N = B times the number of views, view after view, T frames, S encoder steps, E encoder width, M models
times views, C candidates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from model.decoding.alignment import NUM_ALTERNATIVES
from model.decoding.arrays import Array
from model.decoding.calibration import UNCALIBRATED, ConfidenceScale
from model.decoding.ctc import ctc_log_probabilities
from model.decoding.ctc_beam import best_of, best_reading
from model.decoding.reader import LipReader, padded_log_probs
from model.decoding.registry import learnt_decoders, ready_decoder, used_settings
from model.decoding.result import Alternative, Candidate, Reading, TimedCharacter, with_posteriors
from model.decoding.rover import rover
from model.networks.network_input import network_input, step_mask
from model.settings import DecodeParams, Head, ModelParams, View
from model.text import without_version
from shards.errors import CheckpointError, ConfigError

ZOOM = 1.08
"""Of view scale. Public models see 88 px of crops of 96 px, so a larger zoom would need pixels outside the crop."""
Encoded = list[tuple[torch.Tensor, torch.Tensor]]
"""Of each model: the encoder output (N, S, E) and the numbers of steps (N,)."""


class FusedReader:
    """Reads with several models, or several views of each clip; vocabulary and settings are those of the first model.

    The normalisers of the models must be alike, and they must read clips of the same frame rate and size.
    """

    def __init__(self, models: Sequence[LipReader], views: Sequence[View] = ()) -> None:
        first = models[0]
        self.models, self.views = tuple(models), tuple(views)
        self.num_views = 1 + sum(2 if view == "scale" else 1 for view in views)
        self.vocabulary, self.text, self.device = first.vocabulary, first.text, first.device
        self.fps, self.crop_px = first.fps, first.crop_px
        self.times_by_evidence = False

    @property
    def confidence_scale(self) -> ConfidenceScale:
        """Returns UNCALIBRATED: each model calibrates its own confidences, but not their mean."""
        return UNCALIBRATED

    @property
    def heads(self) -> list[Head]:
        """Returns the heads that every model has."""
        first, *others = self.models
        return [head for head in first.heads if all(head in other.heads for other in others)]

    def decoder(self, params: DecodeParams) -> str:
        """Returns the decoder of `params`. Raises ConfigError if a model lacks its heads or its language model."""
        return ready_decoder(
            params, self.heads, all(model.language_model is not None for model in self.models)
        )

    def settings(self, params: DecodeParams) -> dict[str, Any]:
        """Returns the decoder's name, the settings of `params` that reading uses, and how texts are chosen."""
        name = self.decoder(params)
        own = used_settings(name, params, self.heads) | ({"beam": params.beam} if name == "ctc" else {})
        own["fusion"] = "n-best" if self._rescores(name) else "rover"
        return own | ({"views": list(self.views)} if self.views else {})

    def open_language_model(self, path: Path, params: DecodeParams) -> None:
        """Opens the ARPA file at `path` for each model, like `LipReader.open_language_model`."""
        first = self.models[0]
        for model in self.models:
            if model.vocabulary.characters == first.vocabulary.characters:
                model.language_model = first.language_model  # one for all, since it may be large
            model.open_language_model(path, params)

    def reference(self, label: str, params: DecodeParams) -> str:
        """Returns the reference for this decoder: the label, or its syllables."""
        return self.vocabulary.pinyin_of(label) if self.decoder(params) == "syllables" else label

    def ctc_log_probs(self, clip_THW: np.ndarray, head: Head = "ctc") -> np.ndarray | None:
        """Returns the first model's log-probabilities (S, V) of one uint8 clip; None if the head is missing."""
        return self.models[0].ctc_log_probs(clip_THW, head)

    @torch.no_grad()
    def encode(
        self, video_BTHW: torch.Tensor, num_frames_B: torch.Tensor, blind: bool = False
    ) -> tuple[Encoded, torch.Tensor]:
        """Returns what `decode` needs of uint8 clips, and the first model's numbers of steps (B,)."""
        video_BTHW, frames_B = (one.to(self.device, non_blocking=True) for one in (video_BTHW, num_frames_B))
        encoded = []
        for model in self.models:
            inputs = list(viewed_inputs(video_BTHW, frames_B, model.model, self.views, blind))
            encoded.append(model.encode_input(torch.cat(inputs), num_frames_B.repeat(self.num_views)))
        return encoded, encoded[0][1][: len(num_frames_B)]

    @torch.no_grad()
    def decode(
        self, encoded: Encoded, num_steps_B: torch.Tensor, num_frames_B: torch.Tensor, params: DecodeParams
    ) -> list[Reading]:
        """Returns the text of each clip, read by the decoder of `params`, which every model has."""
        name = self.decoder(params)
        params = params.model_copy(update={"decoder": name})
        searched = self._searched(params) if self._rescores(name) else params
        frames_N = num_frames_B.repeat(self.num_views)
        readings: list[list[Reading]] = [[] for _ in num_frames_B]
        for model, (encoded_NSE, num_steps_N) in zip(self.models, encoded, strict=True):
            found = model.decode(encoded_NSE, num_steps_N, frames_N, searched)
            for number, reading in enumerate(found):
                readings[number % len(readings)].append(reading)
        if not self._rescores(name):
            return [rover(of_clip) for of_clip in readings]
        return self._rescored(readings, encoded, searched, params)

    @torch.no_grad()
    def read_clip(self, clip_THW: np.ndarray, params: DecodeParams) -> Reading:
        """Returns the text of one uint8 clip, with the times and confidences of its characters."""
        video_BTHW = torch.from_numpy(np.ascontiguousarray(clip_THW))[None]
        num_frames_B = torch.tensor([len(clip_THW)])
        encoded, num_steps_B = self.encode(video_BTHW, num_frames_B)
        readings = self.decode(encoded, num_steps_B, num_frames_B, params)
        readings = self.with_part_scores(readings, encoded, num_steps_B)
        named = params.model_copy(update={"decoder": self.decoder(params)})
        masked = list(self.models[0].masked_log_probs(clip_THW, named)) if self.times_by_evidence else []
        return self.timed(readings, encoded, num_steps_B, num_frames_B, params, masked)[0]

    def with_part_scores(
        self, readings: Sequence[Reading], encoded: Encoded, num_steps_B: torch.Tensor
    ) -> list[Reading]:
        """Returns the readings with the score of each candidate by each part of the first model."""
        return self.models[0].with_part_scores(
            readings, encoded[0][0][: len(readings)], encoded[0][1][: len(readings)]
        )

    @torch.no_grad()
    def timed(
        self,
        readings: Sequence[Reading],
        encoded: Encoded,
        num_steps_B: torch.Tensor,
        num_frames_B: torch.Tensor,
        params: DecodeParams,
        masked: Sequence[tuple[int, np.ndarray]] = (),
    ) -> list[Reading]:
        """Returns the readings with times and confidences of their characters.

        The times are those of the first model (`masked` as in `LipReader.timed`), the confidences the means of all
        models with the same units and of all views.
        """
        named = params.model_copy(update={"decoder": self.decoder(params)})
        same, frames_N = [*readings] * self.num_views, num_frames_B.repeat(self.num_views)
        found: list[list[Reading]] = [[] for _ in readings]
        for model, (encoded_NSE, num_steps_N) in zip(self.models, encoded, strict=True):
            if model.vocabulary == self.vocabulary:
                of_first = masked if model is self.models[0] else ()
                timed = model.timed(same, encoded_NSE, num_steps_N, frames_N, named, of_first)
                for number, reading in enumerate(timed):
                    found[number % len(found)] += [reading] if reading.characters else []
        return [
            replace(
                reading,
                characters=tuple(map(_mean_of, zip(*(one.characters for one in of_clip), strict=True))),
            )
            for reading, of_clip in zip(readings, found, strict=True)
        ]

    def _rescores(self, name: str) -> bool:
        """Returns whether decoder `name` ranks texts by the CTC heads of all models."""
        table = self.vocabulary.characters
        return name in ("ctc", "ctc_beam") and all(
            model.vocabulary.characters == table for model in self.models
        )

    def _searched(self, params: DecodeParams) -> DecodeParams:
        """Returns how candidates are found: a greedy decoder has none, so its beam search without other scores."""
        plain = (
            {"lm_weight": 0.0, "length_bonus": 0.0, "syllable_weight": 0.0} if params.decoder == "ctc" else {}
        )
        return params.model_copy(update={"decoder": "ctc_beam", "num_candidates": params.beam, **plain})

    def _rescored(
        self,
        readings: Sequence[Sequence[Reading]],
        encoded: Encoded,
        searched: DecodeParams,
        params: DecodeParams,
    ) -> list[Reading]:
        """Ranks the candidates of each clip by the mean of their log-probabilities by all models and views.

        What else a beam search adds to a rank (language model, length, syllables) is added as the mean over the
        searches that found the text. The probability of all candidates together is the mean of the models'.
        """
        table = self.vocabulary.characters
        texts = [
            list(dict.fromkeys(one.text for reading in of_clip for one in reading.candidates))
            for of_clip in readings
        ]
        clips = [clip for clip, of_clip in enumerate(texts) for _ in of_clip]
        targets = [table.encode(text) for of_clip in texts for text in of_clip]
        own = np.stack(
            [ctc_log_probabilities(log_probs, clips, targets) for log_probs in self._log_probs(encoded)]
        )
        adds = searched.lm_weight or searched.length_bonus or searched.syllable_weight
        found, start = [], 0
        for of_clip, candidates in zip(readings, texts, strict=True):
            own_MC = own[:, start : start + len(candidates)]
            start += len(candidates)
            rank_C, mass_C = own_MC.mean(axis=0), np.logaddexp.reduce(own_MC, axis=0) - np.log(len(own_MC))
            for place, text in enumerate(candidates) if adds else ():
                added = [
                    one.rank_score - own_C[place]
                    for reading, own_C in zip(of_clip, own_MC, strict=True)
                    for one in reading.candidates
                    if one.text == text and np.isfinite([one.rank_score, own_C[place]]).all()
                ]
                rank_C[place] += fmean(added or [-np.inf])
            ranked = [
                Candidate(*values)
                for values in zip(candidates, mass_C.tolist(), rank_C.tolist(), strict=True)
            ]
            ranked.sort(key=lambda candidate: -candidate.rank_score)
            found.append(best_reading(best_of(with_posteriors(ranked), params)))
        return found

    def _log_probs(self, encoded: Encoded) -> Iterator[Array]:
        """Yields the log-probabilities (B, S, V) of the CTC head of each model for each view."""
        for model, (encoded_NSE, num_steps_N) in zip(self.models, encoded, strict=True):
            logits_NSV = model.network.ctc_logits(encoded_NSE)
            assert logits_NSV is not None
            on_gpu = encoded_NSE.device.type == "cuda"
            padding_NS = ~step_mask(num_steps_N.to(encoded_NSE.device), encoded_NSE.shape[1])
            log_probs_NSV = padded_log_probs(logits_NSV if on_gpu else logits_NSV.cpu(), padding_NS)
            yield from (log_probs_NSV if on_gpu else log_probs_NSV.numpy()).reshape(
                self.num_views, -1, *log_probs_NSV.shape[1:]
            )


def _mean_of(same: Sequence[TimedCharacter]) -> TimedCharacter:
    """Returns a character with the mean of its confidences and of the shares of its alternatives."""
    shares: dict[str, float] = {}
    for alternative in (one for character in same for one in character.alternatives):
        shares[alternative.text] = shares.get(alternative.text, 0.0) + alternative.share / len(same)
    ranked = sorted(shares, key=lambda text: -shares[text])[:NUM_ALTERNATIVES]
    alternatives = tuple(Alternative(text, shares[text]) for text in ranked)
    return replace(same[0], confidence=fmean(one.confidence for one in same), alternatives=alternatives)


def viewed_inputs(
    video_BTHW: torch.Tensor,
    num_frames_B: torch.Tensor,
    params: ModelParams,
    views: Sequence[View],
    blind: bool = False,
) -> Iterator[torch.Tensor]:
    """Yields `network_input` of the clips as they are, then of each view; scale has two, larger and smaller."""
    yield network_input(video_BTHW, num_frames_B, params, blind)
    for view in views:
        if view == "flip":
            yield network_input(video_BTHW.flip(3), num_frames_B, params, blind)
        elif view == "scale":
            for window_px in _windows_px(params):
                zoomed = params.model_copy(update={"window_px": window_px})
                yield network_input(video_BTHW, num_frames_B, zoomed, blind)
        else:  # a frame earlier; the last frame stays, so the clip keeps its number of steps
            frame_T = torch.arange(video_BTHW.shape[1], device=video_BTHW.device)
            next_BT = torch.minimum(frame_T + 1, num_frames_B[:, None] - 1)
            clip_B1 = torch.arange(len(video_BTHW), device=video_BTHW.device)[:, None]
            yield network_input(video_BTHW[clip_B1, next_BT], num_frames_B, params, blind)


def _windows_px(params: ModelParams) -> tuple[int, int]:
    return round(params.window_px / ZOOM), round(params.window_px * ZOOM)


def open_checkpoints(
    paths: Sequence[Path], device: torch.device, views: Sequence[View] = (), adapter: Path | None = None
) -> LipReader | FusedReader:
    """Returns the reader of one checkpoint, or of several together and with `views`, in float32 on `device`.

    `adapter` is for a single checkpoint.

    Raises CheckpointError like `LipReader.from_checkpoint`, and if the models cannot read the same clips; ConfigError
    if they share no decoder, or cannot use a view.
    """
    if adapter is not None and len(paths) > 1:
        raise ConfigError(
            f"--adapter {adapter} belongs to one model, but {len(paths)} checkpoints are given: merge it into a "
            "checkpoint of its own with pipeline adapt --merge"
        )
    models = [LipReader.from_checkpoint(path, device, adapter) for path in paths]
    first = models[0]
    for path, model in zip(paths, models, strict=True):
        for what, value, of_first in (
            ("clips", _clips(model), _clips(first)),
            ("labels", without_version(model.normaliser), without_version(first.normaliser)),
        ):
            if value != of_first:
                raise CheckpointError(
                    f"{paths[0]} has learnt from {what} of {of_first}, but {path} from {what} of {value}, so they "
                    f"cannot read together; choose checkpoints whose {what} are alike"
                )
        _refuse_views(path, model, views)
    if len(models) == 1 and not views:
        return first
    fused = FusedReader(models, views)
    if not learnt_decoders(fused.heads):
        raise ConfigError(
            "these models share no decoder, so they cannot read together; choose checkpoints with a common one: "
            + "; ".join(
                f"{path} has {', '.join(learnt_decoders(model.heads))}"
                for path, model in zip(paths, models, strict=True)
            )
        )
    return fused


def _clips(model: LipReader) -> str:
    return f"{model.fps:g} frames/s and {model.crop_px} px"


def _refuse_views(path: Path, model: LipReader, views: Sequence[View]) -> None:
    if "shift" in views and model.model.temporal_stride == 1:
        raise ConfigError(
            f"decode.views: shift gives {path} nothing new, since it makes a step of each frame "
            "(model.temporal_stride 1); remove shift"
        )
    if "scale" in views and _windows_px(model.model)[1] > model.crop_px:
        raise ConfigError(
            f"decode.views: scale needs {_windows_px(model.model)[1]} px of the crop around the mouth for {path} "
            f"(model.window_px {model.model.window_px}), but its crops have {model.crop_px} px; remove scale"
        )
