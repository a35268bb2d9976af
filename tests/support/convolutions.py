"""Compares our convolutions, forward and backward, with float64, which torch computes without oneDNN.

`python -m tests.support.convolutions` prints one line for each difference. tests/model/test_convolutions.py runs it
once for each instruction set, since oneDNN reads ONEDNN_MAX_CPU_ISA when it starts.

Shapes: N pictures or clips, C channels, T frames, S steps, W width of a step, (Y, X) px.
"""

import copy
from collections.abc import Iterator

import torch
from torch import nn

from model.device import Precision, channels_last_weights, cpu_computes_bfloat16
from model.networks.conformer_encoder import Convolution
from model.networks.frontends import BasicBlock, ConvBlock, Stem

CHANNELS = ((2, 4), (7, 12), (17, 33))
"""Input and output channels: below, at and above the 8 numbers of an AVX2 register and the 16 of an AVX-512 one."""
SIDES_PX = (2, 22)
"""Of a ResNet's pictures: an input of 88 px becomes 22 px in the first stage, one of 17 px becomes 2 in the third."""
TOLERANCES = {None: 1e-5, torch.bfloat16: 0.15}
"""The largest difference for each precision, as a share of the norm of the correct values.

In bfloat16 max pooling picks other pixels: 0.1 was measured. When oneDNN was wrong, the share was above 0.3.
"""
NUM_CALLS = 2
"""Calls of each case: if oneDNN corrupts the heap, the process ends only in a later call."""


def cases() -> Iterator[tuple[str, nn.Module, tuple[torch.Tensor, ...]]]:
    """Yields every block with convolutions, at many sizes, each with an input."""
    frames_N, steps_S = torch.tensor([5, 3]), torch.arange(9)
    for num_in, num_out in CHANNELS:
        at = f"{num_in} to {num_out} channels"
        for side_px in SIDES_PX:
            # channels last, like the output of the stem
            pictures_NCYX = torch.rand(12, side_px, side_px, num_in).permute(0, 3, 1, 2)
            for stride in (1, 2):
                block = BasicBlock(num_in, num_out, stride)
                yield f"BasicBlock, {at}, stride {stride}, {side_px} px", block, (pictures_NCYX,)
        video_NCTYX = torch.rand(2, num_in, 5, 12, 12)
        for stride_TYX in ((2, 2, 2), (1, 2, 2), (1, 1, 1)):
            conv_block = ConvBlock(num_in, num_out, (3, 3, 3), stride_TYX)
            nn.init.constant_(conv_block.norm.bias, 8)  # keeps the ReLU open everywhere, despite rounding
            yield f"ConvBlock, {at}, stride {stride_TYX}", conv_block, (video_NCTYX, frames_N)
        yield f"Stem, {num_out} channels", Stem(num_out, 1), (torch.rand(2, 5, 18, 18),)
        padding_NS = steps_S >= frames_N[:, None]
        inputs_NSW = torch.rand(2, len(steps_S), num_out)
        yield f"Convolution, {num_out} wide", Convolution(num_out, 31), (inputs_NSW, padding_NS)


def results(
    block: nn.Module, inputs: tuple[torch.Tensor, ...], precision: Precision
) -> dict[str, torch.Tensor]:
    """Returns the output, and the gradients of the input and of all weights."""
    first = inputs[0].detach().requires_grad_()
    with precision.autocast(torch.device("cpu")):
        output = block(first, *inputs[1:])
    output = output[0] if isinstance(output, tuple) else output
    # positive like the inputs: if a sum cancels out, rounding to bfloat16 is a large share of it
    output_gradient = torch.rand(output.shape, generator=torch.Generator().manual_seed(0))
    weights = dict(block.named_parameters())
    gradients = torch.autograd.grad(output, (first, *weights.values()), output_gradient.to(output.dtype))
    return {"output": output.detach(), **dict(zip(("input", *weights), gradients, strict=True))}


def differences() -> Iterator[str]:
    torch.manual_seed(0)
    for name, block, inputs in cases():
        # batch normalisation in eval mode: in training mode it would hide the scale of a convolution's weights
        exact_block = copy.deepcopy(block).double().eval()
        exact = results(exact_block, (inputs[0].double(), *inputs[1:]), Precision(None))
        for dtype in (None, torch.bfloat16) if cpu_computes_bfloat16() else (None,):
            for layout in ("channels first", "channels last"):
                block = copy.deepcopy(block).eval()
                if layout == "channels last":
                    channels_last_weights(block)
                for _ in range(NUM_CALLS):
                    for what, tensor in results(block, inputs, Precision(dtype)).items():
                        share = (tensor.double() - exact[what]).norm() / exact[what].norm().clamp(min=1e-6)
                        if not share <= TOLERANCES[dtype]:
                            yield f"{name}, weights {layout}, {dtype or 'float32'}: {what} is {share:.1e} off"


if __name__ == "__main__":
    torch.set_num_threads(2)
    for line in differences():
        print(line, flush=True)
    print(f"compared, {'with' if cpu_computes_bfloat16() else 'without'} bfloat16")
