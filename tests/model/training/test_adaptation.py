"""Adapting a model to one person: a drawn person who is read better afterwards, and how the length is chosen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.adapters import save_adapter
from model.checkpoints import load_checkpoint
from model.decoding.reader import LipReader
from model.metrics import total_counts
from model.settings import DecodeParams, TrainParams
from model.training import adaptation
from model.training.adaptation import Adaptation, PersonClip, adapt, adapt_statistics, adapted
from stages.train import train
from tests.support.packed import pack_clips, toy_clips
from tests.support.trainings import job_in, with_sizes

OWN = toy_clips(20, 0, 9, frames_a_char=4)
"""Clips that are drawn like those of the training, which has not seen them."""
CPU, GREEDY = torch.device("cpu"), DecodeParams(decoder="ctc")


def person(num_clips: int, seed: int) -> list[PersonClip]:
    """Returns clips of another person: the mouth is lower in the picture, and the light is weak."""
    drawn = toy_clips(num_clips, 0, seed, frames_a_char=4)
    return [
        PersonClip(clip_id, label, (np.roll(clip_THW, 9, axis=1) * 0.4).astype(np.uint8))
        for clip_id, _, clip_THW, label in drawn
    ]


def cer(reader: LipReader, clips: list[PersonClip]) -> float:
    texts = [reader.read_clip(clip.clip_THW, GREEDY).text for clip in clips]
    return total_counts(zip((clip.label for clip in clips), texts, strict=True)).cer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads the clips of its own training well."""
    folder = tmp_path_factory.mktemp("trained")
    packed = pack_clips(folder, toy_clips(40, 4, frames_a_char=4))
    changes: dict[str, Any] = {
        "num_epochs": 22,
        "ctc_weight": 1.0,
        "accumulation_steps": 1,
        "valid_every": 11,
    }
    train(replace(job_in(folder, packed, learning_rate=5e-3, **changes), model=with_sizes(hidden_dim=32)))
    return folder / "checkpoints" / "best_model.pt"


@pytest.fixture(scope="module")
def reader(checkpoint: Path) -> LipReader:
    return LipReader.from_checkpoint(checkpoint, CPU)


@pytest.fixture(scope="module")
def params(checkpoint: Path) -> TrainParams:
    return TrainParams.model_validate(load_checkpoint(checkpoint)["train_params"])


@pytest.fixture(scope="module")
def result(reader: LipReader, params: TrainParams) -> Adaptation:
    return adapt(reader, person(12, seed=5), params, GREEDY, 0, lambda *_: None)


def test_a_person_is_read_better_also_in_clips_that_were_not_given(
    checkpoint: Path, reader: LipReader, result: Adaptation, tmp_path: Path
) -> None:
    own = [PersonClip(clip_id, label, clip) for clip_id, _, clip, label in OWN]
    others = person(20, seed=9)
    before = cer(reader, others)
    assert before > 0.5 and cer(reader, own) <= 0.05, "the model does not know this person"
    assert result.changes is not None and result.best.cer < result.lengths[0].cer / 2
    save_adapter(tmp_path / "person.pt", reader.network.state_dict(), result.changes, {})
    after = LipReader.from_checkpoint(checkpoint, CPU, tmp_path / "person.pt")
    assert cer(after, others) <= before / 2
    assert cer(after, own) <= 0.05, "it has not forgotten the others"
    assert cer(LipReader.from_checkpoint(checkpoint, CPU), others) == before, "taken off"


def test_each_clip_is_read_by_models_that_have_not_seen_it(
    reader: LipReader, params: TrainParams, result: Adaptation, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, seen, training = person(7, seed=5), [], adaptation._training

    def recorded(reader: LipReader, clips: Any, *arguments: Any) -> Any:
        seen.append({clip.clip_id for clip in clips})
        return training(reader, clips, *arguments)

    monkeypatch.setattr(adaptation, "_training", recorded)
    monkeypatch.setattr(adaptation, "STEPS", (0, 1))
    found = adapt(reader, clips, params, GREEDY, 3, lambda *_: None, 1)
    names = {clip.clip_id for clip in clips}
    folds = seen[: adaptation.NUM_FOLDS]
    held = [name for fold in folds for name in names - fold]
    assert len(folds) == adaptation.NUM_FOLDS and sorted(held) == sorted(names), "each once"
    assert all(set(length.counts) == names for length in found.lengths)
    assert all(fold == names for fold in seen[adaptation.NUM_FOLDS :]), "the last training has all clips"


def test_the_same_seed_gives_the_same_changes(
    reader: LipReader, params: TrainParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptation, "STEPS", (0, 3))
    torch.manual_seed(1)
    first = adapt(reader, person(6, seed=5), params, GREEDY, 0, lambda *_: None, 1)
    torch.manual_seed(2)
    again = adapt(reader, person(6, seed=5), params, GREEDY, 0, lambda *_: None, 1)
    other = adapt(reader, person(6, seed=5), params, GREEDY, 1, lambda *_: None, 1)
    assert [length.loss for length in first.lengths] == [length.loss for length in again.lengths]
    assert [length.loss for length in first.lengths] != [length.loss for length in other.lengths]


def test_a_model_is_left_as_it_is_if_adapting_does_not_help(
    reader: LipReader, params: TrainParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptation, "STEPS", (2,))
    monkeypatch.setattr(adaptation, "NORM_RATE", 1e3)  # no network reads after such steps
    own = [PersonClip(clip_id, label, clip) for clip_id, _, clip, label in OWN[:5]]
    found = adapt(reader, own, params, GREEDY, 0, lambda *_: None, 1)
    assert found.changes is None and found.best is found.lengths[0]
    assert found.lengths[1].cer > found.lengths[0].cer


def test_statistics_without_labels_move_towards_the_person(reader: LipReader) -> None:
    clips = person(12, seed=5)
    changed = adapt_statistics(reader, clips)
    assert all(not tensor.any() for tensor in changed.learnt)
    ours, theirs = reader.network.state_dict(), adapted(reader, changed).network.state_dict()
    # the first layer's mean by hand: clip by clip, with the share of the prior
    name, inputs = next(iter(changed.statistics)), []
    hook = reader.network.frontend.blocks[0].convolution.register_forward_hook(
        lambda _module, _inputs, output: inputs.append(output.mean(dim=(0, 2, 3, 4)))
    )
    with torch.no_grad():
        for clip in clips:
            reader.encode(torch.from_numpy(clip.clip_THW)[None], torch.tensor([len(clip.clip_THW)]))
    hook.remove()
    seconds = sum(len(clip.clip_THW) for clip in clips) / 25
    share = seconds / (seconds + adaptation.PRIOR_S)
    expected = (1 - share) * ours[name] + share * torch.stack(inputs).mean(dim=0)
    torch.testing.assert_close(theirs[name], expected, rtol=1e-4, atol=1e-5)


def test_statistics_of_the_own_speaker_do_no_harm(reader: LipReader) -> None:
    own = [PersonClip(clip_id, label, clip) for clip_id, _, clip, label in OWN]
    changed = adapted(reader, adapt_statistics(reader, own[:5]))
    assert cer(changed, own[5:]) <= cer(reader, own[5:]) + 0.01
