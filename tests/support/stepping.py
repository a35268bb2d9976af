"""Single training steps on batches of chosen sizes."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from model.device import Precision
from model.settings import ModelParams
from model.training.ranks import Ranks
from model.training.step import StepFigures, TrainingStep
from model.training.training_data import TrainingData, TrainingJob
from model.training.training_state import TrainingState
from shards.stream import ClipBatch
from tests.support.packed import Packed
from tests.support.trainings import MODEL, job_in

CONFORMER = ModelParams.model_validate(
    {
        "preset": "conformer_tiny",
        "frame_height": 32,
        "frame_width": 32,
        "sizes": {
            "channels": (4, 6, 8, 8),
            "hidden_dim": 16,
            "num_heads": 2,
            "feed_forward_dim": 24,
            "num_encoder_layers": 2,
            "conv_kernel": 5,
            "num_decoder_layers": 1,
        },
        "dropout": 0.0,
    }
)
CPU = torch.device("cpu")
MODELS = {"cnn3d": MODEL.model_copy(update={"dropout": 0.0}), "conformer": CONFORMER}
ALL_HEADS = {"ctc_weight": 0.4, "reverse_weight": 0.3, "syllable_weight": 0.2}


def stepping_job(
    folder: Path, packed: Packed, model: ModelParams = MODELS["cnn3d"], **changes: object
) -> TrainingJob:
    """Returns a job without gradient clipping or warm-up: gradients are unchanged, and a step changes the weights."""
    given = {"gradient_clip": 1e9, "teacher_forcing_end": 1.0, "warmup_epochs": 0.0, **changes}
    job = job_in(folder, packed, **given)
    return replace(job, model=model)


class Bench:
    """A training step and its state, with BatchNorm in eval mode by default."""

    def __init__(
        self,
        job: TrainingJob,
        batch_norm: bool = False,
        precision: Precision | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.job, self.data = job, TrainingData(job)
        torch.manual_seed(3)
        precision = precision or Precision(None)
        self.state = TrainingState(job, device, precision, self.data)
        self.step = TrainingStep(job, self.data, self.state, precision)
        self.network = self.state.network
        self.network.train()
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                module.train(batch_norm)
        self.gradient: dict[str, torch.Tensor] = {}
        self.state.optimizer.register_step_pre_hook(self._keep_gradient)

    def _keep_gradient(self, *_: object) -> None:
        self.gradient = {
            name: p.grad.clone() for name, p in self.network.named_parameters() if p.grad is not None
        }

    def batches(self, sizes: list[int]) -> list[ClipBatch]:
        """Returns the first train clips in batches of these sizes."""
        stream, _ = self.data.streams(pin_memory=False)
        rows = torch.arange(sum(sizes)).split(sizes)
        return list(stream.batches([row_N.numpy() for row_N in rows]))

    def __call__(self, window: list[ClipBatch]) -> StepFigures:
        return self.step(window, 0, 0.5)

    def everything(self) -> list[torch.Tensor]:
        """Returns copies of all tensors that a step may change."""
        tensors = [*self.network.state_dict().values()]
        for values in self.state.optimizer.state_dict()["state"].values():
            tensors += [value for value in values.values() if isinstance(value, torch.Tensor)]
        if self.state.average:
            tensors += self.state.average.network.state_dict().values()
        return [tensor.clone() for tensor in tensors]


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys() and ours
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert (
        max(float(value.abs().max()) for value in ours.values()) > 1e-2
    )  # else a tolerance of 1e-5 means nothing


class TwoAlike(Ranks):
    """The second of two ranks; the other rank has the same values."""

    def __init__(self) -> None:
        super().__init__(rank=1, world_size=2)

    def sum(self, values: list[float]) -> list[float]:
        return [2 * value for value in values]

    def add_up(self, values_N: torch.Tensor) -> None:
        values_N *= 2
