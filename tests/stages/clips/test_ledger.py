"""Crop in several jobs: each its share, and the parts are one ledger again, byte for byte."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.params import load_params, params_text, recipe_text
from shards.errors import ConfigError, TableError
from stages import crop as crop_stage
from stages.clips import executors, ledger
from stages.clips.ledger import Merged, Part, merge
from stages.settings import CropParams
from tests.support import in_process
from tests.support.crop_runs import Run, clip_row, forked_workers, write_clips
from tests.support.videos import write_face, write_mouth

NUM_JOBS = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with seven clips of all kinds, whose tables and cache one job has written."""
    run = Run(tmp_path_factory.mktemp("made"))
    write_face(run.root / "face.mp4", 12)
    write_face(run.root / "other.mp4", 14)
    write_mouth(run.root / "mouth.mp4", 12)
    (run.root / "garbage.mp4").write_bytes(b"garbage" * 999)
    rows = [clip_row(name, f"{name}.mp4") for name in ("face", "nowhere", "other", "garbage")]
    rows += [clip_row("mouth", "mouth.mp4", media_kind="mouth"), clip_row("again", "face.mp4")]
    write_clips(run.folder / "clips.parquet", [*rows, clip_row("no_label", "face.mp4", label="")])
    with forked_workers():
        run(workers=1)
    return run.folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Iterator[Run]:
    """A copy of `made` with tables of its own, because they name its folder; its parts are not made yet."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    run = Run(tmp_path)
    with forked_workers():
        run(workers=1)
        yield run


def run_all_parts(run: Run) -> None:
    for index in range(NUM_JOBS):
        run(workers=1, part=Part(index, NUM_JOBS))


def parts_of(run: Run) -> list[str]:
    return sorted(path.name for path in run.folder.glob("*.part-*"))


def merged(run: Run, num_jobs: int | None = None, **changes: Any) -> Merged:
    names = ("clips", "crops", "tracks")
    return merge(CropParams(**changes), *(run.folder / f"{name}.parquet" for name in names), num_jobs)


def test_shares_are_disjoint_and_whole() -> None:
    for num_jobs in (1, 3, 12):
        shares = [Part(index, num_jobs).take(range(10)) for index in range(num_jobs)]
        assert sorted(row for share in shares for row in share) == [*range(10)]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("index", "num_jobs"), [(3, 3), (-1, 3), (0, 0)])
def test_a_job_that_does_not_exist(index: int, num_jobs: int) -> None:
    with pytest.raises(ConfigError, match=rf"--job-index must be .*--num-jobs {num_jobs} \(got {index}\)"):
        Part(index, num_jobs)


@pytest.mark.parametrize("num_jobs", [1, NUM_JOBS, 9])
def test_parts_join_to_the_tables_of_one_job(run: Run, num_jobs: int) -> None:
    """Nine jobs for seven clips: two have none."""
    whole = run.tables()
    (run.folder / "crops.parquet").unlink()
    for index in reversed(range(num_jobs)):
        run(workers=1, part=Part(index, num_jobs))
    assert len(parts_of(run)) == 2 * num_jobs
    assert not (run.folder / "crops.parquet").exists()
    assert str(merged(run)) == f"4 of 7 clips ok, joined from {num_jobs} parts"
    assert run.tables() == whole
    assert not parts_of(run)


def test_a_missing_part_is_named_and_nothing_is_touched(run: Run) -> None:
    whole = run.tables()
    for index in (0, 2):
        run(workers=1, part=Part(index, NUM_JOBS))
    before = parts_of(run)
    for num_jobs in (None, NUM_JOBS):
        with pytest.raises(TableError, match=r"crops\.part-0001-of-0003\.parquet.*--job-index 1$"):
            merged(run, num_jobs)
    (run.folder / "tracks.part-0002-of-0003.parquet").unlink()
    with pytest.raises(TableError, match=r"--job-index 1, 2$"):
        merged(run)
    assert parts_of(run) == [name for name in before if name != "tracks.part-0002-of-0003.parquet"]
    assert run.tables() == whole


def kill_at(monkeypatch: pytest.MonkeyPatch, module: Any, table: str) -> None:
    """The process ends, as if killed, where it would write this table."""
    write_table = module.write_table

    def write(path: Path, *arguments: Any) -> None:
        if path.name.startswith(table):
            raise KeyboardInterrupt
        write_table(path, *arguments)

    monkeypatch.setattr(module, "write_table", write)


@pytest.mark.parametrize("at", ["clips", "tracks", "crops"])
def test_a_job_killed_in_its_rerun_leaves_no_stale_part(
    run: Run, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run.tables()
    run_all_parts(run)
    with monkeypatch.context() as patch:
        if at == "clips":
            patch.setattr(executors, "_executor", None)
        else:
            kill_at(patch, crop_stage, at)
        with pytest.raises(TypeError if at == "clips" else KeyboardInterrupt):
            run(workers=1, part=Part(1, NUM_JOBS))
    with pytest.raises(TableError, match=r"--job-index 1$"):
        merged(run)
    run(workers=1, part=Part(1, NUM_JOBS))
    merged(run)
    assert run.tables() == whole


def test_a_part_whose_tracks_are_of_an_older_run(run: Run) -> None:
    whole = run.tables()
    face = run.root / "face.mp4"
    away = face.rename(run.root / "away.mp4")
    run(workers=1, part=Part(0, NUM_JOBS))
    old = (run.folder / "tracks.part-0000-of-0003.parquet").read_bytes()
    away.rename(face)
    run_all_parts(run)
    (run.folder / "tracks.part-0000-of-0003.parquet").write_bytes(old)
    with pytest.raises(TableError, match=r"tracks\.part-0000.*pipeline crop --num-jobs 3 --job-index 0$"):
        merged(run)
    assert run.tables() == whole
    assert len(parts_of(run)) == 2 * NUM_JOBS


@pytest.mark.parametrize("table", ["tracks", "crops"])
def test_merge_killed_at_a_table_leaves_no_mixed_pair(
    run: Run, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run.tables()
    run_all_parts(run)
    with monkeypatch.context() as patch:
        kill_at(patch, ledger, table)
        with pytest.raises(KeyboardInterrupt):
            merged(run)
    assert not (run.folder / "crops.parquet").exists()
    merged(run)
    assert run.tables() == whole


def test_merge_killed_while_it_removes_parts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run.tables()
    run_all_parts(run)
    removed = []
    unlink = Path.unlink

    def stops(path: Path, missing_ok: bool = False) -> None:
        if ".part-" in path.name:
            if len(removed) == 3:
                raise KeyboardInterrupt
            removed.append(path.name)
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stops)
        with pytest.raises(KeyboardInterrupt):
            merged(run)
    assert run.tables() == whole
    with pytest.raises(TableError, match=r"--job-index 0, 1$"):
        merged(run)
    for index in (0, 1):
        assert run(workers=1, part=Part(index, NUM_JOBS)).frames_made == 0
    merged(run)
    assert run.tables() == whole


def test_no_parts_at_all(run: Run) -> None:
    with pytest.raises(TableError, match="no parts"):
        merged(run)


def test_parts_of_two_splits_of_the_work(run: Run) -> None:
    for num_jobs in (1, 2):
        for index in range(num_jobs):
            run(workers=1, part=Part(index, num_jobs))
    with pytest.raises(TableError, match="of 1 and of 2 jobs"):
        merged(run)
    assert merged(run, 2).num_jobs == 2
    assert merged(run).num_jobs == 1


def test_parts_of_other_parameters_or_clips_are_refused(run: Run) -> None:
    run_all_parts(run)
    with pytest.raises(TableError, match=r"crops\.part-0000-of-0003\.parquet.*with other crop parameters"):
        merged(run, max_yaw_deg=44)
    assert merged(run, timeout_s=1).num_jobs == NUM_JOBS, "a limit of the machine is none of the result"
    run_all_parts(run)
    write_clips(run.folder / "clips.parquet", [clip_row("face", "face.mp4")])
    run(workers=1, part=Part(0, NUM_JOBS))
    with pytest.raises(TableError, match=r"crops\.part-0001-of-0003\.parquet, \S+crops\.part-0002-of-0003"):
        merged(run)
    assert len(parts_of(run)) == 2 * NUM_JOBS


def test_the_command(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(recipe_text("demo"), "utf-8")
    changes = {"corpus.root": "corpus", "machine.cache_dir": "cache"}
    changes |= {f"paths.{name}": f"{name}.parquet" for name in ("clips", "crops", "tracks")}
    file.write_text(params_text(load_params(file, flags=changes)), "utf-8")
    (tmp_path / "crops.parquet").unlink()

    def crop(*arguments: str) -> tuple[int, str]:
        done = in_process.pipeline(tmp_path, ["crop", *arguments])
        return done.returncode, done.stdout + done.stderr

    for wrong, message in (
        (("--job-index", "2", "--num-jobs", "2"), "--job-index must be 0 to 1 with --num-jobs 2"),
        (("--job-index", "0"), "must be given together"),
        (("--num-jobs", "2"), "must be given together"),
        (("--num-jobs", "0", "--job-index", "0"), "--num-jobs"),
        (("--merge", "--job-index", "0"), "remove --job-index"),
        (("--executor", "dask"), "machine.executor"),
    ):
        code, text = crop(*wrong)
        assert (code, message in text) == (2, True), text
    code, text = crop("--job-index", "0", "--num-jobs", "2")
    assert (code, "crops.part-0000-of-0002.parquet: 3 of 4 clips ok" in text) == (0, True), text
    code, text = crop("--merge")
    assert (code, "1 of 2 parts are missing" in text) == (1, True), text
    assert crop("--job-index", "1", "--num-jobs", "2")[0] == 0
    code, text = crop("--merge", "--num-jobs", "2")
    assert (code, "crops.parquet: 4 of 7 clips ok, joined from 2 parts" in text) == (0, True), text
    assert len(run.rows()) == 7
