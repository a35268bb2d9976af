"""What `pipeline inference` makes of a reading; its way from a video file is in test_cli.py."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoints import save_checkpoint
from model.settings import DecodeParams
from pipeline import inference
from pipeline.inference import read_videos
from pipeline.params import Params, load_params
from stages.cropping import Figures, MouthClip
from tests.packed import pack_clips, toy_clip, toy_clips
from tests.resuming import state_of
from tests.test_trainer import job_in


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A video is a mouth clip already."""
    nothing = np.zeros(0, np.int32)
    clip = MouthClip(toy_clip("一二", 12), None, nothing, nothing, Figures())
    monkeypatch.setattr(inference, "crop_video", lambda *_: clip)
    monkeypatch.setattr(inference, "sniff_media_kind", lambda _: "video")
    monkeypatch.setattr(inference, "native_stderr_to", lambda _: None)
    return load_params(Path(__file__).parents[1] / "params.yaml", flags={"machine.device": "cpu"})


@pytest.mark.parametrize(("truth", "cer"), [("一", 0.0), ("一。", 0.0), ("一一", 3 / 5)])
def test_a_reader_of_syllables_is_compared_with_the_truths_syllables(
    tmp_path: Path, params: Params, truth: str, cer: float
) -> None:
    """A network that says yi whatever it sees."""
    packed = pack_clips(tmp_path, toy_clips(8, 2))
    job = replace(job_in(tmp_path, packed, syllable_weight=1.0), decode=DecodeParams())
    state = state_of(job)
    assert state.network.syllable_head is not None and state.data.vocabulary.syllables is not None
    (yi,) = state.data.vocabulary.syllables.encode(["yi"])
    with torch.no_grad():
        state.network.syllable_head.bias[yi] = 100.0
    save_checkpoint(tmp_path / "yi.pt", state.as_checkpoint(None))
    (reading,) = read_videos([packed.samples], tmp_path / "yi.pt", params, ground_truth=truth)
    assert (reading.text, reading.cer) == ("yi", cer)
