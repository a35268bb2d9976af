"""Row and line of an epoch; operations against formulas counted by hand; the peak memory of the process."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from model.progress import Progress
from model.training import epoch_figures
from model.training.epoch_figures import curve_of, epoch_line, flop_utilisation, flops_of_step, peak_memory_mb
from shards.plan import EpochPlan
from stages.reports.csv_tables import CURVE_COLUMNS

CPU = torch.device("cpu")
PLAN = EpochPlan(
    batches=(np.arange(2),), left_out=np.empty(0, np.int64), num_clips=2, num_frames=90, padded_frames=100
)


def progress_at_the_end() -> Progress:
    return Progress(
        epoch=3,
        batches_done=10,
        loss_sum=50.0,
        chars_seen=40,
        clips_seen=30,
        gradient_norm_sum=8.0,
        steps_in_epoch=4,
        seconds=12.0,
        wait_s=0.6,
        steps=16,
        skipped_steps=3,
        curves=[{"skipped": 0}, {"skipped": 2}, {"skipped": 0}],
    )


def test_a_row_holds_the_figures_of_the_epoch() -> None:
    curve = curve_of(progress_at_the_end(), PLAN, 1e-3, 1.5, 0.25, 512.0, None)
    assert tuple(curve) == CURVE_COLUMNS, "the report writes these columns"
    assert curve == {
        "epoch": 3,
        "train_loss": 1.25,
        "val_loss": 1.5,
        "val_cer": 0.25,
        "learning_rate": 1e-3,
        "clips_per_s": 2.5,
        "data_wait": pytest.approx(0.05),
        "padding": pytest.approx(0.1),
        "gradient_norm": 2.0,
        "peak_memory_mb": 512.0,
        "skipped": 1,
        "flop_utilisation": None,
    }


def test_the_line_shows_only_measured_figures() -> None:
    curve = curve_of(progress_at_the_end(), PLAN, 1e-3, 1.5, 0.25, 512.0, 0.375)
    assert epoch_line(curve) == (
        "Epoch 3: train_loss=1.2500, val_loss=1.5000, CER=0.2500, 2.5 clips/s, waited 5.0 % for data, "
        "padded 10.0 %, peak memory 512 MB, model FLOP utilisation 37.5 %, 1 steps skipped"
    )
    progress = replace(progress_at_the_end(), skipped_steps=2)
    assert epoch_line(curve_of(progress, PLAN, 1e-3, None, None, 512.0, None)) == (
        "Epoch 3: train_loss=1.2500, 2.5 clips/s, waited 5.0 % for data, padded 10.0 %, peak memory 512 MB"
    )


def test_an_epoch_without_steps_still_has_a_row() -> None:
    curve = curve_of(Progress(), replace(PLAN, padded_frames=0, num_frames=0), 0.0, None, None, 1.0, None)
    assert curve["train_loss"] == curve["gradient_norm"] == curve["padding"] == curve["clips_per_s"] == 0


class Small(nn.Module):
    """A convolution, a normalisation and a product. The test counts their operations by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 4, (3, 5, 5), padding=(1, 2, 2))
        self.norm = nn.BatchNorm3d(4)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(4, 7)

    def forward(self, video_BCTYX: torch.Tensor) -> torch.Tensor:
        features_BCT = self.norm(self.conv(video_BCTYX)).mean(dim=(3, 4))
        return self.linear(self.dropout(features_BCT).transpose(1, 2))


def test_operations_equal_a_count_by_hand_and_counting_changes_nothing() -> None:
    network = Small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    video_BCTYX = torch.randn(2, 1, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    flops = flops_of_step(network, lambda tried: tried(video_BCTYX).sum())
    # outputs per channel, channels, products per output
    convolution = 2 * (2 * 6 * 8 * 8) * 4 * (1 * 3 * 5 * 5)
    product = 2 * (2 * 6) * 4 * 7
    # the video needs no gradient, so the backward of the convolution is only that of its weights
    assert flops == 2 * convolution + 3 * product
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_the_formula_for_cudnn_equals_the_products_of_a_cpu() -> None:
    """A CPU computes packed clips with plain products, which are counted one by one. All inputs need gradients."""
    lstm = nn.LSTM(5, 6, num_layers=2, bidirectional=True, batch_first=True)
    rows_BTF = torch.randn(2, 9, 5, requires_grad=True)
    packed = pack_padded_sequence(rows_BTF, torch.tensor([9, 4]), batch_first=True)
    start = torch.zeros(4, 2, 6, requires_grad=True), torch.zeros(4, 2, 6, requires_grad=True)
    counted = flops_of_step(lstm, lambda network: network(packed, start)[0].data.sum())
    rows, weights = packed.data.shape, [parameter.shape for parameter in lstm.parameters()]
    forward = epoch_figures._lstm_flops(rows, weights)
    assert counted == forward + epoch_figures._lstm_backward_flops(rows, weights)


def test_a_compiled_network_is_counted_too() -> None:
    video_BCTYX = torch.randn(2, 1, 6, 8, 8)
    plain, compiled = Small(), Small()
    compiled.linear.compile(backend="eager")
    compiled(video_BCTYX)
    counts = [flops_of_step(network, lambda tried: tried(video_BCTYX).sum()) for network in (plain, compiled)]
    assert counts[0] == counts[1]


def test_utilisation_is_a_share_of_the_gpus_peak_and_else_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert flop_utilisation(1e12, 1.0, CPU) is None
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    assert flop_utilisation(312e12, 2.0, gpu) == pytest.approx(0.5)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB MIG 1g.10gb")
    assert flop_utilisation(312e12, 2.0, gpu) is None


def test_peak_memory_belongs_to_one_process_and_never_falls() -> None:
    """In a child: its peak starts low, includes 200 MB that were freed again, and is not the parent's peak."""
    ballast = np.ones(400_000_000, np.uint8)
    source = (
        "import numpy as np\n"
        "from shards.machine import peak_mb\n"
        "before = peak_mb()\n"
        "np.ones(200_000_000, np.uint8)\n"
        "print(before, peak_mb())\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert 190 < after - before < 230
    assert before < 200 < peak_memory_mb(CPU)
    assert ballast[-1] == 1


@pytest.mark.gpu
def test_on_a_gpu_lstms_are_counted_and_memory_is_that_of_tensors(cuda: str) -> None:
    device = torch.device(cuda)
    lstm = nn.LSTM(5, 6, num_layers=2, bidirectional=True, batch_first=True).to(device)
    rows_BTF = torch.randn(2, 9, 5, device=device)
    counted = flops_of_step(lstm, lambda network: network(rows_BTF)[0].sum())
    weights = [parameter.shape for parameter in lstm.parameters()]
    assert counted == 3 * epoch_figures._lstm_flops(rows_BTF.shape, weights)
    before = peak_memory_mb(device)
    torch.zeros(100_000_000, dtype=torch.uint8, device=device)
    assert peak_memory_mb(device) >= min(before, 100)
