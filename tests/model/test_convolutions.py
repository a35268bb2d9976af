"""Convolutions give correct values with every instruction set and for all sizes that a user can set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from model.device import cpu_computes_bfloat16
from model.presets import PRESET_SIZES
from model.pretrained.sizes import network_of_shapes
from model.settings import HEAD_OF_MODULE, ModelParams
from model.vocabulary import Vocabulary
from tests.support import convolutions

ROOT = Path(__file__).parents[2]
VOCABULARY = Vocabulary.of_labels(("你好",), with_syllables=True)


@pytest.mark.parametrize("instructions", ["AVX2", "DEFAULT"])
def test_convolutions_agree_with_float64(instructions: str) -> None:
    """Also checks that bfloat16 is used only where oneDNN uses it: emulated, it is six times slower than float32."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if instructions == "DEFAULT":  # of this processor, or from the variable with which the tests were started
        environment["MALLOC_PERTURB_"] = "128"  # unwritten memory reads as 3e38
        uses_bfloat16 = cpu_computes_bfloat16()
        assert uses_bfloat16 <= torch.cpu._is_avx512_bf16_supported()
    else:
        environment["ONEDNN_MAX_CPU_ISA"] = instructions
        uses_bfloat16 = False
    done = subprocess.run(
        [sys.executable, "-m", convolutions.__name__],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,  # a process with a corrupted heap may never end
        check=False,
    )
    expected = f"compared, {'with' if uses_bfloat16 else 'without'} bfloat16\n"
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


@pytest.mark.parametrize("preset", PRESET_SIZES)
def test_no_convolution_of_one_pixel_has_a_stride(preset: str) -> None:
    """oneDNN writes past its buffers in their backward pass, also with AVX-512, where the values are correct."""
    network = network_of_shapes(
        ModelParams.model_validate({"preset": preset}), VOCABULARY, HEAD_OF_MODULE.values()
    )
    convolutions_1 = [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and set(module.kernel_size) == {1}
    ]
    assert all(set(module.stride) == {1} for module in convolutions_1)
    assert bool(convolutions_1) == preset.startswith("conformer")
