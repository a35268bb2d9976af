"""A new run reports an unfinished run, with a command that resumes it."""

import logging
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from model import runs
from model.training.training_data import TrainingJob
from pipeline.params import check, load_params, params_text, read_mapping
from pipeline.training_job import job_of
from shards.errors import Interrupted
from shards.packs import Packs
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clip, toy_clips
from tests.support.resuming import Position, stopped_in, stopping_at
from tests.support.trainings import MODEL, TRAIN, job_in


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(num_train=23, num_valid=2))


def test_a_new_run_reports_an_unfinished_run(
    tmp_path: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "pipeline.train"):
        last = stopped_in(tmp_path, packed)
        assert "starting a new run" not in caplog.text
        train(job_in(tmp_path, packed, num_epochs=1, learning_rate=0.005))
    (line,) = [message for message in caplog.messages if "starting a new run" in message]
    assert f"{last.parent} is unfinished, in epoch 1 of 3" in line
    assert "train.learning_rate: 0.01 there, 0.005 here; train.num_epochs: 3 there, 1 here" in line
    assert line.endswith(f"pipeline train --params {last.parent / 'config.yaml'}")
    caplog.clear()
    fewer = pack_clips(tmp_path / "fewer", toy_clips(20, 2))
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(job_in(tmp_path, fewer, num_epochs=1))
    (line,) = [message for message in caplog.messages if "starting a new run" in message]
    assert "samples.parquet was packed again" in line and line.endswith(f"--resume {last} --accept-new-plan")
    caplog.clear()
    # after it is resumed and finished, it is no longer reported
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(job_in(tmp_path, packed))
        train(job_in(tmp_path, packed, num_epochs=1, seed=5))
    assert "starting a new run" not in caplog.text


def job_of_command(params: Path, packed: Packed, arguments: list[str]) -> TrainingJob:
    """Returns the job of `pipeline train --params FILE [--resume FILE [--accept-new-plan]]`."""
    return replace(
        job_of(load_params(params)),
        packs=Packs.single(packed.samples, packed.store),
        resume=Path(arguments[arguments.index("--resume") + 1]) if "--resume" in arguments else None,
        accept_new_plan="--accept-new-plan" in arguments,
    )


@pytest.mark.parametrize(
    ("other", "options"),
    [
        ("parameters", []),
        ("valid clips", ["--resume"]),
        ("program", ["--resume"]),
        ("train clips and model", ["--resume", "--accept-new-plan"]),
        ("vocabulary", None),
        ("crops", None),
    ],
)
def test_the_reported_command_resumes_the_unfinished_run(
    tmp_path: Path,
    packed: Packed,
    other: str,
    options: list[str] | None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "my runs"
    sections = read_mapping(Path(__file__).parents[3] / "params.yaml")
    sections["paths"] |= {name: str(folder / name) for name in ("runs", "checkpoints", "logs")}
    sections["model"] |= MODEL.model_dump(mode="json")
    sections["train"] |= TRAIN.model_dump(mode="json") | {"num_epochs": 1}
    sections["loader"] |= {"frame_budget": 200}
    sections["decode"] |= {"decoder": "ctc"}
    sections["machine"] |= {"threads": 1, "device": "cpu", "num_workers": 0}
    params = tmp_path / "params.yaml"
    params.write_text(params_text(check(sections, "params")), "utf-8")
    with pytest.raises(Interrupted):
        train(stopping_at(job_of_command(params, packed, []), 0, 2))
    (last,) = (folder / "runs").glob("*/last.pt")
    now = packed
    changes: dict = {}
    if other == "parameters":
        changes = {"train": TRAIN.model_copy(update={"learning_rate": 0.5})}
    elif other == "valid clips":
        now = pack_clips(tmp_path / "now", toy_clips(23, 3))
    elif other == "program":
        monkeypatch.setattr(runs, "TRAIN_VERSION", runs.TRAIN_VERSION + 1)
    elif other == "train clips and model":
        now = pack_clips(tmp_path / "now", toy_clips(20, 2))
        changes = {"model": MODEL.model_copy(update={"hidden_dim": 24})}
    elif other == "vocabulary":
        now = pack_clips(
            tmp_path / "now", [*toy_clips(23, 2), ("train_new", "train", toy_clip("一二", 9), "五二")]
        )
    else:
        small = [(name, split, clip[:, 8:-8, 8:-8], label) for name, split, clip, label in toy_clips(23, 2)]
        now = pack_clips(tmp_path / "now", small)
        changes = {"model": MODEL.model_copy(update={"window_px": 64})}
    with caplog.at_level(logging.INFO, "pipeline.train"), pytest.raises(Interrupted):
        train(stopping_at(replace(job_of_command(params, now, []), **changes), 0, 2))
    (line,) = [message for message in caplog.messages if "starting a new run" in message]
    differs = {
        "parameters": "train.learning_rate: 0.01 there, 0.5 here",
        "valid clips": "(other valid clips)",
        "program": "(by another version of the program)",
        "train clips and model": "the clips differ: samples.parquet was packed again",
        "vocabulary": "only there '', only here '五'",
        "crops": "model.window_px 96 is larger than the packed crops (80 px)",
    }
    assert differs[other] in line
    if options is None:
        assert "that run cannot be resumed" in line and "pipeline train" not in line
        return
    arguments = shlex.split(line.split("to resume that run: ")[1])
    assert arguments[:3] == ["pipeline", "train", "--params"]
    assert [argument for argument in arguments[4:] if argument.startswith("--")] == options
    caplog.clear()
    steps: list[Position] = []
    job = job_of_command(Path(arguments[3]), now, arguments)
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(replace(job, on_batch=lambda epoch, done, *_: steps.append((epoch, done))))
    assert f"Resuming from {last}" in caplog.text and "starting a new run" not in caplog.text
    assert steps[0] == ((0, 2) if "--accept-new-plan" in options else (0, 4))
