"""CER of a video against its ground truth; long videos are in test_long_video.py."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoints import save_checkpoint
from model.settings import DecodeParams
from pipeline.inference.readers import open_reader
from pipeline.inference.text_of_video import read_video
from pipeline.params import load_params
from tests.support.packed import pack_clips, toy_clips
from tests.support.resuming import state_of
from tests.support.trainings import job_in
from tests.support.videos import write_mouth

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("truth", "cer"), [("一", 0.0), ("一。", 0.0), ("一一", 3 / 5)])
def test_a_reader_of_syllables_is_compared_with_the_syllables_of_the_reference(
    tmp_path: Path, truth: str, cer: float
) -> None:
    """With a network that always reads "yi"."""
    packed = pack_clips(tmp_path, toy_clips(8, 2))
    job = replace(job_in(tmp_path, packed, syllable_weight=1.0), decode=DecodeParams())
    state = state_of(job)
    assert state.network.syllable_head is not None and state.data.vocabulary.syllables is not None
    (yi,) = state.data.vocabulary.syllables.encode(["yi"])
    with torch.no_grad():
        state.network.syllable_head.bias[yi] = 100.0
    save_checkpoint(tmp_path / "yi.pt", state.as_checkpoint(None))
    mouth = write_mouth(tmp_path / "a.mp4", 12)
    params = load_params(ROOT / "params.yaml", flags={"machine.device": "cpu"})
    reading = read_video(mouth, open_reader([tmp_path / "yi.pt"], params), params, ground_truth=truth)
    assert (reading.text, reading.cer) == ("yi", cer)
