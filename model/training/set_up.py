"""How a training is set up: once for the trainer, the search for a frame budget and the bench."""

import torch

from model.device import Precision, tune
from model.training.compiling import compile_parts
from model.training.fine_tuning import to_training_mode
from model.training.job import TrainingJob
from model.training.ranks import ALONE, Ranks
from model.training.step import TrainingStep
from model.training.training_data import TrainingData
from model.training.training_state import TrainingState


def set_up(job: TrainingJob, data: TrainingData, device: torch.device, ranks: Ranks = ALONE) -> TrainingStep:
    """The step of `job` with fresh weights of train.seed, in training mode; tunes this whole process.

    All ranks get equal weights, and then draw dropout of their own. Raises ConfigError where train.compile is set
    and this machine cannot compile.
    """
    precision = Precision.choose(job.train.mixed_precision, device)
    tune(device, precision, same_lengths=job.train.compile)
    torch.manual_seed(job.train.seed)
    state = TrainingState(job, device, precision, data, ranks)
    if job.train.compile:
        compile_parts(state.network, device)
    to_training_mode(state.network, job.train)
    if not ranks.is_first:
        torch.manual_seed(job.train.seed + ranks.rank)
    return TrainingStep(job, data, state, precision, ranks)
