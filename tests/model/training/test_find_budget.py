"""The search for the largest frame budget, and that the result fits in a real process with little memory."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from model.settings import AugmentParams, ModelParams
from model.training import find_budget as module
from model.training.find_budget import MARGIN, NARROW_ENOUGH, FoundBudget, Shape, find_budget
from model.training.training_data import TrainingJob
from pipeline.training_job import print_budget
from shards.errors import ConfigError, TrainingError
from shards.machine import available_mb, group_available_mb
from shards.plan import plan_epoch
from shards.samples import read_samples
from shards.settings import LoaderParams
from tests.support.packed import Packed, pack_clips, toy_clip
from tests.support.trainings import job_in

LENGTHS = (12, 18, 24, 30, 48)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    clips = []
    for number, frames in enumerate(LENGTHS * 2):
        label = "一二三四一二三四"[: frames // 6]
        clips.append((f"train_{number}", "train", toy_clip(label, number), label))
    return pack_clips(tmp_path_factory.mktemp("packed"), clips)


def searching_job(folder: Path, packed: Packed, batch_size: int) -> TrainingJob:
    job = job_in(folder, packed, batch_size=batch_size)
    return replace(job, loader=LoaderParams(frame_budget=48))


class FakeTrials:
    """A device where a padded frame takes 1 MB, a frame of the longest clip 2 MB, and the rest 100 MB."""

    def __init__(self) -> None:
        self.seen: list[tuple[Shape, ...]] = []

    def __call__(
        self, job: TrainingJob, data: object, shapes: tuple[Shape, ...], limit_mb: float | None
    ) -> tuple[float, float, float] | None:
        assert limit_mb is not None
        self.seen.append(shapes)
        peak = 100.0 + max(s.num_clips * s.num_frames + s.num_frames for s in shapes)
        return None if peak > limit_mb else (peak, 1000.0, limit_mb)


@pytest.mark.parametrize("limit_mb", [250, 300, 555, 1_000])
def test_the_search_ends_just_below_a_budget_that_does_not_fit(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch, limit_mb: float
) -> None:
    fake = FakeTrials()
    monkeypatch.setattr(module, "_run_trial", fake)
    found = find_budget(searching_job(tmp_path, packed, 100), limit_mb)
    fitting = {trial.frame_budget for trial in found.trials if trial.fits}
    others = {trial.frame_budget for trial in found.trials if not trial.fits}
    assert found.frame_budget == max(fitting) < min(others)
    assert min(others) <= NARROW_ENOUGH * found.frame_budget or min(others) - found.frame_budget == 1
    assert all(t.peak_mb is not None and t.peak_mb <= (1 - MARGIN) * limit_mb for t in found.trials if t.fits)
    assert [t.frame_budget for t in found.trials] == sorted(t.frame_budget for t in found.trials)
    assert not found.fits_all and not (tmp_path / "runs").exists()


def test_a_budget_is_tried_on_the_largest_batches_of_its_plan(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTrials()
    monkeypatch.setattr(module, "_run_trial", fake)
    job = searching_job(tmp_path, packed, 4)
    still = job.train.model_copy(update={"augment": AugmentParams()})
    found = find_budget(replace(job, train=still), 1e6)
    assert found.fits_all and found.frame_budget == 4 * max(LENGTHS)
    samples = read_samples(packed.samples, "train")
    lengths = samples["num_frames"].to_numpy()
    for trial in found.trials:
        loader = LoaderParams(frame_budget=trial.frame_budget)
        for epoch in range(4):
            for rows in plan_epoch(samples, loader, 4, epoch).batches:
                assert any(
                    len(rows) <= shape.num_clips and lengths[rows].max() <= shape.num_frames
                    for shape in trial.shapes
                ) or len(rows) * lengths[rows].max() <= max(s.num_clips * s.num_frames for s in trial.shapes)
        longest, *_ = trial.shapes
        assert longest.num_frames == 48 and longest.label == "一二三四一二三四"
    # the second batch has shorter clips, with labels that CTC can spell
    assert any(len(s.label) < 8 for shapes in fake.seen for s in shapes)


def test_clips_are_tried_at_the_slowest_speed_and_at_most_max_frames_long(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTrials()
    monkeypatch.setattr(module, "_run_trial", fake)
    job = searching_job(tmp_path, packed, 4)
    job = replace(job, loader=LoaderParams(frame_budget=48, max_frames=30))
    assert job.train.augment.speed_change == 0.1
    found = find_budget(job, 1e6)
    assert found.frame_budget == 4 * 30
    assert all(shapes[0].num_frames == 34 for shapes in fake.seen)  # 30 / 0.9


def test_if_not_even_one_clip_fits_the_error_says_what_to_do(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_run_trial", FakeTrials())
    with pytest.raises(TrainingError, match=r"one clip of 48 frames.*loader\.max_frames"):
        find_budget(searching_job(tmp_path, packed, 4), 110)


def test_the_search_needs_a_single_process(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(ConfigError, match="torchrun"):
        find_budget(searching_job(tmp_path, packed, 4))


# -- real processes ----------------------------------------------------------------------------------------


def large_job(folder: Path, packed: Packed) -> TrainingJob:
    """Returns a job whose step takes about 5 MB per padded frame, plus the memory of torch itself."""
    sizes = {"channels": (48, 16, 8, 8), "hidden_dim": 16, "num_lstm_layers": 1}
    job = replace(searching_job(folder, packed, 2), loader=LoaderParams(frame_budget=96))
    return replace(job, model=ModelParams.model_validate({"sizes": sizes}))


@pytest.fixture(scope="module")
def packed_long(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    label = "一二三四" * 4
    clips = [(f"train_{number}", "train", toy_clip(label, number), label) for number in range(4)]
    return pack_clips(tmp_path_factory.mktemp("long"), clips)


IN_LITTLE = """
import resource, sys, torch
from dataclasses import replace
from pathlib import Path
from model.device import Precision
from model.training.step import TrainingStep
from model.training.training_data import TrainingData
from model.training.training_state import TrainingState
from shards.machine import status_mb
from shards.settings import LoaderParams
from tests.support.packed import Packed
from tests.model.training.test_find_budget import large_job
budget, limit_mb = int(sys.argv[2]), float(sys.argv[3])
torch.set_num_threads(1)
job = large_job(Path("unused"), Packed.at(Path(sys.argv[1])))
job = replace(job, loader=LoaderParams(frame_budget=budget))
data = TrainingData(job)
state = TrainingState(job, torch.device("cpu"), Precision(None), data)
step = TrainingStep(job, data, state, Precision(None))
left = int((limit_mb - status_mb("VmRSS")) * 1e6)
resource.setrlimit(resource.RLIMIT_AS, (int(status_mb("VmSize") * 1e6) + left, resource.RLIM_INFINITY))
stream, _ = data.streams(pin_memory=False)
for epoch in range(2):
    plan = data.epoch(epoch)
    batches = list(stream.batches(plan.batches))
    assert max(batch.video_BTHW.shape[:2].numel() for batch in batches) > budget / 2
    step(batches, epoch, 0.5)
print("limit", step.micro_batches.max_frames, "peak", status_mb("VmHWM") < limit_mb)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux")
def test_a_budget_for_little_memory_is_smaller_and_really_fits(
    tmp_path: Path, packed_long: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NARROW_ENOUGH", 2.0)  # only one and two clips of 96 frames
    job = large_job(tmp_path, packed_long)
    # the peak of the same process varies by 10 %
    searches = [find_budget(job, 4_000) for _ in range(3)]
    assert all(large.frame_budget == 192 and large.fits_all for large in searches)
    one_mb = max(large.trials[0].peak_mb or 0.0 for large in searches)
    two_mb = min(large.trials[1].peak_mb or 0.0 for large in searches)
    assert two_mb > one_mb + 100
    limit_mb = (one_mb + two_mb) / 2 / (1 - MARGIN)
    small = find_budget(job, limit_mb)
    assert small.frame_budget == 96 and not small.fits_all
    assert not any(path.exists() for path in (job.runs, job.logs, job.checkpoints))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            IN_LITTLE,
            str(packed_long.samples.parent),
            str(small.frame_budget),
            str(limit_mb),
        ],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "OMP_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": "65536",
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "limit None peak True\n"


def test_an_error_that_is_not_about_memory_ends_the_search(
    tmp_path: Path, packed: Packed, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only the trial builds the network and finds that a part is missing."""
    job = searching_job(tmp_path, packed, 2)
    broken = job.train.model_copy(update={"freeze": ("reverse_decoder",)})
    with pytest.raises(TrainingError, match="not about memory; see above"):
        find_budget(replace(job, train=broken), 4_000)
    assert "train.freeze: this network has no reverse_decoder" in capfd.readouterr().err


def test_the_table_shows_every_trial_and_the_line_to_set() -> None:
    shapes = (Shape(2, 48, "一"), Shape(4, 24, "一"))
    trials = (
        module.Trial(96, shapes, 812.4, 1234.5, fits=True),
        module.Trial(192, shapes, None, None, fits=False),
    )
    console = Console(width=120, record=True)
    found = FoundBudget(96, trials, 1_000.0, fits_all=False, current=8_000, speed_change=0.0)
    print_budget(found, console)
    text = console.export_text()
    for part in ("2 × 48, 4 × 24", "812", "1,234", "out of memory", "--set loader.frame_budget=96", "10%"):
        assert part in text, part
    assert "the current loader.frame_budget 8000 does not fit" in text
    assert "train.batch_size" not in text and "speed_change" not in text


@pytest.mark.parametrize(("current", "fits_all", "lines"), [
    (95, False, ["the current loader.frame_budget 95 fits", "--set loader.frame_budget=96"]),
    (97, False, ["the current loader.frame_budget 97 does not fit", "--set loader.frame_budget=96"]),
    (95, True, ["Every batch", "the current loader.frame_budget 95 fits", "--set loader.frame_budget=96"]),
    # a smaller budget makes the same batches
    (2_000, True, ["Every batch", "the current loader.frame_budget 2000 fits"]),
])  # fmt: skip
def test_the_advice_depends_on_the_current_budget(current: int, fits_all: bool, lines: list[str]) -> None:
    console = Console(width=200, record=True)
    print_budget(FoundBudget(96, (), 1_000.0, fits_all, current, speed_change=0.1), console)
    found = console.export_text().splitlines()
    found = found[next(i for i, line in enumerate(found) if "speed_change 0.1" in line) + 1 :]
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))


# -- available memory --------------------------------------------------------------------------------------


def write(folder: Path, **values: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / f"memory.{name}").write_text(f"{value}\n")


def test_the_smallest_limit_of_the_parent_groups_counts(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/job/step\n")
    assert group_available_mb(root, own) is None
    write(root / "job/step", max="max", current=10**9, stat="anon 1\ninactive_file 5")
    assert group_available_mb(root, own) is None
    write(root / "job", max=8 * 10**9, current=3 * 10**9, stat="anon 1\ninactive_file 500000000")
    assert group_available_mb(root, own) == 5_500
    write(root, max=4 * 10**9, current=3 * 10**9, stat="inactive_file 0")
    assert group_available_mb(root, own) == 1_000


def test_cgroups_of_version_1_are_read_too(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("9:name=systemd:/\n4:memory:/elsewhere/of/the/host\n3:cpu:/\n0::/\n")
    top = root / "memory"
    write(top, limit_in_bytes=9223372036854771712, usage_in_bytes=1, stat="total_inactive_file 0")
    assert group_available_mb(root, own) is None
    write(top, limit_in_bytes=2 * 10**9, usage_in_bytes=10**9, stat="total_inactive_file 250000000")
    assert group_available_mb(root, own) == 1_250


def test_this_machine_has_available_memory() -> None:
    assert 0 < available_mb() < 1e9
