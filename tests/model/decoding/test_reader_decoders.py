"""A reader with each decoder: batches, beam 1, the settings that a decoder uses, and missing parts."""

import math
from pathlib import Path

import pytest
import torch

from model.decoding.arpa import write_arpa
from model.decoding.ctc import SyllableScores, syllable_log_probabilities
from model.decoding.reader import LipReader
from model.decoding.registry import (
    HEADS_OF_DECODER,
    describe_settings,
    unused_weights,
    used_settings,
)
from model.settings import DecodeParams, Head
from shards.errors import ConfigError, TableError
from tests.support.networks import (
    FRAMES,
    LM,
    NUM_FRAMES_B,
    SMALL,
    SMALL_CONFORMER,
    VOCABULARY,
    reader_of,
)


@pytest.fixture(scope="module", params=[SMALL, SMALL_CONFORMER], ids=["cnn3d", "conformer"])
def reader(request: pytest.FixtureRequest) -> LipReader:
    return reader_of(request.param)


@pytest.fixture(scope="module")
def video_BTHW() -> torch.Tensor:
    torch.manual_seed(1)
    video_BTHW = torch.randint(0, 256, (3, 23, 96, 96), dtype=torch.uint8)
    for row, frames in enumerate(FRAMES):
        video_BTHW[row, frames:] = 99
    return video_BTHW


@pytest.mark.parametrize("name", [*HEADS_OF_DECODER, "auto"])
def test_a_clip_reads_the_same_in_a_batch_and_alone(
    reader: LipReader, video_BTHW: torch.Tensor, name: str
) -> None:
    params = DecodeParams(decoder=name, beam=6, lm_weight=0.4, length_bonus=0.1, syllable_weight=0.2)
    together = reader.read(video_BTHW, NUM_FRAMES_B, params)
    for row, frames in enumerate(FRAMES):
        alone = reader.read_clip(video_BTHW[row, :frames].numpy(), params)
        assert together[row].text == alone.text
        assert together[row].score == pytest.approx(alone.score, abs=1e-4)
        assert [one.text for one in together[row].candidates] == [one.text for one in alone.candidates]


@pytest.mark.parametrize("name", [name for name in HEADS_OF_DECODER if name.endswith(("beam", "pinyin"))])
def test_candidates_are_sorted_and_at_most_num_candidates(
    reader: LipReader, video_BTHW: torch.Tensor, name: str
) -> None:
    params = DecodeParams(decoder=name, beam=8, num_candidates=3, lm_weight=0.4, syllable_weight=0.3)
    for reading in reader.read(video_BTHW, NUM_FRAMES_B, params):
        assert 1 <= len(reading.candidates) <= 3
        ranks = [one.rank_score for one in reading.candidates]
        assert ranks == sorted(ranks, reverse=True)
        assert len({one.text for one in reading.candidates}) == len(ranks)
        assert all(-math.inf < one.log_probability <= 0 for one in reading.candidates)
        best = reading.candidates[0]
        assert reading.text == best.text
        assert reading.score == pytest.approx(best.log_probability / max(len(best.text), 1))


@pytest.mark.parametrize(("beam", "greedy"), [("attention_beam", "attention"), ("ctc_beam", "ctc")])
def test_beam_1_is_greedy(reader: LipReader, video_BTHW: torch.Tensor, beam: str, greedy: str) -> None:
    ours = reader.read(video_BTHW, NUM_FRAMES_B, DecodeParams(decoder=beam, beam=1))
    theirs = reader.read(video_BTHW, NUM_FRAMES_B, DecodeParams(decoder=greedy))
    for searched, read in zip(ours, theirs, strict=True):
        assert searched.text == read.text
        assert searched.score == pytest.approx(read.score, abs=1e-5)
        assert read.candidates == ()


def test_a_joint_beam_without_ctc_is_an_attention_beam(reader: LipReader, video_BTHW: torch.Tensor) -> None:
    joint = reader.read(video_BTHW, NUM_FRAMES_B, DecodeParams(decoder="joint_beam", ctc_share=0.0))
    attention = reader.read(video_BTHW, NUM_FRAMES_B, DecodeParams(decoder="attention_beam"))
    assert joint == attention


@pytest.mark.parametrize("name", ["joint_beam", "ctc_beam"])
def test_the_syllable_head_adds_its_weighted_score(
    reader: LipReader, video_BTHW: torch.Tensor, name: str
) -> None:
    weight = 0.7
    without = reader.read(video_BTHW, NUM_FRAMES_B, DecodeParams(decoder=name, num_candidates=10))
    weighed = reader.read(
        video_BTHW, NUM_FRAMES_B, DecodeParams(decoder=name, num_candidates=10, syllable_weight=weight)
    )
    encoded_BSE, num_steps_B = reader.encode(video_BTHW, NUM_FRAMES_B)
    with torch.no_grad():
        logits_BSW = reader.network.syllable_logits(encoded_BSE)
    assert logits_BSW is not None and VOCABULARY.syllables is not None
    for row, steps in enumerate(num_steps_B.tolist()):
        scores = SyllableScores(logits_BSW[row, None, :steps].log_softmax(2).numpy(), VOCABULARY.syllables)
        ranks = {one.text: one.rank_score for one in without[row].candidates}
        for one in weighed[row].candidates:
            ((added,),) = syllable_log_probabilities([[one.text]], scores)
            assert one.rank_score == pytest.approx(ranks[one.text] + weight * added, abs=1e-4)


@pytest.mark.parametrize("name", ["joint_beam", "attention_beam", "ctc_beam"])
def test_num_candidates_does_not_change_the_text(
    reader: LipReader, video_BTHW: torch.Tensor, name: str
) -> None:
    params = DecodeParams(decoder=name, beam=10, num_candidates=10, syllable_weight=1.0)
    every = reader.read(video_BTHW, NUM_FRAMES_B, params)
    one = reader.read(video_BTHW, NUM_FRAMES_B, params.model_copy(update={"num_candidates": 1}))
    for alone, among in zip(one, every, strict=True):
        assert alone.candidates == among.candidates[:1]
        assert (alone.text, alone.score) == (among.text, among.score)


def test_decoders_that_a_model_has_not_learnt_are_refused() -> None:
    reader = reader_of(SMALL_CONFORMER, heads=("ctc", "syllables"))
    assert reader.decoder(DecodeParams()) == "ctc"
    for name in ("attention", "attention_beam", "joint_beam"):
        with pytest.raises(
            ConfigError, match=f"not learnt {name}; set it to ctc, syllables, ctc_beam, pinyin"
        ):
            reader.decoder(DecodeParams(decoder=name))


def test_a_missing_language_model_is_reported(tmp_path: Path) -> None:
    reader = reader_of(SMALL_CONFORMER, with_lm=False)
    for name in ("ctc_beam", "attention_beam", "joint_beam", "pinyin"):
        with pytest.raises(ConfigError, match="`pipeline lm`"):
            reader.decoder(DecodeParams(decoder=name, lm_weight=0.1))
    with pytest.raises(ConfigError, match=r"lm_weight must be above 0.*pinyin"):
        reader.decoder(DecodeParams(decoder="pinyin"))
    # greedy decoders, and lm_weight 0, need no language model
    reader.open_language_model(tmp_path / "no.arpa", DecodeParams(decoder="ctc", lm_weight=0.1))
    reader.open_language_model(tmp_path / "no.arpa", DecodeParams(decoder="ctc_beam"))
    assert reader.language_model is None
    asking = DecodeParams(decoder="ctc_beam", lm_weight=0.1)
    with pytest.raises(TableError, match="pipeline lm"):
        reader.open_language_model(tmp_path / "no.arpa", asking)
    write_arpa(tmp_path / "lm.arpa", LM)
    reader.open_language_model(tmp_path / "lm.arpa", asking)
    assert reader.decoder(asking) == "ctc_beam"


ALL_HEADS: tuple[Head, ...] = ("ctc", "decoder", "syllables")


def test_used_settings_are_described() -> None:
    params = DecodeParams(beam=40, lm_weight=0.4, length_bonus=0.5, syllable_weight=0.2)
    used = {name: used_settings(name, params, ALL_HEADS) for name in HEADS_OF_DECODER}
    beam = {"beam": 40, "length_bonus": 0.5, "lm_weight": 0.4}
    assert used["ctc"] == {"decoder": "ctc"}
    assert used["pinyin"] == {"decoder": "pinyin", **beam}, "pinyin does not use syllable_weight"
    assert used["ctc_beam"] == {"decoder": "ctc_beam", **beam, "syllable_weight": 0.2}
    assert "syllable_weight" not in used_settings("ctc_beam", params, ("ctc", "decoder"))
    assert describe_settings(used["ctc"]) == "ctc, greedy"
    assert describe_settings(used["joint_beam"]) == (
        "joint_beam, beam 40, length_bonus 0.5, ctc_share 0.3, lm_weight 0.4, syllable_weight 0.2, max_chars_per_s 12"
    )


def test_unused_weights_give_a_warning() -> None:
    weighed = DecodeParams(lm_weight=0.5, length_bonus=-2)
    assert unused_weights(weighed, ("ctc", "decoder")) == (
        "decode.lm_weight and decode.length_bonus change nothing: attention is greedy; set decode.decoder to a beam "
        "search (ctc_beam, attention_beam, joint_beam)"
    )
    assert unused_weights(DecodeParams(), ALL_HEADS) is None
    syllables = DecodeParams(decoder="ctc_beam", syllable_weight=0.5, lm_weight=0.3)
    assert unused_weights(syllables, ALL_HEADS) is None
    assert "no syllable head" in (unused_weights(syllables, ("ctc",)) or "")
    pinyin = syllables.model_copy(update={"decoder": "pinyin"})
    assert "pinyin reads only by that head" in (unused_weights(pinyin, ALL_HEADS) or "")
