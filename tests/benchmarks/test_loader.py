"""`python -m benchmarks.loader`: a tiny run gives every figure, and all readers return the same clips."""

import io
import json
import math
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from rich.console import Console
from torch.utils.data import DataLoader

from benchmarks import loader_measure, loader_peers
from benchmarks.loader import (
    LoaderBench,
    bench_loader,
    print_loader_bench,
    run_in_fresh_process,
    speed_tasks,
)
from benchmarks.loader_formats import PEERS, installed_peers
from benchmarks.loader_material import CODECS, Material
from benchmarks.loader_measure import READERS, Figures, Task, figures
from benchmarks.loader_peers import PaddedBatch
from shards.errors import ConfigError
from tests.support import forked
from tests.support.videos import write_mouth

# webdataset leaves the shards that it opened to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

NUM_CLIPS = 5
RAW_READERS = [name for name in READERS if name != "mp4"]
JPEG_DECODERS_DIFFER = 2
"""Gray levels by which two builds of libjpeg may differ."""
MP4_MEAN_ERROR = 3.0


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module", autouse=True)
def forked_workers() -> Iterator[None]:
    """Starts the worker of torch's DataLoader without seconds of imports."""

    def loader(*arguments: Any, **options: Any) -> DataLoader[Any]:
        return DataLoader(*arguments, **options | {"multiprocessing_context": forked.context()})

    with patch.object(loader_peers, "DataLoader", loader):
        yield


@pytest.fixture(scope="module")
def result(out: Path, tmp_path_factory: pytest.TempPathFactory) -> LoaderBench:
    """One round over mouth clips of different lengths, in this process except for crop."""
    videos = tmp_path_factory.mktemp("videos")
    for number in range(NUM_CLIPS):
        write_mouth(videos / f"{'abcde'[number] * 3}.mp4", 30 + 3 * number, seed=number)
    lines: list[str] = []
    return bench_loader(
        [videos], out, NUM_CLIPS, 1, lines.append,
        with_profile=True, seconds=0.01, catalogue_rows=2_000, training_epochs=2, run=here,
    )  # fmt: skip


@pytest.fixture(scope="module")
def material(out: Path, result: LoaderBench) -> Material:
    return Material(out / "material")


def here(task: Task, material: Material) -> Figures:
    """Runs in this process, training on one thread: a trial of thread counts takes longer than these epochs."""
    return figures(replace(task, threads=1), material)


def truth(material: Material) -> dict[str, tuple[np.ndarray, str]]:
    """Returns clip and label by clip_id, read with tarfile, numpy and json only."""
    clips, labels = {}, {}
    for shard in material.shards("raw"):
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                clip_id, _, extension = member.name.partition(".")
                if extension == "npy":
                    clips[clip_id] = np.load(io.BytesIO(file.read()), allow_pickle=False)
                else:
                    labels[clip_id] = json.loads(file.read())["label"]
    return {clip_id: (clip_THW, labels[clip_id]) for clip_id, clip_THW in clips.items()}


def clips_of(reader: Iterator[PaddedBatch]) -> dict[str, tuple[np.ndarray, str]]:
    found = {}
    for batch in reader:
        assert batch.video_BTHW.shape[1] == int(batch.num_frames_B.max())
        for position, clip_id in enumerate(batch.clip_ids):
            num_frames = int(batch.num_frames_B[position])
            assert clip_id not in found
            assert not batch.video_BTHW[position, num_frames:].any(), "padding is 0"
            clip_THW = batch.video_BTHW[position, :num_frames].numpy().copy()
            found[clip_id] = (clip_THW, batch.labels[position])
    return found


@pytest.mark.parametrize("name", RAW_READERS)
def test_every_reader_of_raw_clips_returns_the_same_pixels(material: Material, name: str) -> None:
    if name in PEERS and name not in installed_peers():
        pytest.skip(f"{name} is not installed")
    expected, read = truth(material), READERS[name](material, "raw", 0)
    for epoch in range(2):
        found = clips_of(read(epoch))
        assert found.keys() == expected.keys()
        for clip_id, (clip_THW, label) in expected.items():
            assert np.array_equal(found[clip_id][0], clip_THW)
            assert found[clip_id][1] == label


def test_threads_return_the_same_pixels(material: Material) -> None:
    expected, found = truth(material), clips_of(READERS["ours"](material, "raw", 1)(0))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[clip_id][0], expected[clip_id][0]) for clip_id in expected)


@pytest.mark.parametrize("name", ["webdataset", "litdata"])
def test_jpeg_by_others_and_opencv_equals_ours(material: Material, name: str) -> None:
    if name in PEERS and name not in installed_peers():
        pytest.skip(f"{name} is not installed")
    ours, theirs = (clips_of(READERS[reader](material, "jpeg", 0)(0)) for reader in ("ours", name))
    assert ours.keys() == theirs.keys() == truth(material).keys()
    for clip_id, (clip_THW, label) in ours.items():
        assert theirs[clip_id][1] == label
        assert np.abs(clip_THW.astype(int) - theirs[clip_id][0]).max() <= JPEG_DECODERS_DIFFER


def test_mp4_by_opencv_has_the_same_clips(material: Material) -> None:
    expected, found = truth(material), clips_of(READERS["mp4"](material, "raw", 0)(0))
    assert found.keys() == expected.keys()
    for clip_id, (clip_THW, label) in expected.items():
        assert found[clip_id][0].shape == clip_THW.shape
        assert found[clip_id][1] == label
        assert np.abs(clip_THW.astype(int) - found[clip_id][0]).mean() <= MP4_MEAN_ERROR


def test_a_tiny_run_gives_every_figure(result: LoaderBench, out: Path) -> None:
    assert (result.num_clips, result.mean_frames) == (NUM_CLIPS, 36.0)
    assert result.clips_per_s.keys() == speed_tasks(1.0).keys() == result.clips_per_cpu_s.keys()
    assert min(*result.clips_per_s.values(), *result.clips_per_cpu_s.values()) > 0
    assert tuple(result.codecs) == CODECS
    for codec, is_lossy in zip(CODECS, (False, True, True, False), strict=True):
        one = result.codecs[codec]
        assert min(one["kb_a_clip"], one["encoded_per_s"], one["decoded_per_s"]) > 0
        assert (one["mean_error"] > 0, one["max_error"] > 0) == (is_lossy, is_lossy)
    assert abs(result.codecs["raw"]["kb_a_clip"] - 36 * 96 * 96 / 1e3) < 1
    assert len(result.memory) == 4
    for one in result.memory.values():
        assert len(one["pass_mb"]) == loader_measure.MEMORY_PASSES
        assert one["peak_mb"] >= max(one["pass_mb"]) - 1
    assert result.catalogue["table_mb"] > 0
    assert len(result.training["data_wait"]) == 2
    assert all(0 <= share < 1 for share in result.training["data_wait"])
    assert "function calls" in result.profile
    written = json.loads((out / "results.json").read_text("utf-8"))
    assert written["ratios"].keys() == result.ratios().keys()
    assert all(math.isfinite(figure) for figure, _, _ in written["goals"].values())


def test_ratios_use_the_named_speeds(result: LoaderBench) -> None:
    speed, ratios = result.clips_per_s, result.ratios()
    assert ratios["raw, against plain webdataset"] == speed["ours, raw"] / speed["plain webdataset, raw"]
    assert ratios["jpeg, against mp4 by OpenCV"] == speed["ours, jpeg"] / speed["mp4 by OpenCV"]
    assert ratios["raw, 1 thread against 1 process"] == speed["ours, raw, 1 thread"] / speed["1 process, raw"]


def test_the_tables_have_every_figure_and_mark_missed_goals(result: LoaderBench) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    print_loader_bench(result, console)
    printed = console.export_text()
    assert all(name in printed for name in (*result.goals(), *result.ratios(), *result.clips_per_s, *CODECS))
    missed = [
        name
        for name, (figure, goal, sense) in result.goals().items()
        if (figure < goal if sense == "≥" else figure > goal)
    ]
    assert printed.count("missed") == len(missed)


def test_a_task_runs_in_a_fresh_process_on_one_core(material: Material) -> None:
    measured = run_in_fresh_process(Task("speed", seconds=0.01), material)
    assert measured["clips_per_s"] > 0
    assert measured["cores"] == 1


def test_a_reader_that_loses_a_clip_stops_the_benchmark(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(material: Material, codec: str, _: int) -> loader_measure.Reader:
        read = READERS["readinto_fresh"](material, codec, 0)
        return lambda epoch: iter(list(read(epoch))[1:])

    monkeypatch.setitem(READERS, "ours", forgetful)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="lost clips"):
        figures(Task("speed", seconds=0.01), material)


def test_the_median_of_the_rounds_is_reported(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([1.0, 100.0, 3.0])

    def run(task: Task, _: Material) -> Figures:
        assert task.kind == "speed"
        return {"clips_per_s": next(speeds)}

    from benchmarks.loader import _rounds

    medians = _rounds({"ours": Task("speed")}, Material(out), 3, run, lambda _: None)
    assert medians == {"ours": {"clips_per_s": 3.0}}


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="contains no video"):
        bench_loader([tmp_path], tmp_path / "out", 1, 1, lambda _: None, run=figures)
