"""Attention and joint beams, compared with an exhaustive search by teacher forcing and all paths of CTC."""

import itertools
import math
from collections import defaultdict
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from model.decoding.attention import Hypothesis, joint_beam, read_greedily
from model.decoding.ctc_prefix import CtcPrefixes
from model.decoding.kneser_ney import train
from model.decoding.ngram import LanguageModel
from model.networks.lstm import LstmDecoder
from model.networks.transformer_decoder import TransformerDecoder
from model.presets import Cnn3dSizes, ConformerSizes
from model.settings import DecodeParams
from model.text import BLANK_ID, END_ID, Tokenizer

Decoder = LstmDecoder | TransformerDecoder
Text = tuple[int, ...]

TABLE = Tokenizer(tuple("一二三"))
NUM_TOKENS, WIDTH = TABLE.num_tokens, 16
LM = train(["一二三", "一二", "二二一", "三"], order=3).of_tokens(TABLE)
KINDS = ("lstm", "transformer")
NUM_STEPS = [5, 3, 4]
MAX_CHARS = [3, 2, 3]


def decoder_of(kind: str, seed: int = 0) -> Decoder:
    """Returns a decoder with random weights, large enough that texts differ and some end before the limit."""
    torch.manual_seed(seed)
    decoder: Decoder
    if kind == "lstm":
        decoder = LstmDecoder(WIDTH, Cnn3dSizes(hidden_dim=8, num_heads=2), NUM_TOKENS, 0.0)
    else:
        sizes = ConformerSizes(hidden_dim=8, num_heads=2, feed_forward_dim=12)
        decoder = TransformerDecoder(WIDTH, sizes, 2, NUM_TOKENS, 0.0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        decoder.output.weight.mul_(3)
        decoder.output.bias[END_ID] += 1.0
    return decoder.eval()


class Clips:
    """Random encoder and CTC outputs of three clips of different lengths, with noise after their ends."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        steps = max(NUM_STEPS)
        self.encoded = 2 * torch.randn(len(NUM_STEPS), steps, WIDTH)
        self.log_probs = (1.5 * torch.randn(len(NUM_STEPS), steps, NUM_TOKENS)).log_softmax(2)
        self.num_steps = torch.tensor(NUM_STEPS)
        self.padding = torch.arange(steps) >= self.num_steps[:, None]
        self.max_chars = torch.tensor(MAX_CHARS)

    def search(
        self,
        decoder: Decoder,
        params: DecodeParams,
        *,
        with_ctc: bool,
        lm: LanguageModel | None = None,
        clips: slice = slice(None),
        steps: int | None = None,
    ) -> list[list[Hypothesis]]:
        cut = (clips, slice(steps))
        ctc = CtcPrefixes(self.log_probs[cut], self.num_steps[clips]) if with_ctc else None
        stepping = decoder.stepping(self.encoded[cut], self.padding[cut])
        with torch.no_grad():
            return joint_beam(stepping, ctc, lm, self.max_chars[clips], params)


@torch.no_grad()
def attention_score(decoder: Decoder, clips: Clips, clip: int, text: Text) -> float:
    """Returns the log-probability of the text and its end by teacher forcing."""
    steps = NUM_STEPS[clip]
    logits = decoder.teacher_forced(
        clips.encoded[clip : clip + 1, :steps],
        clips.padding[clip : clip + 1, :steps],
        torch.tensor([text], dtype=torch.long),
        1.0,
    )
    log_probs = logits[0].log_softmax(1)
    return sum(float(log_probs[place, token]) for place, token in enumerate([*text, END_ID]))


def paths_of(log_probs_SV: torch.Tensor) -> dict[Text, float]:
    """Returns the probability of every text that CTC can write, from every collapsed path."""
    of_text: dict[Text, float] = defaultdict(float)
    rows = log_probs_SV.double().tolist()
    for path in itertools.product(range(log_probs_SV.shape[1]), repeat=len(rows)):
        text = tuple(token for token, _ in itertools.groupby(path) if token != BLANK_ID)
        of_text[text] += math.exp(sum(row[token] for row, token in zip(rows, path, strict=True)))
    return of_text


@cache
def ctc_texts(clip: int) -> dict[Text, float]:
    return paths_of(Clips().log_probs[clip, : NUM_STEPS[clip]])


def lm_score(text: Text) -> float:
    state, score = LM.start(), 0.0
    for token in (*text, END_ID):
        score += float(LM.log_probs(np.array([state]))[0, token])
        state = int(LM.advance(np.array([state]), np.array([token]))[0]) if token != END_ID else state
    return score


def exhaustive(
    decoder: Decoder, clips: Clips, clip: int, params: DecodeParams, with_ctc: bool
) -> list[Hypothesis]:
    """Returns every text up to the character limit, the best first."""
    share = params.ctc_share if with_ctc else 0.0
    found = []
    for length in range(MAX_CHARS[clip] + 1):
        for text in itertools.product(range(4, NUM_TOKENS), repeat=length):
            likely = heads = attention_score(decoder, clips, clip, text)
            if share > 0:
                probability = ctc_texts(clip).get(text, 0.0)
                if probability == 0:
                    continue
                likely = math.log((1 - share) * math.exp(heads) + share * probability)
                heads = (1 - share) * heads + share * math.log(probability)
            rank = heads + params.length_bonus * length + params.lm_weight * lm_score(text)
            found.append(Hypothesis(rank, likely, text))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_beam_1_of_attention_is_greedy(kind: str, seed: int) -> None:
    decoder, clips = decoder_of(kind, seed), Clips(seed)
    with torch.no_grad():
        ids, scores = read_greedily(decoder.stepping(clips.encoded, clips.padding), clips.max_chars)
    found = clips.search(decoder, DecodeParams(beam=1), with_ctc=False)
    for clip, (text, score) in enumerate(zip(ids, scores, strict=True)):
        assert [len(found[clip]), found[clip][0].ids] == [1, tuple(text)]
        assert found[clip][0].log_probability == pytest.approx(score, abs=1e-5)
        assert score == pytest.approx(attention_score(decoder, clips, clip, tuple(text)), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("ctc_share", "lm_weight", "length_bonus"),
    [(None, 0, 0), (None, 0.7, 1.5), (0.3, 0, 0), (0.5, 0.4, -0.5), (1.0, 0, 2.0), (0.0, 0.3, 0)],
)
def test_a_wide_beam_agrees_with_an_exhaustive_search(
    kind: str, ctc_share: float | None, lm_weight: float, length_bonus: float
) -> None:
    decoder, clips, with_ctc = decoder_of(kind), Clips(), ctc_share is not None
    params = DecodeParams(
        beam=200,
        num_candidates=100,
        ctc_share=ctc_share or 0.0,
        lm_weight=lm_weight,
        length_bonus=length_bonus,
    )
    found = clips.search(decoder, params, with_ctc=with_ctc, lm=LM)
    first = clips.search(decoder, params.model_copy(update={"num_candidates": 1}), with_ctc=with_ctc, lm=LM)
    for clip in range(len(NUM_STEPS)):
        expected = exhaustive(decoder, clips, clip, params, with_ctc)
        assert [text.ids for text in found[clip]] == [text.ids for text in expected]
        for ours, theirs in zip(found[clip], expected, strict=True):
            assert ours.log_probability == pytest.approx(theirs.log_probability, abs=1e-4)
            assert ours.rank_score == pytest.approx(theirs.rank_score, abs=1e-4)
            assert ours.log_probability <= 0
        assert first[clip][0].ids == expected[0].ids, "a search for the best alone stops too early"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beam", [1, 3, 20])
@pytest.mark.parametrize("with_ctc", [False, True])
def test_a_clip_reads_the_same_in_a_batch_and_alone(kind: str, beam: int, with_ctc: bool) -> None:
    decoder, clips = decoder_of(kind), Clips()
    params = DecodeParams(beam=beam, lm_weight=0.3, length_bonus=0.2)
    together = clips.search(decoder, params, with_ctc=with_ctc, lm=LM)
    for clip, steps in enumerate(NUM_STEPS):
        (alone,) = clips.search(
            decoder, params, with_ctc=with_ctc, lm=LM, clips=slice(clip, clip + 1), steps=steps
        )
        # only the first num_candidates are certain: the search ends when these are final
        for ours, theirs in zip(together[clip][:5], alone[:5], strict=True):
            assert ours.ids == theirs.ids
            assert ours.rank_score == pytest.approx(theirs.rank_score, abs=1e-4)
    clips.encoded[1, NUM_STEPS[1] :] = 50.0
    clips.log_probs[1, NUM_STEPS[1] :] = torch.randn(NUM_TOKENS).log_softmax(0)
    again = clips.search(decoder, params, with_ctc=with_ctc, lm=LM)
    assert again == together, "values after a clip's end changed the result"


def test_prefix_scores_are_the_sums_over_all_paths() -> None:
    clips = Clips()
    for clip in range(len(NUM_STEPS)):
        starting_with: dict[Text, float] = defaultdict(float)
        for text, probability in ctc_texts(clip).items():
            for length in range(len(text) + 1):
                starting_with[text[:length]] += probability
        for text in [(), (4,), (4, 4), (4, 5), (6, 6, 5), (4, 5, 4, 5)]:
            prefixes = CtcPrefixes(clips.log_probs, clips.num_steps)
            clip_A = torch.arange(len(NUM_STEPS))
            for token in text:
                places = torch.zeros(len(clip_A), 1, dtype=torch.long)
                prefixes.extend(clip_A, places, places + token)
            scores_V = prefixes.scores()[clip, 0].exp()
            for token in range(4, NUM_TOKENS):
                assert float(scores_V[token]) == pytest.approx(starting_with[*text, token], rel=1e-5)
            assert float(scores_V[END_ID]) == pytest.approx(ctc_texts(clip).get(text, 0.0), rel=1e-5)


def test_prefix_scores_of_long_clips_are_finite_and_fall() -> None:
    torch.manual_seed(0)
    log_probs = (12 * torch.randn(1, 400, 50)).log_softmax(2)
    prefixes, clip = CtcPrefixes(log_probs, torch.tensor([400])), torch.tensor([0])
    previous = 0.0
    for _ in range(60):
        scores_V = prefixes.scores()[0, 0]
        assert not scores_V[4:].isnan().any()
        assert float(scores_V[4:].max()) <= previous + 1e-6
        token = 4 + int(scores_V[4:].argmax())
        previous = float(scores_V[token])
        assert math.isfinite(previous)
        prefixes.extend(clip, torch.tensor([[0]]), torch.tensor([[token]]))


class Counted:
    """A decoder that counts its steps."""

    def __init__(self, decoder: Decoder, clips: Clips) -> None:
        self.inner, self.steps = decoder.stepping(clips.encoded, clips.padding), 0

    def logits(self, tokens_BK: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        return self.inner.logits(tokens_BK)

    def reorder(self, clips_A: torch.Tensor, beams_AK: torch.Tensor) -> None:
        self.inner.reorder(clips_A, beams_AK)


@pytest.mark.parametrize("kind", KINDS)
def test_reading_ends_when_no_open_text_can_win(kind: str) -> None:
    decoder, clips = decoder_of(kind), Clips()
    # a bonus that may outweigh everything keeps the search going to the last character
    patient = Counted(decoder, clips)
    joint_beam(patient, None, None, torch.tensor([30] * 3), DecodeParams(beam=3, length_bonus=5.0))
    assert patient.steps == 31
    with torch.no_grad():
        decoder.output.bias[END_ID] += 50
    counted = Counted(decoder, clips)
    found = joint_beam(counted, None, None, torch.tensor([200] * 3), DecodeParams(beam=3, num_candidates=1))
    assert counted.steps == 1
    assert [of_clip[0].ids for of_clip in found] == [(), (), ()]


class Scripted:
    """A decoder with probability 0.9 for the empty text; other texts repeat one character up to the limit."""

    steps = 0

    def logits(self, tokens_BK: torch.Tensor) -> torch.Tensor:
        logits_BKV = torch.full((*tokens_BK.shape, NUM_TOKENS), -50.0)
        end, character = (0.9, 0.1) if self.steps == 0 else (0.001, 0.999)
        logits_BKV[..., END_ID], logits_BKV[..., 4] = math.log(end), math.log(character)
        self.steps += 1
        return logits_BKV

    def reorder(self, clips_A: torch.Tensor, beams_AK: torch.Tensor) -> None:
        pass


@pytest.mark.parametrize(("length_bonus", "length", "steps"), [(0.0, 0, 1), (1.5, 8, 9)])
def test_a_possible_later_bonus_keeps_a_text_open(length_bonus: float, length: int, steps: int) -> None:
    scripted = Scripted()
    params = DecodeParams(beam=2, num_candidates=1, length_bonus=length_bonus)
    ((best, *_),) = joint_beam(scripted, None, None, torch.tensor([8]), params)
    assert (len(best.ids), scripted.steps) == (length, steps)


def test_only_characters_are_written() -> None:
    """Even if blank, start or unknown are the most likely tokens."""
    decoder, clips = decoder_of("transformer"), Clips()
    assert isinstance(decoder.output, nn.Linear)
    with torch.no_grad():
        decoder.output.bias[[0, 1, 3]] += 20
        ids, _ = read_greedily(decoder.stepping(clips.encoded, clips.padding), clips.max_chars)
    found = clips.search(decoder, DecodeParams(beam=5), with_ctc=True)
    tokens = {token for text in ids for token in text}
    tokens |= {token for of_clip in found for text in of_clip for token in text.ids}
    assert tokens <= set(range(4, NUM_TOKENS))
