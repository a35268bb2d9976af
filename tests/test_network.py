"""The seed model: padding leaks nowhere, decoders agree with their definitions."""

import numpy as np
import pytest
import torch

from model.augment import ClipChange, augmented_input, draw_change, network_input
from model.decoding import greedy_ctc
from model.device import Precision
from model.losses import LossParams, ctc_steps_needed, joint_loss_B
from model.network import LipNetwork
from model.reader import LipReader
from model.settings import AugmentParams, DecodeParams, ModelParams, TextParams
from model.targets import targets_of
from model.text import END_ID, Tokenizer
from model.vocabulary import Vocabulary

SMALL = ModelParams(
    frame_height=32,
    frame_width=32,
    sizes={"channels": (4, 6, 8, 10), "hidden_dim": 16, "pool_grid": 2, "num_lstm_layers": 2},
)
TOKENIZER = Tokenizer(tuple("一二三四五"))
VOCABULARY = Vocabulary(TOKENIZER)


def small_network(temporal_stride: int = 1) -> LipNetwork:
    torch.manual_seed(0)
    params = SMALL.model_copy(update={"temporal_stride": temporal_stride})
    network = LipNetwork(params, VOCABULARY, ("ctc", "decoder"))
    # running statistics that differ from (0, 1), so that BatchNorm shifts the padding off zero
    network.train()
    network.encode(torch.randn(3, 1, 9, 32, 32) + 1, torch.tensor([9, 9, 9]))
    return network.eval()


def reader(network: LipNetwork) -> LipReader:
    return LipReader(network, VOCABULARY, SMALL, TextParams(), 25.0, torch.device("cpu"), Precision(None), 96)


@pytest.mark.parametrize("temporal_stride", [1, 2])
@pytest.mark.parametrize("decoder", ["ctc", "attention"])
def test_a_clip_in_a_padded_batch_is_read_as_alone(temporal_stride: int, decoder: str) -> None:
    network = small_network(temporal_stride)
    video_BTHW = torch.randint(0, 256, (2, 23, 96, 96), dtype=torch.uint8)
    num_frames_B = torch.tensor([23, 14])
    video_BTHW[1, 14:] = 99  # what lies behind the end must not matter
    reading = reader(network)
    with torch.no_grad():
        both, steps = reading.encode(video_BTHW, num_frames_B)
        alone, steps_alone = reading.encode(video_BTHW[1:, :14], num_frames_B[1:])
    assert steps[1] == steps_alone[0] == -(-14 // temporal_stride)
    torch.testing.assert_close(both[1, : steps[1]], alone[0], rtol=1e-5, atol=1e-5)
    params = DecodeParams(decoder=decoder)
    in_batch = reading.read(video_BTHW, num_frames_B, params)[1]
    by_itself = reading.read(video_BTHW[1:, :14], num_frames_B[1:], params)[0]
    assert in_batch.text == by_itself.text
    assert in_batch.score == pytest.approx(by_itself.score, abs=1e-4)


def loss_of(
    network: LipNetwork,
    encoded: torch.Tensor,
    steps: torch.Tensor,
    labels: list[str],
    params: LossParams,
) -> torch.Tensor:
    targets = targets_of(labels, VOCABULARY, torch.device("cpu"))
    return joint_loss_B(network.outputs(encoded, steps, targets), targets, params)


def test_the_loss_of_a_clip_does_not_depend_on_its_batch() -> None:
    network = small_network()
    encoded, steps, labels = torch.randn(2, 20, 32), torch.tensor([20, 12]), ["一二三四", "二二"]
    params = LossParams(ctc_weight=0.4, label_smoothing=0.1)
    both = loss_of(network, encoded, steps, labels, params)
    alone = loss_of(network, encoded[1:, :12], steps[1:], labels[1:], params)
    torch.testing.assert_close(both[1:], alone, rtol=1e-5, atol=1e-5)


def test_attention_loss_against_plain_log_softmax() -> None:
    network = small_network()
    encoded, steps, target = torch.randn(1, 9, 32), torch.tensor([9]), [4, 6, 8]
    loss = loss_of(network, encoded, steps, ["一三五"], LossParams(0.0, 0.0))
    tokens, state, context = network.decoder.start(encoded)
    expected = 0.0
    for wanted in [*target, END_ID]:
        logits, state, context = network.decoder.step(
            tokens, state, context, encoded, torch.zeros(1, 9, dtype=torch.bool)
        )
        expected -= float(torch.log_softmax(logits[0].detach(), 0)[wanted])
        tokens = torch.tensor([wanted])
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_without_teacher_forcing_the_decoder_is_fed_what_it_read() -> None:
    network = small_network()
    encoded, padding = torch.randn(2, 9, 32), torch.zeros(2, 9, dtype=torch.bool)
    targets = torch.tensor([[4, 5, 6], [7, 8, 4]])
    logits = network.decoder.teacher_forced(encoded, padding, targets, teacher_forcing=0.0)
    tokens, state, context = network.decoder.start(encoded)
    for position in range(4):
        step, state, context = network.decoder.step(tokens, state, context, encoded, padding)
        torch.testing.assert_close(step, logits[:, position])
        tokens = step.argmax(1)


def test_greedy_ctc_by_its_definition() -> None:
    path = [0, 4, 4, 0, 4, 5, 5, 0, 0, 6]
    log_probs = np.log(np.full((len(path), 8), 0.02))
    log_probs[np.arange(len(path)), path] = np.log(0.86)
    ids, score = greedy_ctc(log_probs)
    assert ids == [4, 4, 5, 6]
    assert score == pytest.approx(len(path) * np.log(0.86))
    assert greedy_ctc(np.zeros((0, 8))) == ([], 0.0)


def test_steps_that_ctc_needs_are_where_its_loss_becomes_finite() -> None:
    for target in ([4], [4, 4], [4, 5, 4], [4, 4, 4, 5]):
        needed = ctc_steps_needed(target)
        for steps, finite in ((needed, True), (needed - 1, False)):
            if steps == 0:
                continue
            loss = torch.nn.functional.ctc_loss(
                torch.zeros(steps, 1, 8).log_softmax(2),
                torch.tensor([target]),
                torch.tensor([steps]),
                torch.tensor([len(target)]),
            )
            assert bool(torch.isfinite(loss)) is finite


def test_blind_input_is_the_mean_frame_of_the_clip_alone() -> None:
    video = torch.randint(0, 256, (1, 6, 96, 96), dtype=torch.uint8)
    longer = torch.cat([video, torch.full((1, 4, 96, 96), 200, dtype=torch.uint8)], dim=1)
    blind = network_input(longer, torch.tensor([6]), SMALL, blind=True)
    sighted = network_input(video, torch.tensor([6]), SMALL)
    torch.testing.assert_close(blind[:, :, :6], sighted.mean(2, keepdim=True).expand(1, 1, 6, 32, 32))
    assert bool((blind[:, :, 6:] == 0).all())


NOTHING = ClipChange(False, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, ())


@pytest.mark.parametrize("standardise", ["given", "clip"])
@pytest.mark.parametrize(
    ("window_px", "frame_px"), [(96, 32), (64, 32), (96, 96), (88, 88), (72, 30), (96, 128)]
)
def test_an_augmentation_of_nothing_is_the_plain_input(
    window_px: int, frame_px: int, standardise: str
) -> None:
    sizes = {"window_px": window_px, "frame_height": frame_px, "frame_width": frame_px}
    params = SMALL.model_copy(update={**sizes, "standardise": standardise, "subtract_mean": 0.5})
    video, lengths = torch.randint(0, 256, (2, 7, 96, 96), dtype=torch.uint8), torch.tensor([7, 5])
    augmented, new_lengths = augmented_input(video, lengths, [NOTHING, NOTHING], params)
    assert augmented.shape == (2, 1, 7, frame_px, frame_px)
    torch.testing.assert_close(augmented, network_input(video, lengths, params), rtol=1e-5, atol=1e-3)
    assert new_lengths.tolist() == [7, 5]


def test_the_window_is_the_middle_of_the_crop() -> None:
    video = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    params = SMALL.model_copy(update={"window_px": 88, "frame_height": 88, "frame_width": 88})
    expected = (video[:, :, 4:92, 4:92].float() / 255 - 0.421) / 0.165  # as public lip readers see it
    torch.testing.assert_close(network_input(video, torch.tensor([3]), params)[:, 0], expected)
    with pytest.raises(ValueError, match="window_px"):
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


def test_mirror_speed_and_masks_do_what_they_say() -> None:
    video, lengths = torch.randint(0, 256, (1, 8, 96, 96), dtype=torch.uint8), torch.tensor([8])
    plain = network_input(video, lengths, SMALL)

    def changed(**change: object) -> tuple[torch.Tensor, torch.Tensor]:
        values = {name: getattr(NOTHING, name) for name in NOTHING.__slots__} | change
        return augmented_input(video, lengths, [ClipChange(**values)], SMALL)

    torch.testing.assert_close(changed(mirror=True)[0], plain.flip(4), rtol=1e-5, atol=1e-4)
    faster, new_lengths = changed(speed=2.0)
    assert new_lengths.tolist() == [4]
    torch.testing.assert_close(faster, plain[:, :, ::2], rtol=1e-5, atol=1e-4)
    slower, new_lengths = changed(speed=0.5)
    assert new_lengths.tolist() == [16]
    torch.testing.assert_close(slower[:, :, 1], (plain[:, :, 0] + plain[:, :, 1]) / 2, rtol=1e-5, atol=1e-4)
    masked, _ = changed(masks=((0.25, 0.25),))
    torch.testing.assert_close(masked[:, :, 2], plain.mean(2), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(masked[:, :, 4:], plain[:, :, 4:], rtol=1e-5, atol=1e-4)


def test_augmentation_is_a_function_of_seed_epoch_and_clip() -> None:
    params = AugmentParams(zoom_sigma=0.1, shift_px=3, speed_change=0.1, gain_sigma=0.1, time_masks_per_s=1)
    first = draw_change(params, 0, 1, "a", 3.0)
    assert first == draw_change(params, 0, 1, "a", 3.0)
    others = [draw_change(params, *key, 3.0) for key in ((1, 1, "a"), (0, 2, "a"), (0, 1, "b"))]
    assert all(other != first for other in others)
    off = draw_change(AugmentParams(flip=False), 0, 1, "a", 3.0)
    assert off == NOTHING
