"""From the encoder's output to readings, by every decoder there is.

Shapes: B clips, S encoder steps, E encoder width, V characters, W syllables.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from model.decoders.ctc_beam import with_syllables
from model.decoders.ctc_forward import SyllableScores
from model.decoders.ctc_prefix import CtcPrefixes
from model.decoders.ctc_reading import best_reading, greedy_reading, reading_by_ctc
from model.decoders.joint_beam import joint_beam
from model.decoders.ngram import LanguageModel
from model.networks.masks import step_mask
from model.networks.network import LipNetwork
from model.reading import Candidate, Reading
from model.settings import DecodeParams
from model.vocabulary import Vocabulary


class Encoded(NamedTuple):
    """Clips as the encoder leaves them."""

    encoded_BSE: torch.Tensor
    """float32."""
    num_steps_B: torch.Tensor
    duration_s_B: torch.Tensor


def readings_by_attention(
    name: str,
    network: LipNetwork,
    vocabulary: Vocabulary,
    encoded: Encoded,
    params: DecodeParams,
    lm: LanguageModel | None,
) -> list[Reading]:
    """By `name`: attention, attention_beam or joint_beam."""
    assert network.decoder is not None
    encoded_BSE, device = encoded.encoded_BSE, encoded.encoded_BSE.device
    padding_BS = ~step_mask(encoded.num_steps_B.to(device), encoded_BSE.shape[1])
    max_chars_B = (encoded.duration_s_B.to(device) * params.max_chars_per_s).ceil().long().clamp(min=1)
    table = vocabulary.characters
    if name == "attention":
        ids, scores = network.decoder.greedy(encoded_BSE, padding_BS, max_chars_B)
        return [greedy_reading(table, i, s) for i, s in zip(ids, scores, strict=True)]
    ctc = None
    if name == "joint_beam":
        logits_BSV = network.ctc_logits(encoded_BSE)
        assert logits_BSV is not None
        ctc = CtcPrefixes(functional.log_softmax(logits_BSV, dim=2), encoded.num_steps_B)
    syllables = _syllable_scores(network, vocabulary, encoded, params)
    searched = params
    if any(of_clip is not None for of_clip in syllables):
        # the syllable head orders them anew: the search may not end when those to be told are sure without it
        searched = params.model_copy(update={"num_candidates": params.beam})
    found = joint_beam(network.decoder.stepping(encoded_BSE, padding_BS), ctc, lm, max_chars_B, searched)
    readings = []
    for texts, of_clip in zip(found, syllables, strict=True):
        candidates = [Candidate(table.decode(one.ids), one.log_probability, one.rank_score) for one in texts]
        if of_clip is not None:
            candidates = with_syllables(candidates, of_clip, params.syllable_weight)
        readings.append(best_reading(candidates[: params.num_candidates]))
    return readings


def readings_by_ctc(
    name: str,
    network: LipNetwork,
    vocabulary: Vocabulary,
    encoded: Encoded,
    params: DecodeParams,
    lm: LanguageModel | None,
) -> list[Reading]:
    """By `name`: ctc, ctc_beam, syllables or pinyin; clip by clip, in numpy."""
    encoded_BSE, num_steps_B = encoded.encoded_BSE, encoded.num_steps_B
    asks_syllables = name in ("syllables", "pinyin") or (name == "ctc_beam" and params.syllable_weight > 0)
    characters = _of_clips(
        network.ctc_logits(encoded_BSE) if name in ("ctc", "ctc_beam") else None, num_steps_B
    )
    syllables = _of_clips(network.syllable_logits(encoded_BSE) if asks_syllables else None, num_steps_B)
    return [
        reading_by_ctc(name, log_probs_SV, log_probs_SW, vocabulary, params, lm)
        for log_probs_SV, log_probs_SW in zip(characters, syllables, strict=True)
    ]


def _syllable_scores(
    network: LipNetwork, vocabulary: Vocabulary, encoded: Encoded, params: DecodeParams
) -> Sequence[SyllableScores | None]:
    """What the syllable head says of each clip, where it is there and to be asked."""
    logits_BSW = network.syllable_logits(encoded.encoded_BSE) if params.syllable_weight > 0 else None
    table = vocabulary.syllables
    return [
        None if log_probs_SW is None or table is None else SyllableScores(log_probs_SW, table)
        for log_probs_SW in _of_clips(logits_BSW, encoded.num_steps_B)
    ]


def _of_clips(logits_BSV: torch.Tensor | None, num_steps_B: torch.Tensor) -> Sequence[np.ndarray | None]:
    """Log-probabilities (S, V) of each clip, its padding cut off; None for each where there are no logits."""
    if logits_BSV is None:
        return [None] * len(num_steps_B)
    log_probs_BSV = functional.log_softmax(logits_BSV, dim=2).cpu().numpy()
    steps_B = num_steps_B.tolist()
    return [log_probs_SV[:steps] for log_probs_SV, steps in zip(log_probs_BSV, steps_B, strict=True)]
