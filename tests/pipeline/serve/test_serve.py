"""The server of `pipeline serve`, asked over HTTP; its page in a browser is in test_serve_page.py."""

import base64
import json
import math
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import cv2
import httpx
import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.inference.text_of_video import VideoReading
from pipeline.serve import upload
from pipeline.serve.limits import Limits
from pipeline.serve.plain_words import refusal
from pipeline.serve.run import listening
from pipeline.serve.worker import ReadingWorker, mouth_of
from shards.errors import CheckpointError, ConfigError, MachineError
from shards.schema import Reason
from tests.conftest import OnSmallDisk
from tests.support.crops import crop_like
from tests.support.serving import (
    DIES,
    HANGS,
    IS_SLOW,
    PATIENCE_S,
    SAID,
    SLOW_S,
    Serving,
    no_reader,
    pipeline_serve,
    post,
    serve_command,
    served,
    speaking_checkpoint,
    until,
)
from tests.support.videos import write_audio, write_mouth

ROOT = Path(__file__).parents[3]
LINES = {"Accept": "application/x-ndjson"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """Ready mouth clips by their number of frames."""
    folder = tmp_path_factory.mktemp("videos")
    lengths = (25, HANGS, DIES, IS_SLOW, 75)
    return {n: write_mouth(folder / f"{n}.mp4", n).read_bytes() for n in lengths}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with served(
        tmp_path_factory.mktemp("cache"), max_upload_mb=0.3, max_video_s=2.0, timeout_s=5.0
    ) as server:
        yield server


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that temporary files of this process go to."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def events(server: Serving, content: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in post(server, content, headers=LINES).text.splitlines()]


def worker_of(server: Serving) -> psutil.Process:
    """The process that reads; this one is its parent."""
    (worker,) = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
    return worker


def test_a_reading_is_what_inference_says_with_mouth_and_time(
    server: Serving, videos: dict[int, bytes]
) -> None:
    answer = post(server, videos[25], "我.mp4")
    assert answer.status_code == 200
    read = answer.json()
    assert read.keys() == {field.name for field in fields(VideoReading)} | {"mouth", "mouth_fps", "seconds"}
    assert (read["path"], read["text"], read["reason"], read["num_frames"]) == ("我.mp4", SAID, None, 25)
    assert read["confidence"] == pytest.approx(math.exp(-0.25))
    (segment,) = read["segments"]
    assert [one["text"] for one in segment["candidates"]] == [SAID, "你好<b>四界"]
    assert [one["share"] for one in segment["candidates"]] == pytest.approx([0.7311, 0.2689], abs=1e-4)
    assert read["seconds"].keys() == {"upload", "waiting", "mouth", "reading"}
    assert all(0 <= seconds < PATIENCE_S for seconds in read["seconds"].values())
    kind, _, payload = read["mouth"].partition(",")
    assert kind == "data:image/jpeg;base64"
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(payload), np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None and picture.shape == (96, 13 * 96)
    assert read["mouth_fps"] == 12.5


def test_the_strip_shows_the_clips_own_frames() -> None:
    clip_THW = crop_like(200)
    mouth = mouth_of(clip_THW, 25.0)
    payload = base64.b64decode(mouth.strip.partition(",")[2])
    strip = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_UNCHANGED)
    assert strip is not None
    shown_THW = np.stack(np.hsplit(strip, strip.shape[1] // 96))
    assert len(shown_THW) == 50 and mouth.fps == 12.5
    assert np.abs(shown_THW.astype(int) - clip_THW[:100:2]).mean() < 3
    assert mouth_of(clip_THW[:1], 30.0).fps == 15.0


def test_events_come_in_their_order(server: Serving, videos: dict[int, bytes]) -> None:
    told = events(server, videos[25])
    assert [event["state"] for event in told] == ["started", "mouth", "done"]
    assert told[1]["mouth"] == told[2]["mouth"]


def test_health_tells_the_limits(server: Serving) -> None:
    health = httpx.get(f"{server.url}/api/health").json()
    assert (health["status"], health["model"], health["num_videos"]) == ("ok", "fake.pt", 0)
    assert health["limits"] == asdict(Limits(max_upload_mb=0.3, max_video_s=2.0, timeout_s=5.0))


def test_what_is_no_video_is_told_plainly_and_the_server_lives_on(
    server: Serving, videos: dict[int, bytes], tmp_path: Path
) -> None:
    for content, reason in (
        (b"<html>" * 100, "unreadable"),
        (b"", "unreadable"),
        (videos[75][:2000], "unreadable"),
        (write_audio(tmp_path / "sound.wav").read_bytes(), "no_video"),
        (write_mouth(tmp_path / "short.mp4", 3).read_bytes(), "too_short"),
    ):
        answer = post(server, content, "../../etc/holiday.mp4")
        told = answer.json()
        assert (answer.status_code, told["reason"]) == (422, reason)
        assert told["message"] == refusal(reason, Limits()).message
        # called as its owner calls it, without the folders, and never by a path of the server's
        assert "/proc" not in told["detail"] and "etc" not in told["detail"]
        assert reason == "too_short" or told["detail"].startswith("holiday.mp4 ")
    assert post(server, videos[25]).status_code == 200


def test_every_reason_has_plain_words() -> None:
    never_met = {Reason.MISSING_FILE, Reason.UNSAFE_PATH, Reason.EMPTY_TEXT, Reason.LABEL_TOO_LONG}
    unknown = refusal("no such", Limits()).message
    assert {reason for reason in Reason if refusal(reason, Limits()).message == unknown} == never_met


@pytest.mark.parametrize(
    "request_",
    [
        {"content": b"hello"},
        {"data": {"video": "text"}},
        {"files": {"clip": ("a.mp4", b"abc")}},
        {"files": [("video", ("a.mp4", b"abc")), ("video", ("b.mp4", b"abc"))]},
        {"content": b"--x\r\nrubbish", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"content": b"rubbish", "headers": {"Content-Type": "multipart/form-data"}},
    ],
)  # fmt: skip
def test_a_request_without_a_video_is_refused(server: Serving, request_: dict[str, object]) -> None:
    answer = httpx.post(f"{server.url}/api/read", **request_)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["reason"]) == (400, "bad_request")


def test_too_large_is_told_before_it_is_all_here(server: Serving, temporary: Path) -> None:
    assert post(server, bytes(400_000)).status_code == 413
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'
        while sent < 200_000_000:
            sent += 50_000
            yield bytes(50_000)

    # its length is not announced; what is sent after the answer may meet a closed door
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    try:
        answer = httpx.post(f"{server.url}/api/read", content=endless(), headers=headers, timeout=PATIENCE_S)
        assert (answer.status_code, answer.json()["reason"]) == (413, "too_large")
        assert "at most 0.3 MB" in answer.json()["message"]
    except httpx.WriteError:
        pass
    assert sent < 100_000_000
    assert list(temporary.iterdir()) == []


def test_too_long_is_told(server: Serving, videos: dict[int, bytes]) -> None:
    answer = post(server, videos[75])
    assert (answer.status_code, answer.json()["reason"]) == (413, "oversized")
    assert "at most 2 s" in answer.json()["message"]


def test_videos_are_read_one_after_the_other(server: Serving, videos: dict[int, bytes]) -> None:
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(events, server, videos[IS_SLOW])
        until(lambda: httpx.get(f"{server.url}/api/health").json()["num_videos"] == 1)
        others = [pool.submit(events, server, videos[25]) for _ in range(2)]
        assert first.result()[-1]["state"] == "done"
        told = [other.result() for other in others]
    waited = [[event["num_before"] for event in one if event["state"] == "waiting"] for one in told]
    assert sorted(waited) == [[1], [2, 1]]
    for one in told:
        assert one[-1]["text"] == SAID
        assert 0 < one[-1]["seconds"]["waiting"] < SLOW_S + 5  # type: ignore[index]


def test_a_full_line_says_so(tmp_path: Path, videos: dict[int, bytes]) -> None:
    with served(tmp_path, max_places=1) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, server, videos[IS_SLOW])
        until(lambda: httpx.get(f"{server.url}/api/health").json()["num_videos"] == 1)
        refused = post(server, videos[25])
        assert (refused.status_code, refused.json()["reason"]) == (503, "busy")
        assert int(refused.headers["Retry-After"]) > 0
        assert first.result().status_code == 200
        assert post(server, videos[25]).status_code == 200


@pytest.mark.parametrize("headers", [{}, LINES])
def test_who_leaves_gives_the_place_back(
    server: Serving, videos: dict[int, bytes], headers: dict[str, str]
) -> None:
    num_videos = lambda: httpx.get(f"{server.url}/api/health").json()["num_videos"]  # noqa: E731
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, server, videos[IS_SLOW])
        until(lambda: num_videos() == 1)
        impatient = pool.submit(
            httpx.post, f"{server.url}/api/read", files={"video": videos[25]}, headers=headers, timeout=0.4
        )
        assert isinstance(impatient.exception(), httpx.ReadTimeout | type(None))
        assert first.result().status_code == 200
    until(lambda: num_videos() == 0)


@pytest.mark.parametrize(("length", "status", "reason"), [(DIES, 500, "crashed"), (HANGS, 504, "timeout")])
def test_a_video_that_ends_or_holds_the_reader_costs_only_itself(
    server: Serving, videos: dict[int, bytes], temporary: Path, length: int, status: int, reason: str
) -> None:
    with ThreadPoolExecutor(2) as pool:
        bad = pool.submit(post, server, videos[length])
        good = pool.submit(post, server, videos[25])
        assert (bad.result().status_code, bad.result().json()["reason"]) == (status, reason)
        assert good.result().status_code == 200
    assert list(temporary.iterdir()) == []


def test_a_reader_killed_from_outside_costs_the_video_that_it_reads(
    server: Serving, videos: dict[int, bytes], temporary: Path
) -> None:
    with ThreadPoolExecutor(1) as pool:
        bad = pool.submit(post, server, videos[HANGS])
        until(lambda: httpx.get(f"{server.url}/api/health").json()["num_videos"] == 1)
        time.sleep(0.3)
        # while it is being read, the video has no name that could stay
        assert list(temporary.iterdir()) == []
        worker_of(server).kill()
        assert bad.result().json()["reason"] == "crashed"
    assert post(server, videos[25]).status_code == 200
    # one that is found dead at rest costs nothing
    worker = worker_of(server)
    worker.kill()
    until(lambda: worker.status() == psutil.STATUS_ZOMBIE)
    assert post(server, videos[25]).status_code == 200
    assert list(temporary.iterdir()) == []


def test_without_proc_the_video_has_a_name_and_loses_it(
    server: Serving, videos: dict[int, bytes], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "_OWN_FILES", Path("/nowhere"))
    with ThreadPoolExecutor(1) as pool:
        bad = pool.submit(post, server, videos[HANGS])
        until(lambda: len(list(temporary.iterdir())) == 1)
        time.sleep(0.3)
        worker_of(server).kill()
        assert bad.result().json()["reason"] == "crashed"
    assert post(server, videos[25]).json()["text"] == SAID
    assert list(temporary.iterdir()) == []


def test_a_model_that_cannot_be_opened_is_told(server: Serving) -> None:
    worker = ReadingWorker(no_reader, server.worker._params, 1.0)
    worker.start()
    with pytest.raises(CheckpointError, match="damaged"):
        worker.wait_ready()
    worker.close()


def test_a_read_only_cache_is_one_message(tmp_path: Path, on_small_disk: OnSmallDisk) -> None:
    """A real one; the process that reads finds it out."""
    small, command = tmp_path / "small", serve_command(tmp_path / "none.pt", "--port", "0")
    read_only = ["sh", "-c", 'mount -o remount,ro "$0" && exec "$@"', str(small)]
    options = ["--set", f"machine.cache_dir={small / 'cache'}"]
    done = on_small_disk(small, "1m", [*read_only, *command, *options], ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    opening, told = done.stderr.splitlines()
    assert opening.startswith("pipeline: opening ")
    place = re.escape(str(small / "cache" / "native.log"))
    assert re.fullmatch(
        rf"pipeline: machine\.cache_dir: {place} cannot be written \(Read-only file system\); .*", told
    )


def test_a_process_that_dies_while_it_opens_the_model_is_one_message(server: Serving) -> None:
    worker = ReadingWorker(partial(os._exit, 3), server.worker._params, 1.0)
    worker.start()
    with pytest.raises(
        MachineError, match=r"ended while it opened the model; `pipeline doctor` .*native\.log"
    ):
        worker.wait_ready()
    worker.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaking_checkpoint(tmp_path_factory.mktemp("checkpoint"), "一")


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_server_leaves_nothing(
    checkpoint: Path, tmp_path: Path, videos: dict[int, bytes], way: signal.Signals
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with pipeline_serve(checkpoint, tmp_path, environment={"TMPDIR": str(temporary)}) as (process, url):
        read = httpx.post(f"{url}/api/read", files={"video": videos[25]}, timeout=PATIENCE_S)
        assert (read.status_code, read.json()["text"]) == (200, "一")
        candidates = read.json()["segments"][0]["candidates"]
        assert candidates[0]["text"] == "一" and len(candidates) > 1
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        meanwhile: list[object] = []
        # a video at the reader, which stands still, and one behind it
        (worker,) = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        worker.suspend()
        threads = [threading.Thread(target=_told_of, args=(meanwhile, url, videos[25])) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: httpx.get(f"{url}/api/health").json()["num_videos"] == 2)
        if way == signal.SIGKILL:
            worker.resume()
        process.send_signal(way)
        code = process.wait(20)
        for thread in threads:
            thread.join(20)
    assert code == (-signal.SIGKILL if way == signal.SIGKILL else 0)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert list(temporary.iterdir()) == []
    if way != signal.SIGKILL:
        assert meanwhile == ["stopping", "stopping"]


def _told_of(told: list[object], url: str, content: bytes) -> None:
    try:
        answer = httpx.post(f"{url}/api/read", files={"video": content}, timeout=PATIENCE_S)
        told.append(answer.json()["reason"])
    except httpx.HTTPError as error:
        told.append(error)


def test_what_is_wrong_at_the_start_is_told(tmp_path: Path, server: Serving) -> None:
    command = serve_command(tmp_path / "none.pt", "--port", "0", "--set", f"machine.cache_dir={tmp_path}")
    missing = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert (missing.returncode, missing.stdout) == (1, "") and "none.pt" in missing.stderr
    with (
        pytest.raises(ConfigError, match=f"--port {server.port}: cannot listen"),
        listening("127.0.0.1", server.port),
    ):
        pass


def test_flags_that_exclude_each_other_and_a_missing_extra_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    both = CliRunner().invoke(app, ["serve", "--checkpoint", "a.pt", "--onnx", "b.onnx"])
    assert isinstance(both.exception, ConfigError) and "are two models; give one" in str(both.exception)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else name)
    lacking = CliRunner().invoke(app, ["serve"])
    assert isinstance(lacking.exception, ConfigError)
    assert "needs uvicorn; install them: pip install 'lip-pipeline[serve]'" in str(lacking.exception)


@pytest.mark.parametrize("verb", [["serve"], ["inference", str(ROOT / "README.md")], ["live"]])
def test_a_file_given_as_an_onnx_model_is_never_called_a_checkpoint(tmp_path: Path, verb: list[str]) -> None:
    """By its name it would be read as one, whatever the option says."""
    (tmp_path / "model.bin").write_bytes(b"no model")
    refused = CliRunner().invoke(
        app, [*verb, "--onnx", str(tmp_path / "model.bin"), "--params", str(ROOT / "params.yaml")]
    )
    assert isinstance(refused.exception, ConfigError)
    assert str(refused.exception).startswith(
        f"--onnx: {tmp_path / 'model.bin'} is no ONNX model by its name, which must end in .onnx; rename it"
    )


@pytest.mark.parametrize(("host", "is_open"), [("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)])
def test_a_host_that_lets_others_in_is_warned_of(
    capsys: pytest.CaptureFixture[str], host: str, is_open: bool
) -> None:
    with listening(host, 0) as listener:
        assert listener.getsockname()[1] > 0
    assert ("everyone who can reach this machine" in capsys.readouterr().err) is is_open
