"""Spikes of a CTC head agree with the greedy decoder; the probability of the blank."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.decoding.ctc import ctc_spikes, greedy_ctc, spiking_head
from model.decoding.registry import HEADS_OF_DECODER
from model.text import BLANK_ID, UNKNOWN_ID, Tokenizer

TABLE = Tokenizer.of_units("好学今")


def log_probs(ids: list[int], sure: list[float], table: Tokenizer = TABLE) -> np.ndarray:
    """Returns (S, V): each step gives probability `sure` to its id, and the rest evenly to the others."""
    probs_SV = np.empty((len(ids), table.num_tokens))
    for step, (id_, probability) in enumerate(zip(ids, sure, strict=True)):
        probs_SV[step] = (1 - probability) / (table.num_tokens - 1)
        probs_SV[step, id_] = probability
    return np.log(probs_SV)


def test_a_run_is_one_spike_at_its_highest_probability() -> None:
    first, second = TABLE.encode("今好")
    ids = [BLANK_ID, first, first, first, BLANK_ID, first, second, UNKNOWN_ID]
    spikes = ctc_spikes(log_probs(ids, [0.9, 0.6, 0.8, 0.7, 0.9, 0.5, 0.95, 0.9]), TABLE)
    assert [(spike.step, spike.text) for spike in spikes.spikes] == [(2, "今"), (5, "今"), (6, "好")]
    assert [spike.probability for spike in spikes.spikes] == pytest.approx([0.8, 0.5, 0.95])
    assert spikes.blank_S[0] == pytest.approx(0.9) and spikes.blank_S[2] == pytest.approx(0.2 / 6)
    assert len(spikes.blank_S) == len(ids)


@given(st.lists(st.lists(st.floats(-8, 8), min_size=7, max_size=7), max_size=30))
def test_spikes_join_to_the_greedy_text(logits: list[list[float]]) -> None:
    logits_SV = np.array(logits, np.float32).reshape(-1, TABLE.num_tokens)
    log_probs_SV = logits_SV - np.log(np.exp(logits_SV).sum(axis=1, keepdims=True))
    spikes = ctc_spikes(log_probs_SV, TABLE)
    ((ids, _),) = greedy_ctc(log_probs_SV[None])
    assert "".join(spike.text for spike in spikes.spikes) == TABLE.decode(ids)
    steps = [spike.step for spike in spikes.spikes]
    assert steps == sorted(set(steps))
    assert all(0 <= p <= 1.0001 for p in (*spikes.blank_S, *(spike.probability for spike in spikes.spikes)))
    assert len(spikes.blank_S) == len(logits)


def test_spikes_are_of_syllables_if_the_decoder_uses_only_them() -> None:
    by_syllables = {name for name in (*HEADS_OF_DECODER, None) if spiking_head(name) == "syllables"}
    assert by_syllables == {"syllables", "pinyin"}
    table = Tokenizer.of_units(["hao", "ni"], joiner=" ")
    ids = [*table.encode(["ni"]), BLANK_ID, *table.encode(["hao", "hao", "ni"])]
    spikes = ctc_spikes(log_probs(ids, [0.9] * 5, table), table, ("ni", "hao"))
    assert [(spike.step, spike.text) for spike in spikes.spikes] == [(0, "ni"), (2, "hao"), (4, "ni")]
    assert spikes.reference == ("ni", "hao")
