"""Decodes the encoder's output into texts, with any decoder.

Shapes: B clips, S encoder steps, E encoder width, V characters, W syllables.
"""

from typing import NamedTuple

import torch
from torch.nn import functional

from model.decoding.attention import joint_beam, read_greedily
from model.decoding.ctc_beam import best_of, best_reading, ctc_readings, greedy_reading, with_syllables
from model.decoding.ctc_forward import SyllableScores
from model.decoding.ctc_prefix import CtcPrefixes
from model.decoding.ngram import LanguageModel
from model.decoding.posterior import with_posteriors
from model.decoding.registry import GREEDY
from model.decoding.result import Candidate, Reading
from model.networks.network import LipNetwork
from model.networks.network_input import step_mask
from model.settings import DecodeParams
from model.text import BLANK_ID
from model.vocabulary import Vocabulary


class Encoded(NamedTuple):
    """The encoder's output for some clips."""

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
    """Decodes with `name`: attention, attention_beam or joint_beam."""
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


def readings_by_ctc(
    name: str,
    network: LipNetwork,
    vocabulary: Vocabulary,
    encoded: Encoded,
    params: DecodeParams,
    lm: LanguageModel | None,
) -> list[Reading]:
    """Decodes with `name`: ctc, ctc_beam, syllables or pinyin.

    On a GPU it searches all clips at once, on other devices one clip at a time on the CPU: in a batch every clip tries
    as many units as the clip that needs most, which is slow on a CPU, and on small arrays numpy is faster there than
    torch. The sums need float64, which some other devices lack.
    """
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
