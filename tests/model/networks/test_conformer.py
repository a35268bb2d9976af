"""The conformer network: padding has no effect, attention and decoding follow their definitions."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from model.decoding.attention import read_greedily
from model.networks.conformer_encoder import ConformerEncoder, RelativeAttention, offset_sinusoids, sinusoids
from model.networks.frontends import ResNetFrontend, Stem
from model.networks.transformer_decoder import TransformerDecoder
from model.presets import ConformerSizes
from model.text import END_ID, START_ID, UNKNOWN_ID

NUM_TOKENS = 9
SMALL = ConformerSizes(
    channels=(4, 6, 8, 10),
    blocks_per_stage=1,
    pool_grid=2,
    hidden_dim=16,
    num_heads=4,
    feed_forward_dim=24,
    num_encoder_layers=2,
    conv_kernel=7,
    num_decoder_layers=2,
    num_reverse_layers=1,
)


def shaken(network: nn.Module) -> nn.Module:
    """Changes every parameter: the zeros and ones of a new network (biases, gains) would hide errors."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def small_network(temporal_stride: int = 1, dropout: float = 0.0) -> nn.ModuleDict:
    torch.manual_seed(0)
    frontend = ResNetFrontend(SMALL, temporal_stride)
    network = nn.ModuleDict(
        {
            "frontend": frontend,
            "encoder": ConformerEncoder(frontend.num_features, SMALL, dropout),
            "decoder": TransformerDecoder(16, SMALL, SMALL.num_decoder_layers, NUM_TOKENS, dropout),
        }
    )
    shaken(network).train()
    # running statistics that differ from (0, 1), so BatchNorm makes padding nonzero
    encode(network, torch.randn(3, 1, 9, 32, 32) + 1, torch.tensor([9, 9, 9]))
    return network.eval()


def encode(
    network: nn.ModuleDict, video_BCTYX: torch.Tensor, num_frames_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    features_BSF, num_steps_B = network["frontend"](video_BCTYX, num_frames_B)
    return network["encoder"](features_BSF, num_steps_B), num_steps_B


@pytest.mark.parametrize("temporal_stride", [1, 2])
@pytest.mark.parametrize("behind_the_end", [7.0, math.inf, math.nan])
@torch.no_grad()
def test_a_clip_reads_the_same_in_a_padded_batch_and_alone(
    temporal_stride: int, behind_the_end: float
) -> None:
    network = small_network(temporal_stride)
    video, num_frames = torch.randn(2, 1, 23, 32, 32), torch.tensor([23, 14])
    video[1, :, 14:] = behind_the_end
    both, steps = encode(network, video, num_frames)
    alone, steps_alone = encode(network, video[1:, :, :14], num_frames[1:])
    assert steps.tolist() == [-(-23 // temporal_stride), -(-14 // temporal_stride)]
    assert both.shape == (2, int(steps[0]), 16)
    assert steps[1] == steps_alone[0] == alone.shape[1]
    torch.testing.assert_close(both[1, : steps[1]], alone[0], rtol=1e-5, atol=1e-5)
    assert bool(torch.isfinite(both).all())

    padding = torch.arange(int(steps[0])) >= steps[:, None]
    targets = torch.tensor([[4, 5, 6, 7], [8, 4, END_ID, END_ID]])
    logits = network["decoder"].teacher_forced(both, padding, targets, 1.0)
    assert logits.shape == (2, 5, NUM_TOKENS)
    by_itself = network["decoder"].teacher_forced(alone, padding[1:, : steps[1]], targets[1:, :2], 1.0)
    torch.testing.assert_close(logits[1, :3], by_itself[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temporal_stride", [1, 2])
def test_the_stem_is_a_3d_convolution(temporal_stride: int) -> None:
    stem, video = Stem(6, temporal_stride).eval(), torch.randn(2, 11, 32, 24)
    convolved = functional.conv3d(
        video[:, None], stem.convolution.weight, stride=(temporal_stride, 2, 2), padding=(2, 3, 3)
    )
    normed = functional.silu(convolved / math.sqrt(1 + stem.norm.eps))
    pooled = functional.max_pool3d(normed, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    torch.testing.assert_close(stem(video), pooled.transpose(1, 2).flatten(0, 1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_relative_attention_by_its_formula() -> None:
    torch.manual_seed(1)
    width, num_heads, steps, num_steps = 12, 3, 7, 5
    attention = shaken(RelativeAttention(width, num_heads, dropout=0.0)).eval()
    inputs = torch.randn(1, steps, width)
    padding = torch.arange(steps)[None] >= num_steps
    offsets = offset_sinusoids(steps, width, torch.device("cpu"))
    D = width // num_heads

    def position_of(offset: int) -> torch.Tensor:
        angles = [offset / 10_000 ** (2 * i / width) for i in range(width // 2)]
        values = [value for angle in angles for value in (math.sin(angle), math.cos(angle))]
        return attention.position.weight @ torch.tensor(values)

    query, key, value = (layer(inputs[0]) for layer in (attention.query, attention.key, attention.value))
    attended = torch.zeros(steps, width)
    for head in range(num_heads):
        part = slice(head * D, (head + 1) * D)
        u, v = attention.content_bias[head], attention.position_bias[head]
        for i in range(steps):
            scores = torch.empty(num_steps)
            for j in range(num_steps):
                q, p = query[i, part], position_of(i - j)[part]
                # Dai et al. 2019, section 3.3, terms (a) to (d)
                scores[j] = q @ key[j, part] + q @ p + u @ key[j, part] + v @ p
            weights = (scores / math.sqrt(D)).softmax(0)
            attended[i, part] = weights @ value[:num_steps, part]
    expected = attention.output(attended)
    torch.testing.assert_close(attention(inputs, offsets, padding)[0], expected, rtol=1e-4, atol=1e-5)


def test_sinusoids_of_an_odd_width() -> None:
    positions = torch.tensor([-3, 0, 5])
    torch.testing.assert_close(sinusoids(positions, 1)[:, 0], positions.float().sin())
    assert sinusoids(positions, 7).shape == (3, 7)


def ending_decoder(decoder: TransformerDecoder) -> TransformerDecoder:
    """Changes the decoder so that some texts end before the character limit."""
    with torch.no_grad():
        decoder.output.bias[END_ID] += 0.5
        decoder.embedding.weight.mul_(3)
    return decoder


@torch.no_grad()
def test_greedy_decoding_agrees_with_full_recomputation() -> None:
    decoder = ending_decoder(small_network()["decoder"])
    clips, steps = 12, 10
    encoded = 3 * torch.randn(clips, steps, 16)
    num_steps = torch.randint(3, steps + 1, (clips,))
    padding = torch.arange(steps) >= num_steps[:, None]
    max_chars = torch.randint(1, 9, (clips,))
    ids, scores = read_greedily(decoder.stepping(encoded, padding), max_chars)
    for clip in range(clips):
        read: list[int] = []
        score, ended = 0.0, False
        while not ended:
            logits = decoder.teacher_forced(
                encoded[clip : clip + 1, : num_steps[clip]],
                padding[clip : clip + 1, : num_steps[clip]],
                torch.tensor([read], dtype=torch.long),
                1.0,
            )
            log_probs = logits[0, -1].log_softmax(0)
            log_probs[: START_ID + 1] = log_probs[UNKNOWN_ID] = -math.inf
            best, token = log_probs.max(0) if len(read) < max_chars[clip] else (log_probs[END_ID], END_ID)
            score, ended = score + float(best), int(token) == END_ID
            read += [] if ended else [int(token)]
        assert ids[clip] == read
        assert scores[clip] == pytest.approx(score, abs=1e-4)
    lengths = torch.tensor([len(read) for read in ids])
    assert bool((lengths == max_chars).any() & (lengths < max_chars).any()), "both reasons to stop must occur"
    assert len({tuple(read) for read in ids}) > 3


@torch.no_grad()
def test_greedy_decoding_of_a_silent_clip() -> None:
    decoder = small_network()["decoder"]
    decoder.output.bias[END_ID] += 1_000
    ids, scores = read_greedily(
        decoder.stepping(torch.randn(2, 4, 16), torch.zeros(2, 4, dtype=torch.bool)), torch.ones(2)
    )
    assert ids == [[], []]
    assert scores == pytest.approx([0.0, 0.0], abs=1e-6)


@torch.no_grad()
def test_a_later_token_changes_no_earlier_logit() -> None:
    decoder = small_network()["decoder"]
    encoded, padding = torch.randn(1, 6, 16), torch.zeros(1, 6, dtype=torch.bool)
    fed = torch.tensor([[START_ID, 4, 5, 6, 7, 8]])
    logits = decoder.logits(encoded, padding, fed)
    for position in range(1, fed.shape[1]):
        other = fed.clone()
        other[0, position] = 3
        changed = (decoder.logits(encoded, padding, other) - logits).abs().amax(2)[0]
        assert not changed[:position].any()
        assert bool((changed[position:] > 1e-5).all())


def test_the_transformer_is_fed_the_true_characters_with_any_teacher_forcing() -> None:
    decoder = small_network()["decoder"]
    encoded, padding = torch.randn(2, 6, 16), torch.zeros(2, 6, dtype=torch.bool)
    targets = torch.tensor([[4, 5, 6], [7, 8, 4]])
    fed = torch.tensor([[START_ID, 4, 5, 6], [START_ID, 7, 8, 4]])
    for share in (1.0, 0.0):
        logits = decoder.teacher_forced(encoded, padding, targets, share)
        torch.testing.assert_close(logits, decoder.logits(encoded, padding, fed))


@pytest.mark.parametrize("temporal_stride", [1, 2])
def test_gradient_flows_to_every_parameter(temporal_stride: int) -> None:
    network = small_network(temporal_stride)
    encoded, steps = encode(network, torch.randn(2, 1, 9, 32, 32), torch.tensor([9, 6]))
    padding = torch.arange(encoded.shape[1]) >= steps[:, None]
    logits = network["decoder"].teacher_forced(encoded, padding, torch.tensor([[4, 5], [6, 7]]), 1.0)
    (logits.square().mean() + encoded[0].pow(3).mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        # a key's bias adds the same to all scores of a query, which does not change the softmax
        assert name.endswith("key.bias") or float(parameter.grad.abs().max()) > 1e-6, name


def test_dropout_acts_on_encoder_and_decoder_only_in_training() -> None:
    network = small_network(dropout=0.5)
    features, steps = torch.randn(1, 5, SMALL.channels[3] * 4), torch.tensor([5])
    padding, targets = torch.zeros(1, 5, dtype=torch.bool), torch.tensor([[4, 5]])
    encoded = torch.randn(1, 5, 16)
    for run in (
        lambda: network["encoder"](features, steps),
        lambda: network["decoder"].teacher_forced(encoded, padding, targets, 1.0),
    ):
        torch.testing.assert_close(run(), run(), rtol=0, atol=0)
        network.train()
        assert not torch.equal(run(), run())
        network.eval()


@torch.no_grad()
def test_bfloat16_gives_nearly_the_same_output() -> None:
    network = small_network()
    video, num_frames = torch.randn(2, 1, 9, 32, 32), torch.tensor([9, 6])
    targets = torch.tensor([[4, 5], [6, 7]])
    read = []
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            encoded, steps = encode(network, video, num_frames)
            padding = torch.arange(9) >= steps[:, None]
            logits = network["decoder"].teacher_forced(encoded, padding, targets, 1.0)
            read_greedily(network["decoder"].stepping(encoded, padding), torch.tensor([3, 3]))
        read.append((encoded.float(), logits.float()))
    torch.testing.assert_close(read[0], read[1], rtol=0.1, atol=0.1)


class Encoding(nn.Module):
    def __init__(self, network: nn.ModuleDict) -> None:
        super().__init__()
        self.network = network

    def forward(self, video_BCTYX: torch.Tensor, num_frames_B: torch.Tensor) -> torch.Tensor:
        return encode(self.network, video_BCTYX, num_frames_B)[0]


@torch.no_grad()
def test_one_graph_serves_every_length() -> None:
    network = small_network()
    shapes = ({2: torch.export.Dim("num_frames", min=6, max=1_000)}, None)
    traced = torch.export.export(
        Encoding(network), (torch.randn(2, 1, 20, 32, 32), torch.tensor([20, 16])), dynamic_shapes=shapes
    )
    video, num_frames = torch.randn(2, 1, 33, 32, 32), torch.tensor([33, 11])
    torch.testing.assert_close(traced.module()(video, num_frames), encode(network, video, num_frames)[0])
