"""CTC searches over all clips of a batch at once give the same results as clip by clip, with numpy and torch."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.decoding.ctc import ctc_log_probabilities, greedy_ctc
from model.decoding.ctc_beam import ctc_beam, ctc_readings, pinyin_beam
from model.decoding.kneser_ney import train
from model.decoding.reader import padded_log_probs
from model.decoding.result import Candidate
from model.networks.network_input import step_mask
from model.settings import DecodeParams
from model.text import BLANK_ID, Tokenizer
from model.vocabulary import Vocabulary
from tests.support.every_path import scores
from tests.support.networks import FRAMES, NUM_FRAMES_B, SMALL_CONFORMER, reader_of

TABLE = Tokenizer.of_units("abcdefghijklmnopqrst")
LM = train(["abcabc", "tsr", "abtsr", "ijk", "cab"], 3).of_tokens(TABLE)
HAN = Vocabulary.of_labels(["妈骑马", "马骂妈", "妈妈骂马", "骑马", "音乐快乐"], with_syllables=True)
HAN_LM = train(["妈骑马", "马骂妈", "音乐快乐"], 3).of_tokens(HAN.characters)
LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=5)


def batch(
    lengths: list[int], num_tokens: int, seed: int, sharpness: float
) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns clips (S, V), and all of them padded (B, S, V)."""
    clips = [scores(steps, num_tokens, seed + row, sharpness) for row, steps in enumerate(lengths)]
    padded_BSV = np.full((len(clips), max(lengths), num_tokens), -np.inf, np.float32)
    padded_BSV[:, :, BLANK_ID] = 0
    for row, clip_SV in enumerate(clips):
        padded_BSV[row, : len(clip_SV)] = clip_SV
    return clips, padded_BSV


def assert_alike(found: list[Candidate], expected: list[Candidate]) -> None:
    assert [candidate.text for candidate in found] == [candidate.text for candidate in expected]
    for field in ("log_probability", "rank_score"):
        ours, theirs = ([getattr(one, field) for one in candidates] for candidates in (found, expected))
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


@given(
    LENGTHS,
    st.integers(1, 12),
    st.integers(0, 10_000),
    st.sampled_from([0.5, 2.0, 5.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0, -0.5, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_ctc_beam_gives_a_clip_the_same_result_in_a_batch(
    lengths: list[int], beam: int, seed: int, sharpness: float, weight: float, bonus: float
) -> None:
    clips, padded_BSV = batch(lengths, TABLE.num_tokens, seed, sharpness)
    params = DecodeParams(beam=beam, num_candidates=100, lm_weight=weight, length_bonus=bonus)
    alone = [ctc_beam(clip_SV[None], TABLE, params, LM)[0] for clip_SV in clips]
    for array_BSV in (padded_BSV, torch.from_numpy(padded_BSV)):
        for found, expected in zip(ctc_beam(array_BSV, TABLE, params, LM), alone, strict=True):
            assert_alike(found, expected)


@given(LENGTHS, st.integers(1, 12), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_pinyin_beam_gives_a_clip_the_same_result_in_a_batch(
    lengths: list[int], beam: int, seed: int
) -> None:
    clips, padded_BSW = batch(lengths, HAN.num_syllables, seed, 2.0)
    params = DecodeParams(beam=beam, num_candidates=100, lm_weight=0.4)
    alone = [pinyin_beam(clip_SW[None], HAN, params, HAN_LM)[0] for clip_SW in clips]
    for array_BSW in (padded_BSW, torch.from_numpy(padded_BSW)):
        for found, expected in zip(pinyin_beam(array_BSW, HAN, params, HAN_LM), alone, strict=True):
            assert_alike(found, expected)


@given(
    LENGTHS, st.integers(0, 10_000), st.lists(st.lists(st.integers(1, 5), max_size=6), min_size=1, max_size=6)
)
@settings(max_examples=40, deadline=None)
def test_greedy_ctc_and_text_scores_are_the_same_in_a_batch(
    lengths: list[int], seed: int, targets: list[list[int]]
) -> None:
    clips, padded_BSV = batch(lengths, 6, seed, 2.0)
    asked = [(clip, target) for clip in range(len(clips)) for target in targets]
    scored = [
        score
        for clip_SV in clips
        for score in ctc_log_probabilities(clip_SV[None], [0] * len(targets), targets).tolist()
    ]
    for array_BSV in (padded_BSV, torch.from_numpy(padded_BSV)):
        alone = [greedy_ctc(clip_SV[None])[0] for clip_SV in clips]
        found = greedy_ctc(array_BSV)
        assert [ids for ids, _ in found] == [ids for ids, _ in alone]
        # the two libraries round the last digit of a sum differently
        np.testing.assert_allclose([score for _, score in found], [score for _, score in alone], atol=1e-12)
        found_N = ctc_log_probabilities(array_BSV, *map(list, zip(*asked, strict=True)))
        np.testing.assert_allclose(found_N, scored, atol=1e-9)


@given(st.lists(st.text("abcijkrst", max_size=6), min_size=1, max_size=5))
@settings(deadline=None)
def test_a_language_model_gives_the_same_in_torch(texts: list[str]) -> None:
    in_torch = LM.on_device_of(torch.zeros(1))
    assert LM.on_device_of(np.zeros(1)) is LM and LM.on_device_of(torch.zeros(2)) is in_torch
    states_N = np.full(len(texts), LM.start())
    for column in range(6):
        token_N = np.array([TABLE.encode(text.ljust(6, "z")[column])[0] for text in texts])
        states_N, before_N = LM.advance(states_N, token_N), states_N
        followed_N = in_torch.advance(torch.from_numpy(before_N), torch.from_numpy(token_N))
        assert followed_N.tolist() == states_N.tolist()
        rows_NV = in_torch.log_probs(torch.from_numpy(states_N))
        np.testing.assert_allclose(rows_NV.numpy(), LM.log_probs(states_N), rtol=1e-6)


@pytest.fixture(scope="module")
def video_BTHW() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (3, FRAMES[0], 96, 96), dtype=torch.uint8)


PARAMS = DecodeParams(beam=6, lm_weight=0.4, length_bonus=0.1, syllable_weight=0.2)


@pytest.mark.parametrize("name", ["ctc", "ctc_beam", "syllables", "pinyin"])
def test_a_network_reads_a_padded_batch_like_single_clips(name: str, video_BTHW: torch.Tensor) -> None:
    """On a GPU one search covers all clips; on a CPU each clip has its own search."""
    reader = reader_of(SMALL_CONFORMER)
    params = PARAMS.model_copy(update={"decoder": name})
    encoded_BSE, num_steps_B = reader.encode(video_BTHW, NUM_FRAMES_B)
    clip_by_clip = reader.decode(encoded_BSE, num_steps_B, NUM_FRAMES_B, params)
    padding_BS = ~step_mask(num_steps_B, encoded_BSE.shape[1])
    with torch.no_grad():
        heads = [reader.network.ctc_logits(encoded_BSE), reader.network.syllable_logits(encoded_BSE)]
    log_probs = [padded_log_probs(logits, padding_BS) for logits in heads]
    together = ctc_readings(name, *log_probs, reader.vocabulary, params, reader.language_model)
    for found, expected in zip(together, clip_by_clip, strict=True):
        assert found.text == expected.text and found.score == pytest.approx(expected.score, abs=1e-9)
        assert_alike(list(found.candidates), list(expected.candidates))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", ["ctc", "ctc_beam", "syllables", "pinyin", "attention", "attention_beam", "joint_beam"]
)
def test_a_gpu_reads_what_the_cpu_reads(
    name: str, video_BTHW: torch.Tensor, cuda: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TF32 is off: by default torch rounds the inputs of convolutions to its 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    reader = reader_of(SMALL_CONFORMER)
    on_gpu = copy.copy(reader)
    on_gpu.network, on_gpu.device = copy.deepcopy(reader.network).to(cuda), torch.device(cuda)
    params = PARAMS.model_copy(update={"decoder": name})
    expected = reader.read(video_BTHW, NUM_FRAMES_B, params)
    for found, known in zip(on_gpu.read(video_BTHW, NUM_FRAMES_B, params), expected, strict=True):
        assert found.text == known.text
        assert found.score == pytest.approx(known.score, abs=1e-3)
