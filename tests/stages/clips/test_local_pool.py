"""The pool of processes: what dies or hangs costs one clip, and nothing waits for it."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from shards.errors import MachineError
from shards.schema import Reason
from stages.clips import local_pool
from stages.clips.clip_work import Clip, Done
from stages.clips.local_pool import LocalPool


def some(*clip_ids: str) -> list[Clip]:
    return [Clip(name, "root", f"{name}.mp4", "face", "字", 1) for name in clip_ids]


def fine(clip: Clip) -> Done:
    return Done({"clip_id": clip.clip_id, "reason": None, "detail": str(os.getpid())}, None, from_cache=False)


def poisoned(clip: Clip) -> Done:
    """Some clips kill their process, some ask for more memory than there is, some hang."""
    if clip.clip_id.startswith("poison"):
        os.kill(os.getpid(), signal.SIGKILL)
    if clip.clip_id.startswith("huge"):
        raise MemoryError
    if clip.clip_id.startswith("hang"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        time.sleep(600)
    time.sleep(0.02)
    return fine(clip)


def buggy(clip: Clip) -> Done:
    assert clip.clip_id != "c", "a bug"
    return fine(clip)


def full_disk(clip: Clip) -> Done:
    raise OSError(errno.ENOSPC, "No space left on device", "cache/x")


class DiesAtStart:
    """Work whose very arrival kills the process that was started for it."""

    def __setstate__(self, state: object) -> None:
        os._exit(1)

    def __getstate__(self) -> tuple[int]:
        return (1,)

    def __call__(self, clip: Clip) -> Done:
        raise AssertionError("never arrives")


def run(
    work: Callable[[Clip], Done], clips: list[Clip], folder: Path, workers: int = 2, timeout_s: float = 60.0
) -> dict[str, dict[str, Any]]:
    with LocalPool(work, workers, timeout_s, folder / "native.log") as pool:
        rows = [(clip.clip_id, done.crop_row) for clip, done in pool.run(clips)]
    assert len(dict(rows)) == len(rows), "each clip once"
    return dict(rows)


def children() -> list[BaseProcess]:
    """Returns the living processes of pools, spawned or forked."""
    return multiprocessing.active_children()


def spawned() -> list[psutil.Process]:
    found = psutil.Process().children()
    return [child for child in found if "spawn_main" in " ".join(child.cmdline())]


def test_clips_are_shared_among_the_processes(tmp_path: Path) -> None:
    """In spawned processes, as in the product. Most other tests fork them: milliseconds instead of seconds each."""
    names = [f"clip{i}" for i in range(40)]
    with LocalPool(poisoned, 2, 60.0, tmp_path / "log") as pool:
        rows = []
        for _, done in pool.run(some(*names)):
            rows.append(done.crop_row)
            assert len(spawned()) == len(children()) <= 2
    assert sorted(row["clip_id"] for row in rows) == sorted(names)
    assert len({row["detail"] for row in rows}) == 2
    assert not children() and not spawned()


def test_no_more_processes_than_clips(tmp_path: Path, forked_workers: None) -> None:
    with LocalPool(fine, 8, 60.0, tmp_path / "log") as pool:
        for _ in pool.run(some("a")):
            assert len(children()) == 1
    assert run(fine, [], tmp_path) == {}


def test_what_dies_costs_one_clip_each_and_what_hangs_too(tmp_path: Path, forked_workers: None) -> None:
    names = [*"abcdefg", "poison1", "hang", *"hij", "huge", "poison2", *"klm"]
    start = time.monotonic()
    rows = run(poisoned, some(*names), tmp_path, timeout_s=4.0)
    assert time.monotonic() - start < 60
    assert sorted(rows) == sorted(names)
    assert {name: row["reason"] for name, row in rows.items() if row["reason"]} == {
        "poison1": Reason.CRASHED,
        "poison2": Reason.CRASHED,
        "huge": Reason.CRASHED,
        "hang": Reason.TIMEOUT,
    }
    assert "poison1.mp4" in rows["poison1"]["detail"]
    assert "crop.timeout_s" in rows["hang"]["detail"]
    assert not children()


def test_nothing_waits_for_a_clip_that_hangs(tmp_path: Path, forked_workers: None) -> None:
    """One process is lost to it for `timeout_s`; the other does all the rest meanwhile."""
    with LocalPool(poisoned, 2, 5.0, tmp_path / "log") as pool:
        order = [clip.clip_id for clip, _ in pool.run(some("hang", *"abcdef"))]
    assert order[-1] == "hang"
    assert sorted(order[:-1]) == [*"abcdef"]


def test_a_process_killed_from_outside_costs_nothing(tmp_path: Path, forked_workers: None) -> None:
    names = [f"clip{i}" for i in range(60)]
    rows = {}
    with LocalPool(poisoned, 2, 60.0, tmp_path / "log") as pool:
        for clip, done in pool.run(some(*names)):
            rows[clip.clip_id] = done.crop_row
            if len(rows) in (10, 30):
                children()[0].kill()
    assert sorted(rows) == sorted(names)
    assert not [name for name, row in rows.items() if row["reason"]]


def test_a_bug_ends_the_run_and_names_the_clip(tmp_path: Path, forked_workers: None) -> None:
    with pytest.raises(AssertionError, match="a bug") as caught:
        run(buggy, some("a", "b", "c"), tmp_path, workers=1)
    assert "while cropping clip c (c.mp4)" in caught.value.__notes__
    assert not children()


def test_an_error_of_the_machine_arrives_with_its_number(tmp_path: Path, forked_workers: None) -> None:
    with pytest.raises(OSError, match="cache/x") as caught:
        run(full_disk, some("a"), tmp_path)
    assert caught.value.errno == errno.ENOSPC


def test_the_ledger_tells_how_a_process_died(tmp_path: Path, forked_workers: None) -> None:
    rows = run(poisoned, some("poison", "huge"), tmp_path)
    assert "poison.mp4 (signal SIGKILL)" in rows["poison"]["detail"]
    assert "huge.mp4 (memory ran out)" in rows["huge"]["detail"]


def test_where_memory_is_limited_clips_that_die_one_after_the_other_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked_workers: None
) -> None:
    """A ledger of crashed clips, and exit code 0, would hide that the limit is too low for any."""
    names = ("huge1", "huge2", "huge3", "huge4")
    assert {row["reason"] for row in run(poisoned, some(*names), tmp_path).values()} == {Reason.CRASHED}
    monkeypatch.setattr(local_pool, "limit_bytes", lambda: 1 << 30)
    with pytest.raises(MachineError, match=r"3 clips in a row: .*huge3\.mp4.*\(memory ran out\).*ulimit -v"):
        run(poisoned, some(*names), tmp_path, workers=1)
    rows = run(poisoned, some("huge1", "huge2", "a"), tmp_path)
    assert [rows[name]["reason"] for name in ("huge1", "huge2", "a")] == [Reason.CRASHED] * 2 + [None]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_processes_that_cannot_even_start_are_no_clips_fault(tmp_path: Path, forked_workers: None) -> None:
    with pytest.raises(
        MachineError, match=r"\(exit code 1\); if memory is short.*ulimit -v.*pipeline doctor"
    ):
        run(DiesAtStart(), some("a", "b"), tmp_path)


def test_a_process_that_never_gets_ready_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_pool, "START_TIMEOUT_S", 0.0)
    with pytest.raises(MachineError, match="before they read a clip"):
        run(fine, some("a"), tmp_path)


def test_a_pool_left_early_takes_its_processes_along(tmp_path: Path, forked_workers: None) -> None:
    start = time.monotonic()
    with LocalPool(poisoned, 2, 600.0, tmp_path / "log") as pool:
        for clip, _ in pool.run(some("hang", "a", "b")):
            assert clip.clip_id == "a"
            break
    assert not children()
    assert time.monotonic() - start < 20


def test_processes_are_kept_from_one_run_to_the_next(tmp_path: Path, forked_workers: None) -> None:
    """A Ray worker hands its process one clip after the other."""
    with LocalPool(poisoned, 1, 60.0, tmp_path / "log") as pool:
        first = [done.crop_row["detail"] for _, done in pool.run(some("a", "b"))]
        second = [done.crop_row["detail"] for _, done in pool.run(some("c"))]
        crashed = [done.crop_row["reason"] for _, done in pool.run(some("poison"))]
        third = [done.crop_row["reason"] for _, done in pool.run(some("d"))]
    assert len({*first, *second}) == 1
    assert (crashed, third) == ([Reason.CRASHED], [None])


def test_the_note_tells_the_line_of_the_fault(tmp_path: Path, forked_workers: None) -> None:
    with pytest.raises(AssertionError, match="a bug") as caught:
        run(buggy, some("c"), tmp_path)
    message = "\n".join(caught.value.__notes__)
    assert 'assert clip.clip_id != "c"' in message
    assert f"{Path(__file__).name}" in message


class Picky(Exception):
    """Can be packed, and fails to be made anew."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def unsendable(clip: Clip) -> Done:
    if clip.clip_id == "error":
        raise Picky("this", "that")
    if clip.clip_id == "closure":
        error = ValueError("with a lambda")
        error.why = lambda: None  # type: ignore[attr-defined]
        raise error
    return Done({"clip_id": clip.clip_id, "why": lambda: None}, None, from_cache=False)


@pytest.mark.parametrize(
    ("name", "message"), [("error", "this and that"), ("closure", "with a lambda"), ("row", "lambda")]
)
def test_an_answer_that_cannot_be_sent_is_a_bug_and_no_crash_of_the_clip(
    tmp_path: Path, name: str, message: str, forked_workers: None
) -> None:
    with pytest.raises(RuntimeError, match=message) as caught:
        run(unsendable, some(name), tmp_path)
    notes = "\n".join(caught.value.__notes__)
    assert f"while cropping clip {name} ({name}.mp4)" in notes
    assert name == "row" or "in unsendable" in notes


def signals_held(clip: Clip) -> Done:
    held = str(int(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])))
    return Done({"clip_id": clip.clip_id, "reason": None, "detail": held}, None, from_cache=False)


def test_not_even_the_first_process_hears_ctrl_c(tmp_path: Path) -> None:
    """In a process of its own: the first one that is spawned starts Python's resource tracker."""
    code = (
        "from pathlib import Path\n"
        "from tests.stages.clips.test_local_pool import run, signals_held, some\n"
        f"print(run(signals_held, some('a'), Path({str(tmp_path)!r}), workers=1)['a']['detail'])"
    )
    folder = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.stdout == "1\n", done.stderr
