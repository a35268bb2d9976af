"""The network as one graph from uint8 crops to log-probabilities, in operations that other runtimes support.

Shapes: B clips, T frames, S encoder steps, H×W px of the crop, Y×X px of the network's input, V characters,
W syllables, F features of a step, E encoder width, N = B S pictures, C channels, R output positions.

The code here computes the same numbers as the network's own code. It replaces only what exporters freeze or reject:
packed sequences (the time axis of an LSTM), windows over a dynamic axis, and pooling of areas of unequal size. B and T
are dynamic. H and W are the sizes of the crops that the model was trained on.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from model.exports.onnx_reader import LOG_PROBS, NUM_STEPS, SYLLABLE_LOG_PROBS
from model.networks.frontends import STEM_KERNEL, Cnn3dFrontend, ResNetFrontend, Stem
from model.networks.lstm import BilstmEncoder
from model.networks.network import LipNetwork
from model.networks.network_input import normalised, window_of
from model.settings import ModelParams
from shards.errors import ConfigError

WHITE = 255
LSTM_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class ExportedNetwork(nn.Module):
    """Maps uint8 crops (B, T, H, W) and int64 frame counts (B,) to the input of a CTC decoder.

    Returns a tuple: for each of `outputs` except the last, log-probabilities (B, S, V or W), float32; then the step
    counts (B,), int64. Padding frames may have any values; outputs after a clip's end have no meaning. Holds a copy of
    the network's weights on the CPU. Raises ConfigError if the network has no CTC head.
    """

    def __init__(self, network: LipNetwork, params: ModelParams, crop_px: int) -> None:
        super().__init__()
        heads = {LOG_PROBS: network.ctc_head, SYLLABLE_LOG_PROBS: network.syllable_head}
        learnt = {name: head for name, head in heads.items() if head is not None}
        if not learnt:
            raise ConfigError(
                "this model has only an attention decoder, which reads in a loop and cannot be exported as a graph; "
                "use --format safetensors, or train with train.ctc_weight above 0"
            )
        self.params = params
        self.crop_px = crop_px
        self.outputs = (*learnt, NUM_STEPS)
        # resizing is linear and separable in rows and columns: each is a matrix, found by resizing single rows
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
            self(*self.example())  # creates the pooling matrices from the sizes of this input

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
        """Returns a padded batch of noise, the same for the same arguments."""
        generator = torch.Generator().manual_seed(seed)
        shape = (len(num_frames), max(num_frames), self.crop_px, self.crop_px)
        video_BTHW = torch.randint(0, WHITE + 1, shape, dtype=torch.uint8, generator=generator)
        return video_BTHW, torch.tensor(num_frames)


@contextmanager
def tracing() -> Iterator[None]:
    """Within it, a graph may be traced. Raises an error if a size of the example would be frozen."""
    with warnings.catch_warnings(), torch.no_grad():
        # torch 2.13 deprecates torch.jit, but torch.export, its replacement, freezes the time axis of an LSTM
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("error", category=torch.jit.TracerWarning)
        # nn.LSTM compares the width of its input, which may be frozen
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=r"torch\.nn\.modules\.rnn")
        yield


class _Pool(nn.Module):
    """Adaptive average pooling of pictures (…, Y, X) to (…, grid cells), as a matrix over the pixels."""

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
    """Like ResNetFrontend, but slices cut out the windows of the stem."""

    def __init__(self, frontend: ResNetFrontend) -> None:
        super().__init__()
        self.stem = copy.deepcopy(frontend.stem)
        self.stages = copy.deepcopy(frontend.stages)
        self.num_features = frontend.num_features
        self.pool = _Pool(frontend.pool_grid)

    def forward(self, video_BCTYX: torch.Tensor, num_frames_B: torch.Tensor) -> torch.Tensor:
        # `normalised` puts zeros after each clip's end, as the stem requires
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
    """Like Cnn3dFrontend, but a matrix does the pooling."""

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
    """Like BilstmEncoder, with one LSTM per direction. The backward LSTM reads each clip reversed in time."""

    def __init__(self, encoder: BilstmEncoder) -> None:
        super().__init__()
        lstm = encoder.lstm
        layers = range(lstm.num_layers)
        self.ahead = nn.ModuleList(_one_way(lstm, f"_l{layer}") for layer in layers)
        self.back = nn.ModuleList(_one_way(lstm, f"_l{layer}_reverse") for layer in layers)

    def forward(self, features_BSF: torch.Tensor, num_steps_B: torch.Tensor) -> torch.Tensor:
        steps_S = torch.arange(features_BSF.shape[1], device=num_steps_B.device)
        # reversing maps step s of a clip of n steps to step n - 1 - s; steps after its end stay in place
        reversed_BS = num_steps_B[:, None] - 1 - steps_S
        reversed_BS1 = torch.where(reversed_BS >= 0, reversed_BS, steps_S)[:, :, None]
        for ahead, back in zip(self.ahead, self.back, strict=True):
            ahead_BSE = ahead(features_BSF)[0]
            back_BSE = _at(back(_at(features_BSF, reversed_BS1))[0], reversed_BS1)
            features_BSF = torch.cat([ahead_BSE, back_BSE], dim=2)
        return features_BSF


def _at(inputs_BSF: torch.Tensor, steps_BS1: torch.Tensor) -> torch.Tensor:
    return inputs_BSF.gather(1, steps_BS1.expand(-1, -1, inputs_BSF.shape[2]))


def _one_way(lstm: nn.LSTM, ending: str) -> nn.LSTM:
    """Returns one layer and direction of `lstm`, chosen by the ending of its weights' names."""
    weights = {kind: getattr(lstm, kind + ending).detach() for kind in LSTM_WEIGHTS}
    single = nn.LSTM(weights["weight_ih"].shape[1], lstm.hidden_size, batch_first=True)
    single.load_state_dict({f"{kind}_l0": weight for kind, weight in weights.items()})
    return single
