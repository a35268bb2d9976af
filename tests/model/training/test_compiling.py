"""train.compile: few graphs for many lengths, and the same results as without it."""

import copy
import functools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from model.losses import LossParams, joint_loss_B
from model.networks.network import LipNetwork, Outputs
from model.networks.network_input import targets_of
from model.settings import ModelParams
from model.training import compiling
from model.training.compiling import bucket_length, compile_parts, to_bucket
from model.vocabulary import Vocabulary
from shards.errors import ConfigError

# warnings of the compiler's imports, and of its access to tensors between two graphs
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning", "ignore:The .grad attribute of a Tensor:UserWarning"
)

CPU = torch.device("cpu")
CHARACTERS = "一二三四五六七八九十"
VOCABULARY = Vocabulary.of_labels([CHARACTERS], False)
LOSS = LossParams(0.3, 0.1)
SMALL = {
    "cnn3d_bilstm_attention": {"channels": (4, 4, 4, 8), "hidden_dim": 8, "num_heads": 2},
    "conformer_tiny": {
        "channels": (4, 4, 4, 8),
        "pool_grid": 1,
        "hidden_dim": 16,
        "num_heads": 2,
        "feed_forward_dim": 16,
        "num_encoder_layers": 2,
        "conv_kernel": 5,
        "num_decoder_layers": 2,
    },
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Removes the graphs of other tests, and those of this test afterwards."""
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = limit


@pytest.fixture
def only_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces and counts graphs, but runs them without a C++ compiler."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def network_of(preset: str, temporal_stride: int = 1) -> LipNetwork:
    torch.manual_seed(0)
    params = ModelParams.model_validate(
        {
            "preset": preset,
            "sizes": SMALL[preset],
            "window_px": 32,
            "frame_height": 32,
            "frame_width": 32,
            "temporal_stride": temporal_stride,
            "dropout": 0.0,
        }
    )
    return LipNetwork(params, VOCABULARY, ("ctc", "decoder"))


def outputs_of(network: LipNetwork, video_BCTYX: torch.Tensor, num_frames: list[int]) -> Outputs:
    """Runs the network with labels of two and three characters in turn."""
    labels = [CHARACTERS[: 2 + clip % 2] for clip in range(len(num_frames))]
    outputs: Outputs = network(video_BCTYX, torch.tensor(num_frames), targets_of(labels, VOCABULARY, CPU))
    return outputs


def test_buckets_are_few_and_add_little_padding() -> None:
    lengths = range(1, 2_001)
    buckets = [bucket_length(length) for length in lengths]
    assert buckets == sorted(buckets)
    assert all(bucket >= length for bucket, length in zip(buckets, lengths, strict=True))
    assert all(bucket_length(bucket) == bucket for bucket in buckets)
    assert max(bucket / length for bucket, length in zip(buckets, lengths, strict=True) if length > 16) < 1.25
    assert len(set(buckets)) == 29
    assert sorted(set(buckets))[:8] == [16, 20, 24, 28, 32, 40, 48, 56]


@pytest.mark.parametrize("temporal_stride", [1, 2])
@pytest.mark.parametrize("preset", SMALL)
def test_padding_to_a_bucket_does_not_change_the_outputs(preset: str, temporal_stride: int) -> None:
    network = network_of(preset, temporal_stride).eval()
    num_frames = [17, 33, 29]
    video_BCTYX = torch.randn(3, 1, 33, 32, 32)
    padded_BCTYX = to_bucket(video_BCTYX)
    assert padded_BCTYX.shape[2] == 40
    with torch.no_grad():
        plain, padded = (outputs_of(network, video, num_frames) for video in (video_BCTYX, padded_BCTYX))
    assert plain.ctc_logits_BSV is not None and padded.ctc_logits_BSV is not None
    assert torch.equal(plain.num_steps_B, padded.num_steps_B)
    for clip, steps in enumerate(plain.num_steps_B.tolist()):
        difference = plain.ctc_logits_BSV[clip, :steps] - padded.ctc_logits_BSV[clip, :steps]
        assert difference.abs().max() < 1e-5
    assert plain.decoder_logits_BLV is not None and padded.decoder_logits_BLV is not None
    assert (plain.decoder_logits_BLV - padded.decoder_logits_BLV).abs().max() < 1e-5


@pytest.mark.usefixtures("only_traced")
@pytest.mark.parametrize(("preset", "graphs_a_bucket", "others"), [
    ("cnn3d_bilstm_attention", 1, 0),
    # frontend and Conformer block; one graph of the decoder block serves all lengths
    ("conformer_tiny", 2, 1),
])  # fmt: skip
def test_an_epoch_of_many_lengths_compiles_once_per_bucket(
    preset: str, graphs_a_bucket: int, others: int
) -> None:
    network = network_of(preset)
    compile_parts(network, CPU)
    counters.clear()
    random_state, buckets = random.Random(0), set()
    for _ in range(10):
        length, clips = random_state.randint(9, 24), random_state.randint(2, 5)
        video_BCTYX = to_bucket(torch.randn(clips, 1, length, 32, 32))
        buckets.add(video_BCTYX.shape[2])
        targets = targets_of(
            [CHARACTERS[: random_state.randint(1, 9)] for _ in range(clips)], VOCABULARY, CPU
        )
        outputs = network(video_BCTYX, torch.full((clips,), length), targets)
        joint_loss_B(outputs, targets, LOSS).sum().backward()
        with torch.no_grad():  # a validation in between, of any length
            network.encode(torch.randn(1, 1, length, 32, 32), torch.tensor([length]))
    assert len(buckets) == 3
    assert counters["stats"]["unique_graphs"] == graphs_a_bucket * len(buckets) + others
    assert not counters["graph_break"]


@pytest.mark.usefixtures("only_traced")
def test_names_stay_and_a_copy_is_independent() -> None:
    network = network_of("conformer_tiny")
    names = list(network.state_dict())
    compile_parts(network, CPU)
    assert list(network.state_dict()) == names
    trial = copy.deepcopy(network)
    outputs_of(trial, torch.randn(2, 1, 16, 32, 32), [16, 12])[1].sum().backward()  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert any(parameter.grad is not None for parameter in trial.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("preset", SMALL)
def test_compiled_parts_give_the_results_of_the_plain_network(preset: str) -> None:
    """Compares outputs and gradients, with BatchNorm in eval mode, where padding does not affect statistics."""
    plain = network_of(preset).eval()
    compiled = copy.deepcopy(plain)
    compile_parts(compiled, CPU)
    num_frames = [17, 33, 29]
    video_BCTYX = torch.randn(3, 1, 33, 32, 32)
    labels = [CHARACTERS[:3], CHARACTERS[2:7], CHARACTERS[5:]]
    targets, losses = targets_of(labels, VOCABULARY, CPU), []
    for network, video in ((plain, video_BCTYX), (compiled, to_bucket(video_BCTYX))):
        losses.append(joint_loss_B(network(video, torch.tensor(num_frames), targets), targets, LOSS))
        losses[-1].sum().backward()
    assert counters["stats"]["unique_graphs"] > 1
    assert (losses[0] - losses[1]).abs().max() < 1e-5 * losses[0].abs().max()
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert (one.grad - other.grad).abs().max() < 1e-5 * max(1.0, float(one.grad.abs().max())), name


def test_a_missing_compiler_is_reported_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(config.cpp, "cxx", (str(tmp_path / "missing-c++"),))
    with pytest.raises(ConfigError, match=r"train\.compile.*C\+\+ compiler.*set train\.compile to false"):
        compiling.refuse_without_compiler(CPU)
