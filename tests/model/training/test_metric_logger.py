"""The event files of a run, read back by TensorBoard's own reader."""

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from model.decoding.result import ScoredClip
from model.progress import Progress
from model.runs import Curve, RunFolder
from model.training.epoch_figures import curve_of
from model.training.metric_logger import FRAMES_A_CLIP, MetricLogger, tensorboard_folder
from model.training.step import StepFigures
from model.training.training_data import TrainingJob
from shards.plan import EpochPlan
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.trainings import job_in

PLAN = EpochPlan(
    batches=(np.arange(2),), left_out=np.empty(0, np.int64), num_clips=2, num_frames=90, padded_frames=100
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(12, 8))


def read_back(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()


def values_of(events: EventAccumulator, tag: str) -> dict[int, Any]:
    """Returns the values that TensorBoard shows under `tag`, by step."""
    found = {event.step: make_ndarray(event.tensor_proto) for event in events.Tensors(tag)}
    assert len(found) == len(events.Tensors(tag)), f"{tag}: a step has two values"
    return found


def scalars(events: EventAccumulator, tag: str) -> dict[int, float]:
    return {step: float(value) for step, value in values_of(events, tag).items()}


def texts(events: EventAccumulator) -> dict[int, str]:
    return {
        step: value.item().decode() for step, value in values_of(events, "valid/read/text_summary").items()
    }


def figures(loss: float = 8.0, *, norm: float = 1.0, was_taken: bool = True) -> StepFigures:
    return StepFigures(
        loss_sum=loss, num_chars=4, num_clips=2, gradient_norm=norm, learning_rate=1e-3, was_taken=was_taken
    )


def scored(hypothesis: str) -> list[ScoredClip]:
    return [
        ScoredClip(f"valid_{n:03d}", "valid", "一二三四", hypothesis, -0.1, 24, None, None) for n in range(8)
    ]


def end_epoch(
    metric_logger: MetricLogger, progress: Progress, val_cer: float | None, hypothesis: str = "一二"
) -> Curve:
    val_loss = None if val_cer is None else 2 * val_cer
    curve = curve_of(progress, PLAN, 1e-3, val_loss, val_cer, 100.0, None)
    progress.curves.append(curve)
    metric_logger.epoch(curve, [] if val_cer is None else scored(hypothesis))
    progress.next_epoch()
    return curve


def run_in(job: TrainingJob) -> RunFolder:
    return RunFolder(job.runs, "0123456789abcdef")


def test_tensorboard_shows_a_whole_training(tmp_path: Path, packed: Packed) -> None:
    job = job_in(tmp_path, packed, num_epochs=3)
    train(job)
    (run,) = job.runs.iterdir()
    events = read_back(run / "tensorboard")
    losses = scalars(events, "step/loss")
    num_steps = max(losses)
    assert list(losses) == list(range(1, num_steps + 1)) and num_steps % 3 == 0
    assert scalars(events, "step/gradient_norm").keys() == losses.keys()
    assert max(scalars(events, "step/learning_rate").values()) == pytest.approx(1e-2, rel=0.3)
    epochs = scalars(events, "epoch/number")
    assert list(epochs.values()) == [0, 1, 2] and max(epochs) == num_steps
    state = torch.load(run / "last.pt", weights_only=True)
    for name, tag in (("val_cer", "valid/cer"), ("clips_per_s", "speed/clips_per_s")):
        wanted = [curve[name] for curve in state["progress"]["curves"]]
        assert list(scalars(events, tag).values()) == pytest.approx(wanted)
    for tag in ("epoch/train_loss", "epoch/peak_memory_mb", "epoch/skipped_steps", "valid/loss"):
        assert len(scalars(events, tag)) == 3
    for tag in ("speed/data_wait_share", "speed/padded_share"):
        assert all(0 <= share < 1 for share in scalars(events, tag).values())
    assert "speed/model_flop_utilisation" not in events.Tags()["tensors"], "unknown on a CPU"
    ids = [[line.split(" ")[1] for line in text.splitlines()[2:]] for text in texts(events).values()]
    assert len(ids) == 3
    assert len(ids[0]) == 6 and ids[0] == ids[1] == ids[2], "the same clips in each epoch"
    # training a finished run again adds nothing
    before = sorted((run / "tensorboard").iterdir())
    assert train(job).already_done
    assert sorted((run / "tensorboard").iterdir()) == before


def test_the_image_shows_the_frames_of_the_shards(tmp_path: Path, packed: Packed) -> None:
    job = job_in(tmp_path, packed)
    progress, run = Progress(steps=4), run_in(job)
    metric_logger = MetricLogger(job, run, progress)
    end_epoch(metric_logger, progress, None)
    end_epoch(metric_logger, progress, 0.5)
    progress.steps = 8
    end_epoch(metric_logger, progress, 0.4)
    metric_logger.close()
    ((step, (_, _, png)),) = values_of(read_back(tensorboard_folder(run)), "valid/mouths").items()
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    assert step == 4 and picture.shape == (6 * 96, FRAMES_A_CLIP * 96)
    clips = {clip_id: clip for clip_id, _, clip, _ in toy_clips(12, 8)}
    assert np.array_equal(picture[:96, :96], clips["valid_000"][0])
    assert np.array_equal(picture[-96:, -96:], clips["valid_007"][-1])


def test_resuming_hides_later_steps_of_a_killed_run(tmp_path: Path, packed: Packed) -> None:
    job = job_in(tmp_path, packed)
    run, progress = run_in(job), Progress()
    killed = MetricLogger(job, run, progress)
    for step in range(1, 9):
        progress.steps = step
        killed.step(progress, figures(loss=100.0 + step))
        if step % 4 == 0:
            end_epoch(killed, progress, 0.9, "第一")
    killed.close()
    time.sleep(1.0)  # event files are read in the order of the seconds in their names
    kept = Progress(epoch=1, steps=5, curves=progress.curves[:1])
    resumed = MetricLogger(job, run, kept)
    for step in range(6, 8):
        kept.steps = step
        resumed.step(kept, figures(loss=4.0 * step))
    end_epoch(resumed, kept, 0.2, "第二")
    resumed.close()
    events = read_back(tensorboard_folder(run))
    losses = scalars(events, "step/loss")
    assert losses == pytest.approx({**{step: (100 + step) / 4 for step in range(1, 6)}, 6: 6.0, 7: 7.0})
    assert scalars(events, "valid/cer") == pytest.approx({4: 0.9, 7: 0.2})
    found = texts(events)
    assert list(found) == [4, 7] and "第一" in found[4] and "第二" in found[7]


def test_skipped_steps_and_non_finite_figures_are_not_written(tmp_path: Path, packed: Packed) -> None:
    job = job_in(tmp_path, packed)
    progress, run = Progress(steps=1), run_in(job)
    metric_logger = MetricLogger(job, run, progress)
    metric_logger.step(progress, figures())
    metric_logger.step(progress, figures(float("nan"), was_taken=False))
    progress.steps = 2
    metric_logger.step(progress, figures(norm=float("inf")))  # an overflow of float16
    metric_logger.close()
    events = read_back(tensorboard_folder(run))
    assert scalars(events, "step/loss") == {1: 2.0, 2: 2.0}
    assert scalars(events, "step/gradient_norm") == {1: 1.0}


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")
def test_the_table_shows_any_text_unchanged(tmp_path: Path, packed: Packed, browser) -> None:
    """With TensorBoard's own Markdown, in a browser: a hypothesis may contain any characters of the labels."""
    from tensorboard.plugin_util import markdown_to_safe_html

    hostile = "a|b *c* _d_ `e` <b>f</b> [g](h) &amp; \\| ~i~ #j"
    job = job_in(tmp_path, packed)
    progress, run = Progress(steps=1), run_in(job)
    metric_logger = MetricLogger(job, run, progress)
    end_epoch(metric_logger, progress, 0.5, hostile)
    metric_logger.close()
    (text,) = texts(read_back(tensorboard_folder(run))).values()
    page = browser.new_page()
    page.set_content(markdown_to_safe_html(text))
    rows = page.locator("tr").all()
    assert len(rows) == 7
    assert [cell.inner_text() for cell in rows[0].locator("th").all()] == [
        *("clip", "reference", "hypothesis", "CER")
    ]
    clip, reference, hypothesis, cer = [cell.inner_text() for cell in rows[1].locator("td").all()]
    assert (clip, reference, hypothesis) == ("valid_000", "一二三四", hostile)
    assert cer.endswith("%")
    page.close()
