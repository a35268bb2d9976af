"""Builds the training job that params.yaml describes."""

from pathlib import Path

from model.training.training_data import TrainingJob
from pipeline.params import Params, params_text
from shards.open_store import open_store


def job_of(values: Params) -> TrainingJob:
    """Returns the job of these parameters. The command adds its options with `dataclasses.replace`."""
    paths = values.paths
    return TrainingJob(
        samples=Path(paths.samples),
        shards=open_store(paths.shards, values.machine),
        runs=Path(paths.runs),
        checkpoints=Path(paths.checkpoints),
        logs=Path(paths.logs),
        text=values.text,
        model=values.model,
        train=values.train,
        loader=values.loader,
        decode=values.decode.for_validation(),
        machine=values.machine,
        config_text=params_text(values),
    )
