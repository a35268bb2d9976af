"""The network as one graph from uint8 crops to log-probabilities, in operations that other runtimes know.

Shapes: B clips, T frames, S encoder steps, H×W px of the crop, Y×X px of the network's input, V characters,
W syllables, F features of a step, E encoder width, N = B S pictures, C channels, R places that one becomes.

What stands here in place of the network's own code gives the same numbers. Only those parts are written anew that
exporters freeze or refuse: packed sequences (the time axis of an LSTM), windows over a free axis, and pooling of areas
that do not divide. B and T stay free, H and W are those of the crops that the model was trained on.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from model.exports.names import LOG_PROBS, NUM_STEPS, SYLLABLE_LOG_PROBS
from model.networks.frontends import STEM_KERNEL, Cnn3dFrontend, ResNetFrontend, Stem
from model.networks.lstm import BilstmEncoder
from model.networks.network import LipNetwork
from model.networks.network_input import normalised, window_of
from model.settings import ModelParams
from shards.errors import ConfigError

WHITE = 255
LSTM_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class ExportedNetwork(nn.Module):
    """uint8 crops (B, T, H, W) and int64 numbers of frames (B,) to what a CTC decoder takes.

    A tuple: for each of `outputs` but the last log-probabilities (B, S, V or W), float32; then the numbers of steps
    (B,), int64. What stands behind a clip's end may be anything, and means nothing in the outputs. A copy of the
    network's weights, on the CPU. Raises ConfigError where the network has no CTC head.
    """

    def __init__(self, network: LipNetwork, params: ModelParams, crop_px: int) -> None:
        super().__init__()
        heads = {LOG_PROBS: network.ctc_head, SYLLABLE_LOG_PROBS: network.syllable_head}
        learnt = {name: head for name, head in heads.items() if head is not None}
        if not learnt:
            raise ConfigError(
                "this model has an attention decoder alone, which reads in a loop and is no graph; --format "
                "safetensors carries it, and one trained with train.ctc_weight above 0 can be exported"
            )
        self.params = params
        self.crop_px = crop_px
        self.outputs = (*learnt, NUM_STEPS)
        # resizing is linear, and by rows and columns apart: each is a matrix, read off from what becomes of one row
        rows_RHW = (torch.eye(crop_px, dtype=torch.uint8) * WHITE)[:, :, None].expand(-1, -1, crop_px)
        self.rows_YH = nn.Buffer(window_of(rows_RHW[None], params)[0, :, :, 0].T.contiguous())
        self.columns_WX = nn.Buffer(window_of(rows_RHW.transpose(1, 2)[None], params)[0, :, 0].contiguous())
        self.frontend = (
            _ResNet(network.frontend)
            if isinstance(network.frontend, ResNetFrontend)
            else _Cnn3d(network.frontend)
        )
        self.encoder = (
            _Bilstm(network.encoder)
            if isinstance(network.encoder, BilstmEncoder)
            else copy.deepcopy(network.encoder)
        )
        self.heads = nn.ModuleList(copy.deepcopy(head) for head in learnt.values())
        self.cpu().float().eval().requires_grad_(False)
        with torch.no_grad():
            self(*self.example())  # the matrices of pooling are made from the sizes of the first pictures

    def forward(self, video_BTHW: torch.Tensor, num_frames_B: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pixels_BTYX = self.rows_YH @ (video_BTHW.float() / WHITE) @ self.columns_WX
        inputs_B1TYX = normalised(pixels_BTYX, num_frames_B, self.params)[:, None]
        stride = self.params.temporal_stride
        num_steps_B = (num_frames_B + stride - 1) // stride
        encoded_BSE = self.encoder(self.frontend(inputs_B1TYX, num_frames_B), num_steps_B)
        return (*(functional.log_softmax(head(encoded_BSE), dim=2) for head in self.heads), num_steps_B)

    def example(
        self, num_frames: Sequence[int] = (23, 17), seed: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A padded batch of noise, the same for the same arguments."""
        generator = torch.Generator().manual_seed(seed)
        shape = (len(num_frames), max(num_frames), self.crop_px, self.crop_px)
        video_BTHW = torch.randint(0, WHITE + 1, shape, dtype=torch.uint8, generator=generator)
        return video_BTHW, torch.tensor(num_frames)


@contextmanager
def tracing() -> Iterator[None]:
    """Inside, a graph may be recorded; an error is raised where a size of the example would be frozen."""
    with warnings.catch_warnings(), torch.no_grad():
        # torch 2.13 calls torch.jit outdated; torch.export, which it names instead, freezes the time of an LSTM
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("error", category=torch.jit.TracerWarning)
        # nn.LSTM compares the width of what it is given: that one is frozen rightly
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=r"torch\.nn\.modules\.rnn")
        yield


class _Pool(nn.Module):
    """Adaptive average pooling of pictures (…, Y, X) to (…, cells of a grid), as a matrix over their pixels."""

    cells_PG: torch.Tensor | None

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("cells_PG", None)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        if self.cells_PG is None:
            Y, X = pictures.shape[-2:]
            self.cells_PG = functional.adaptive_avg_pool2d(
                torch.eye(Y * X).unflatten(1, (Y, X)), self.grid
            ).flatten(1)
        return pictures.flatten(-2) @ self.cells_PG


class _ResNet(nn.Module):
    """As ResNetFrontend, the windows of its stem cut out by slices."""

    def __init__(self, frontend: ResNetFrontend) -> None:
        super().__init__()
        self.stem = copy.deepcopy(frontend.stem)
        self.stages = copy.deepcopy(frontend.stages)
        self.num_features = frontend.num_features
        self.pool = _Pool(frontend.pool_grid)

    def forward(self, video_BCTYX: torch.Tensor, num_frames_B: torch.Tensor) -> torch.Tensor:
        # `normalised` has left zeros behind each clip's end, which is what the stem has to see there
        pictures_NCYX = self._stem(video_BCTYX[:, 0])
        for stage in self.stages:
            pictures_NCYX = stage(pictures_NCYX)
        return self.pool(pictures_NCYX).reshape(video_BCTYX.shape[0], -1, self.num_features)

    def _stem(self, video_BTYX: torch.Tensor) -> torch.Tensor:
        stem: Stem = self.stem
        frames, height, width = STEM_KERNEL
        padded_BTYX = functional.pad(video_BTYX, (0, 0, 0, 0, frames // 2, frames // 2))
        T = video_BTYX.shape[1]
        windows = [padded_BTYX[:, first : first + T : stem.temporal_stride] for first in range(frames)]
        features_NCYX = functional.conv2d(
            torch.stack(windows, dim=2).flatten(0, 1),
            stem.convolution.weight[:, 0],
            stride=2,
            padding=(height // 2, width // 2),
        )
        return functional.max_pool2d(functional.silu(stem.norm(features_NCYX)), 3, stride=2, padding=1)


class _Cnn3d(nn.Module):
    """As Cnn3dFrontend, pooled by a matrix."""

    def __init__(self, frontend: Cnn3dFrontend) -> None:
        super().__init__()
        self.blocks = copy.deepcopy(frontend.blocks)
        self.pool = _Pool(frontend.pool_grid)

    def forward(self, video_BCTYX: torch.Tensor, num_frames_B: torch.Tensor) -> torch.Tensor:
        features, num_steps_B = video_BCTYX, num_frames_B
        for block in self.blocks:
            features, num_steps_B = block(features, num_steps_B)
        return self.pool(features).permute(0, 2, 1, 3).flatten(2)


class _Bilstm(nn.Module):
    """As BilstmEncoder, each direction an LSTM of its own; the one that goes back is shown each clip turned round."""

    def __init__(self, encoder: BilstmEncoder) -> None:
        super().__init__()
        lstm = encoder.lstm
        layers = range(lstm.num_layers)
        self.ahead = nn.ModuleList(_one_way(lstm, f"_l{layer}") for layer in layers)
        self.back = nn.ModuleList(_one_way(lstm, f"_l{layer}_reverse") for layer in layers)

    def forward(self, features_BSF: torch.Tensor, num_steps_B: torch.Tensor) -> torch.Tensor:
        steps_S = torch.arange(features_BSF.shape[1], device=num_steps_B.device)
        # step s of a clip of n steps is step n - 1 - s of it turned round; what stands behind its end stays there
        turned_BS = num_steps_B[:, None] - 1 - steps_S
        turned_BS1 = torch.where(turned_BS >= 0, turned_BS, steps_S)[:, :, None]
        for ahead, back in zip(self.ahead, self.back, strict=True):
            ahead_BSE = ahead(features_BSF)[0]
            back_BSE = _at(back(_at(features_BSF, turned_BS1))[0], turned_BS1)
            features_BSF = torch.cat([ahead_BSE, back_BSE], dim=2)
        return features_BSF


def _at(inputs_BSF: torch.Tensor, steps_BS1: torch.Tensor) -> torch.Tensor:
    return inputs_BSF.gather(1, steps_BS1.expand(-1, -1, inputs_BSF.shape[2]))


def _one_way(lstm: nn.LSTM, ending: str) -> nn.LSTM:
    """One layer and direction of `lstm`, by the ending of its weights' names."""
    weights = {kind: getattr(lstm, kind + ending).detach() for kind in LSTM_WEIGHTS}
    single = nn.LSTM(weights["weight_ih"].shape[1], lstm.hidden_size, batch_first=True)
    single.load_state_dict({f"{kind}_l0": weight for kind, weight in weights.items()})
    return single
