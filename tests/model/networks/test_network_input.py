"""The network's input for a clip in scoring."""

import pytest
import torch

from model.networks.network_input import network_input
from model.settings import ModelParams

SMALL = ModelParams(frame_height=32, frame_width=32)


def test_blind_input_is_the_mean_frame_without_padding() -> None:
    video = torch.randint(0, 256, (1, 6, 96, 96), dtype=torch.uint8)
    longer = torch.cat([video, torch.full((1, 4, 96, 96), 200, dtype=torch.uint8)], dim=1)
    blind = network_input(longer, torch.tensor([6]), SMALL, blind=True)
    normal = network_input(video, torch.tensor([6]), SMALL)
    torch.testing.assert_close(blind[:, :, :6], normal.mean(2, keepdim=True).expand(1, 1, 6, 32, 32))
    assert bool((blind[:, :, 6:] == 0).all())


def test_the_window_is_the_middle_of_the_crop() -> None:
    video = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    params = SMALL.model_copy(update={"window_px": 88, "frame_height": 88, "frame_width": 88})
    expected = (video[:, :, 4:92, 4:92].float() / 255 - 0.421) / 0.165  # as in public lip readers
    torch.testing.assert_close(network_input(video, torch.tensor([3]), params)[:, 0], expected)
    with pytest.raises(ValueError, match=r"window_px must be at most the crop size, 96 .*got 100"):
        network_input(video, torch.tensor([3]), SMALL.model_copy(update={"window_px": 100}))


@pytest.mark.parametrize("subtract_mean", [0.0, 0.8])
def test_clips_are_standardised_over_their_own_frames(subtract_mean: float) -> None:
    params = SMALL.model_copy(update={"standardise": "clip", "subtract_mean": subtract_mean})
    video, lengths = torch.randint(0, 256, (2, 9, 96, 96), dtype=torch.uint8), torch.tensor([9, 5])
    inputs = network_input(video, lengths, params)
    for clip, num_frames in enumerate(lengths.tolist()):
        inside = inputs[clip, 0, :num_frames]
        assert float(inside.mean()) == pytest.approx(0, abs=1e-4)
        assert float(inside.std(unbiased=False)) == pytest.approx(1, abs=1e-2)
        assert not inputs[clip, 0, num_frames:].any()
