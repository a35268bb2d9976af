"""The whole network as a reader uses it: padding has no effect, decoding follows its definition."""

import numpy as np
import pytest
import torch

from model.decoding.ctc import greedy_ctc
from model.networks.network import LipNetwork
from model.settings import DecodeParams, ModelParams
from tests.support.exported import reader_of
from tests.support.networks import SMALL, SMALL_CONFORMER, VOCABULARY, small_network


@pytest.mark.parametrize("model", [SMALL, SMALL_CONFORMER], ids=["cnn3d", "conformer"])
@pytest.mark.parametrize("temporal_stride", [1, 2])
def test_a_clip_reads_the_same_in_a_padded_batch_and_alone(model: ModelParams, temporal_stride: int) -> None:
    model = model.model_copy(update={"temporal_stride": temporal_stride})
    video_BTHW = torch.randint(0, 256, (2, 23, 96, 96), dtype=torch.uint8)
    num_frames_B = torch.tensor([23, 14])
    video_BTHW[1, 14:] = 99  # frames after the end must not matter
    reader = reader_of(small_network(model), VOCABULARY, model)
    with torch.no_grad():
        both, steps = reader.encode(video_BTHW, num_frames_B)
        alone, steps_alone = reader.encode(video_BTHW[1:, :14], num_frames_B[1:])
    assert steps[1] == steps_alone[0] == -(-14 // temporal_stride)
    torch.testing.assert_close(both[1, : steps[1]], alone[0], rtol=1e-4, atol=1e-5)
    for decoder in ("ctc", "attention", "syllables"):
        params = DecodeParams(decoder=decoder)
        in_batch = reader.read(video_BTHW, num_frames_B, params)[1]
        by_itself = reader.read(video_BTHW[1:, :14], num_frames_B[1:], params)[0]
        assert in_batch.text == by_itself.text
        assert in_batch.score == pytest.approx(by_itself.score, abs=1e-4)


def test_without_teacher_forcing_the_decoder_is_fed_its_own_characters() -> None:
    network = small_network()
    encoded, padding = torch.randn(2, 9, 32), torch.zeros(2, 9, dtype=torch.bool)
    targets = torch.tensor([[4, 5, 6], [7, 8, 4]])
    logits = network.decoder.teacher_forced(encoded, padding, targets, teacher_forcing=0.0)
    tokens, state, context = network.decoder.start(encoded)
    for position in range(4):
        step, state, context = network.decoder.step(tokens, state, context, encoded, padding)
        torch.testing.assert_close(step, logits[:, position])
        tokens = step.argmax(1)


def spells(log_probs_SV: np.ndarray, ids: list[int]) -> float:
    """Returns the log-probability of all paths together, from PyTorch's CTC loss."""
    lengths = torch.tensor([len(log_probs_SV)]), torch.tensor([len(ids)])
    log_probs_S1V = torch.from_numpy(log_probs_SV)[:, None]
    return -float(torch.nn.functional.ctc_loss(log_probs_S1V, torch.tensor([ids]), *lengths, reduction="sum"))


def test_greedy_ctc_by_its_definition() -> None:
    path = [0, 4, 4, 0, 4, 5, 5, 0, 0, 6]
    log_probs = np.log(np.full((len(path), 8), 0.02))
    log_probs[np.arange(len(path)), path] = np.log(0.86)
    for array in (log_probs, torch.from_numpy(log_probs)):
        ((ids, score),) = greedy_ctc(array[None])
        assert ids == [4, 4, 5, 6]
        assert score == pytest.approx(spells(log_probs, ids))
        assert score > len(path) * np.log(0.86)  # the log-probability of the best path alone
        assert greedy_ctc(array[None, :0]) == [([], 0.0)]


def test_the_encoders_forget_gates_are_open_at_the_start() -> None:
    """This holds in each layer and direction, for no other gate. Torch's order: input, forget, cell, output."""
    encoder = LipNetwork(SMALL, VOCABULARY, ("ctc",)).encoder
    biases = [bias for name, bias in encoder.lstm.named_parameters() if name.startswith("bias_ih")]
    assert len(biases) == 2 * 2
    for bias in biases:
        gates = bias.detach().view(4, 16)
        assert gates[1].eq(1).all() and gates[[0, 2, 3]].abs().max() <= 16**-0.5
