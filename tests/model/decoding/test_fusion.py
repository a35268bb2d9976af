"""Several models and views read together: equality with one model, with sums by hand, and with padding."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoints import CHECKPOINT_VERSION, KEYS
from model.decoding.ctc import ctc_log_probabilities
from model.decoding.fusion import FusedReader, open_checkpoints, viewed_inputs
from model.decoding.reader import LipReader
from model.networks.network_input import network_input
from model.settings import DecodeParams, ModelParams, View
from model.text import Tokenizer
from model.vocabulary import Vocabulary
from shards.errors import CheckpointError, ConfigError
from tests.support.exported import MODELS, random_reader, state_of_reader
from tests.support.networks import FRAMES, NUM_FRAMES_B, SMALL_CONFORMER, reader_of

CPU = torch.device("cpu")
BEAM = DecodeParams(decoder="ctc_beam", beam=8, num_candidates=8)
STRIDE_2 = MODELS["conformer"]
VIEWS: tuple[View, ...] = ("flip", "scale", "shift")


@pytest.fixture(scope="module")
def video_BTHW() -> torch.Tensor:
    torch.manual_seed(1)
    video_BTHW = torch.randint(0, 256, (3, 23, 96, 96), dtype=torch.uint8)
    for row, frames in enumerate(FRAMES):
        video_BTHW[row, frames:] = 99
    return video_BTHW


@pytest.fixture(scope="module")
def readers() -> list[LipReader]:
    """Three models of the same units, the last one with other steps."""
    return [
        random_reader(STRIDE_2, seed=0),
        random_reader(STRIDE_2, seed=1),
        random_reader(MODELS["cnn3d"], seed=2),
    ]


def read(reader: LipReader | FusedReader, video_BTHW: torch.Tensor, params: DecodeParams) -> list:
    encoded, num_steps_B = reader.encode(video_BTHW, NUM_FRAMES_B)
    return reader.decode(encoded, num_steps_B, NUM_FRAMES_B, params)


@pytest.mark.parametrize("name", ["ctc_beam", "attention", "attention_beam", "joint_beam", "syllables"])
def test_the_same_model_twice_reads_its_own_texts(video_BTHW: torch.Tensor, name: str) -> None:
    reader = reader_of(SMALL_CONFORMER)
    params = DecodeParams(decoder=name, beam=8, num_candidates=8, lm_weight=0.4, length_bonus=0.2)
    twice = read(FusedReader([reader, reader]), video_BTHW, params)
    assert [reading.text for reading in twice] == [
        reading.text for reading in read(reader, video_BTHW, params)
    ]


def test_a_text_is_ranked_by_the_mean_of_its_log_probabilities(
    readers: Sequence[LipReader], video_BTHW: torch.Tensor
) -> None:
    """By hand: each model alone gives its candidates and its sums over all paths."""
    found = read(FusedReader(readers), video_BTHW, BEAM)
    for clip, frames in enumerate(FRAMES):
        clip_THW = video_BTHW[clip, :frames].numpy()
        texts = {one.text for reader in readers for one in reader.read_clip(clip_THW, BEAM).candidates}
        sums = {}
        for text in texts:
            of_models = []
            for reader in readers:
                log_probs_SV = reader.ctc_log_probs(clip_THW)
                assert log_probs_SV is not None
                target = reader.vocabulary.characters.encode(text)
                of_models.append(ctc_log_probabilities(log_probs_SV[None], [0], [target])[0])
            sums[text] = (np.mean(of_models), np.mean(np.exp(of_models)))
        ranked = sorted(sums, key=lambda text: -sums[text][0])
        assert [one.text for one in found[clip].candidates] == ranked[:8]
        ranks = np.array([sums[text][0] for text in ranked])
        mass = sum(mean for _, mean in sums.values())
        posterior = np.exp(ranks) / np.exp(ranks).sum() * mass
        assert np.exp([one.log_probability for one in found[clip].candidates]) == pytest.approx(
            posterior[:8], rel=1e-4
        )


def test_a_language_model_counts_once(readers: Sequence[LipReader], video_BTHW: torch.Tensor) -> None:
    """Of one model twice, each rank is that of the beam search alone, up to the paths that the beam dropped."""
    reader = reader_of(SMALL_CONFORMER)
    params = BEAM.model_copy(update={"lm_weight": 0.5, "length_bonus": 0.3, "syllable_weight": 0.4})
    for one, two in zip(
        read(reader, video_BTHW, params), read(FusedReader([reader] * 2), video_BTHW, params), strict=True
    ):
        assert [candidate.rank_score for candidate in two.candidates] == pytest.approx(
            [candidate.rank_score for candidate in one.candidates], abs=1e-4
        )


def test_greedy_ctc_chooses_among_the_candidates_of_all(
    readers: Sequence[LipReader], video_BTHW: torch.Tensor
) -> None:
    greedy = BEAM.model_copy(update={"decoder": "ctc", "lm_weight": 0.5, "length_bonus": 2.0})
    fused = FusedReader(readers)
    assert read(fused, video_BTHW, greedy) == read(fused, video_BTHW, BEAM)


@pytest.mark.parametrize("decoder", ["ctc_beam", "syllables"])
def test_views_read_the_same_in_a_batch_and_alone(
    readers: Sequence[LipReader], video_BTHW: torch.Tensor, decoder: str
) -> None:
    fused = FusedReader(readers[:2], VIEWS)
    params = BEAM.model_copy(update={"decoder": decoder})
    for clip, reading in enumerate(read(fused, video_BTHW, params)):
        alone = fused.read_clip(video_BTHW[clip, : FRAMES[clip]].numpy(), params)
        assert reading.text == alone.text
        assert reading.score == pytest.approx(alone.score, abs=1e-4)


def test_views_are_what_they_are_called(video_BTHW: torch.Tensor) -> None:
    """By other means: numpy moves and mirrors the clip; a picture of the middle is larger in the larger view."""
    inputs = list(viewed_inputs(video_BTHW, NUM_FRAMES_B, STRIDE_2, ("flip", "shift")))
    mirrored = torch.from_numpy(video_BTHW.numpy()[..., ::-1].copy())
    later = video_BTHW.numpy().copy()
    for clip, frames in enumerate(FRAMES):
        later[clip, : frames - 1] = video_BTHW[clip, 1:frames]
    for ours, theirs in zip(inputs, (video_BTHW, mirrored, torch.from_numpy(later)), strict=True):
        assert torch.equal(ours, network_input(theirs, NUM_FRAMES_B, STRIDE_2))
    plain = STRIDE_2.model_copy(update={"standardise": "given", "subtract_mean": 0.0})
    spot_BTHW = torch.zeros(1, 2, 96, 96, dtype=torch.uint8)
    spot_BTHW[:, :, 38:58, 38:58] = 255
    sizes = [float((one > 0).sum()) for one in viewed_inputs(spot_BTHW, torch.tensor([2]), plain, ("scale",))]
    as_it_is, larger, smaller = sizes
    assert 1.08 < larger / as_it_is < 1.35 and 0.7 < smaller / as_it_is < 0.95


def test_times_are_of_the_first_model_and_confidences_of_all(
    readers: Sequence[LipReader], video_BTHW: torch.Tensor
) -> None:
    clip_THW = video_BTHW[0].numpy()
    fused = FusedReader(readers)
    reading = fused.read_clip(clip_THW, BEAM)
    assert reading.text
    own = []
    for reader in readers:
        video_1THW, frames_1 = video_BTHW[:1], NUM_FRAMES_B[:1]
        encoded_BSE, num_steps_1 = reader.encode(video_1THW, frames_1)
        bare = replace(reading, characters=())
        own += reader.timed([bare], encoded_BSE, num_steps_1, frames_1, BEAM)
    for place, character in enumerate(reading.characters):
        same = [one.characters[place] for one in own]
        assert (character.start_s, character.end_s) == (same[0].start_s, same[0].end_s)
        assert character.confidence == pytest.approx(np.mean([one.confidence for one in same]), rel=1e-4)
        assert character.confidence + sum(one.share for one in character.alternatives) <= 1 + 1e-9


def checkpoint_of(folder: Path, name: str, reader: LipReader, **changes: object) -> Path:
    of_training = {"train_params": {}, "averaged_steps": 0, "progress": {}, "threads": 1}
    state = dict.fromkeys(KEYS) | of_training | {"version": CHECKPOINT_VERSION}
    torch.save(state | state_of_reader(reader, reader.heads, **changes), folder / name)
    return folder / name


def test_one_checkpoint_without_views_is_read_as_before(tmp_path: Path) -> None:
    path = checkpoint_of(tmp_path, "a.pt", random_reader(STRIDE_2))
    assert type(open_checkpoints([path], CPU)) is LipReader
    assert isinstance(open_checkpoints([path], CPU, ["shift"]), FusedReader)
    assert isinstance(open_checkpoints([path, path], CPU), FusedReader)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fps": 50.0}, "clips of 25 frames/s and 96 px, but .*b.pt from clips of 50 frames/s"),
        ({"crop_px": 112}, "but .*b.pt from clips of 25 frames/s and 112 px"),
        ({"text_params": {"digits": "chinese"}}, "labels of NFKC.*choose checkpoints whose labels are alike"),
    ],
)
def test_models_of_other_clips_or_labels_are_refused(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    reader = random_reader(STRIDE_2)
    paths = [checkpoint_of(tmp_path, "a.pt", reader), checkpoint_of(tmp_path, "b.pt", reader, **changes)]
    with pytest.raises(CheckpointError, match=said):
        open_checkpoints(paths, CPU)


def test_models_without_a_common_decoder_are_refused(tmp_path: Path) -> None:
    paths = [
        checkpoint_of(tmp_path, f"{head}.pt", reader_of(SMALL_CONFORMER, heads=(head,)))
        for head in ("ctc", "decoder")
    ]
    with pytest.raises(
        ConfigError, match=r"share no decoder.*ctc.pt has ctc, ctc_beam; .*decoder.pt has attention"
    ):
        open_checkpoints(paths, CPU)


@pytest.mark.parametrize(
    ("view", "changes", "said"),
    [
        ("shift", {"temporal_stride": 1}, "shift gives .*a.pt nothing new.*remove shift"),
        ("scale", {"window_px": 96}, "scale needs 104 px .*crops have 96 px; remove scale"),
    ],
)
def test_views_that_a_model_cannot_use_are_refused(
    tmp_path: Path, view: View, changes: dict[str, int], said: str
) -> None:
    model = ModelParams.model_validate(STRIDE_2.model_dump() | changes)
    path = checkpoint_of(tmp_path, "a.pt", random_reader(model))
    with pytest.raises(ConfigError, match=said):
        open_checkpoints([path], CPU, [view])


def test_models_of_other_units_vote(readers: Sequence[LipReader], video_BTHW: torch.Tensor) -> None:
    """A table with one more character has other tokens; the votes need only texts."""
    other = random_reader(STRIDE_2, seed=0)
    units = other.vocabulary.characters.units
    renamed = Tokenizer((*units[1:], units[0]))
    head = other.network.ctc_head
    assert head is not None
    with torch.no_grad():  # the same model with its columns in another order
        order = [*range(4), *range(5, 4 + len(units)), 4]
        head.weight[:], head.bias[:] = head.weight[order].clone(), head.bias[order].clone()
    other.vocabulary = Vocabulary(renamed, other.vocabulary.syllables)
    fused = FusedReader([readers[0], other])
    assert fused.settings(BEAM)["fusion"] == "rover"
    assert [one.text for one in read(fused, video_BTHW, BEAM)] == [
        one.text for one in read(readers[0], video_BTHW, BEAM)
    ]


def test_settings_name_fusion_and_views(readers: Sequence[LipReader]) -> None:
    fused = FusedReader(readers[:1], ("flip", "shift"))
    assert fused.settings(DecodeParams(decoder="ctc")) == {
        "decoder": "ctc", "beam": 10, "fusion": "n-best", "views": ["flip", "shift"]
    }  # fmt: skip
    assert readers[0].settings(DecodeParams(decoder="ctc")) == {"decoder": "ctc"}
    assert "views" not in DecodeParams().recorded() and DecodeParams(views=("flip",)).recorded()["views"] == [
        "flip"
    ]
