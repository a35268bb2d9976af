"""The server of `pipeline serve` over HTTP; its page in a browser is in test_serve_page.py."""

import base64
import json
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import cv2
import httpx
import jsonschema
import numpy as np
import psutil
import pytest

from pipeline.inference.text_of_video import VideoReading
from pipeline.serve import uploads
from pipeline.serve.refusals import Limits, refusal
from pipeline.serve.worker import ReadingWorker, mouth_of
from shards.errors import CheckpointError, MachineError
from shards.schema import Reason
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
    post,
    served,
    until,
)
from tests.support.videos import write_audio, write_mouth

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads((ROOT / "docs/reading.schema.json").read_text("utf-8"))
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
    """The folder for temporary files of this process."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def events(server: Serving, content: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in post(server, content, headers=LINES).text.splitlines()]


def worker_of(server: Serving) -> psutil.Process:
    """Returns the worker process."""
    process = server.worker._process
    assert process is not None
    return psutil.Process(process.process.pid)


def test_a_reading_has_the_keys_of_inference_plus_mouth_and_times(
    server: Serving, videos: dict[int, bytes]
) -> None:
    answer = post(server, videos[25], "我.mp4")
    assert answer.status_code == 200
    read = answer.json()
    ours = {"version", "captions", "mouth", "mouth_fps", "seconds"}
    assert read.keys() == {field.name for field in fields(VideoReading)} | ours
    jsonschema.validate({key: read[key] for key in read.keys() - (ours - {"version"})}, SCHEMA)
    assert [one["confidence"] for one in read["segments"][0]["characters"]] == [0.9, 0.8, 0.3, 0.7]
    assert read["captions"].keys() == {"srt", "vtt"}
    assert SAID in read["captions"]["srt"] and "<00:00:00.250>" in read["captions"]["vtt"]
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


def test_events_come_in_order(server: Serving, videos: dict[int, bytes]) -> None:
    started, mouth, done = events(server, videos[25])
    assert [event["state"] for event in (started, mouth, done)] == ["started", "mouth", "done"]
    assert mouth["mouth"] == done["mouth"]


def test_health_has_the_limits(server: Serving) -> None:
    health = httpx.get(f"{server.url}/api/health").json()
    assert (health["status"], health["model"], health["num_videos"]) == ("ok", "fake.pt", 0)
    assert health["limits"] == asdict(Limits(max_upload_mb=0.3, max_video_s=2.0, timeout_s=5.0))


def test_a_file_that_is_not_a_video_gets_a_plain_message_and_the_server_continues(
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
        refused = answer.json()
        assert (answer.status_code, refused["reason"]) == (422, reason)
        assert refused["message"] == refusal(reason, Limits()).message
        # the detail has the user's file name without folders, and no path of the server
        assert "/proc" not in refused["detail"] and "etc" not in refused["detail"]
        assert reason == "too_short" or refused["detail"].startswith("holiday.mp4 ")
    assert post(server, videos[25]).status_code == 200


def test_every_reason_has_a_plain_message() -> None:
    unused = {Reason.MISSING_FILE, Reason.UNSAFE_PATH, Reason.EMPTY_TEXT, Reason.LABEL_TOO_LONG}
    unknown = refusal("no such", Limits()).message
    assert {reason for reason in Reason if refusal(reason, Limits()).message == unknown} == unused


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


def test_a_too_large_upload_is_refused_before_it_is_complete(server: Serving, temporary: Path) -> None:
    assert post(server, bytes(400_000)).status_code == 413
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'
        while sent < 200_000_000:
            sent += 50_000
            yield bytes(50_000)

    # its length is not announced; the server may close the connection after its answer
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    try:
        answer = httpx.post(f"{server.url}/api/read", content=endless(), headers=headers, timeout=PATIENCE_S)
        assert (answer.status_code, answer.json()["reason"]) == (413, "too_large")
        assert "at most 0.3 MB" in answer.json()["message"]
    except httpx.WriteError:
        pass
    assert sent < 100_000_000
    assert list(temporary.iterdir()) == []


def test_a_too_long_video_is_refused(server: Serving, videos: dict[int, bytes]) -> None:
    answer = post(server, videos[75])
    assert (answer.status_code, answer.json()["reason"]) == (413, "oversized")
    assert "at most 2 s" in answer.json()["message"]


def test_videos_are_read_one_after_the_other(server: Serving, videos: dict[int, bytes]) -> None:
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(events, server, videos[IS_SLOW])
        until(lambda: httpx.get(f"{server.url}/api/health").json()["num_videos"] == 1)
        others = [pool.submit(events, server, videos[25]) for _ in range(2)]
        assert first.result()[-1]["state"] == "done"
        answers = [other.result() for other in others]
    waited = [[event["num_before"] for event in one if event["state"] == "waiting"] for one in answers]
    assert sorted(waited) == [[1], [2, 1]]
    for one in answers:
        assert one[-1]["text"] == SAID
        assert 0 < one[-1]["seconds"]["waiting"] < SLOW_S + 5  # type: ignore[index]


def test_a_full_queue_says_so(tmp_path: Path, videos: dict[int, bytes]) -> None:
    with served(tmp_path, max_places=1) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, server, videos[IS_SLOW])
        until(lambda: httpx.get(f"{server.url}/api/health").json()["num_videos"] == 1)
        refused = post(server, videos[25])
        assert (refused.status_code, refused.json()["reason"]) == (503, "busy")
        assert int(refused.headers["Retry-After"]) > 0
        assert first.result().status_code == 200
        assert post(server, videos[25]).status_code == 200


@pytest.mark.parametrize("headers", [{}, LINES])
def test_a_client_that_leaves_gives_its_place_back(
    server: Serving, videos: dict[int, bytes], headers: dict[str, str]
) -> None:
    num_videos = lambda: httpx.get(f"{server.url}/api/health").json()["num_videos"]  # noqa: E731
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, server, videos[IS_SLOW])
        until(lambda: num_videos() == 1)
        leaving = pool.submit(
            httpx.post, f"{server.url}/api/read", files={"video": videos[25]}, headers=headers, timeout=0.4
        )
        assert isinstance(leaving.exception(), httpx.ReadTimeout | type(None))
        assert first.result().status_code == 200
    until(lambda: num_videos() == 0)


@pytest.mark.parametrize(("length", "status", "reason"), [(DIES, 500, "crashed"), (HANGS, 504, "timeout")])
def test_a_video_that_kills_or_blocks_the_reader_costs_only_itself(
    server: Serving, videos: dict[int, bytes], temporary: Path, length: int, status: int, reason: str
) -> None:
    with ThreadPoolExecutor(2) as pool:
        bad = pool.submit(post, server, videos[length])
        good = pool.submit(post, server, videos[25])
        assert (bad.result().status_code, bad.result().json()["reason"]) == (status, reason)
        assert good.result().status_code == 200
    assert list(temporary.iterdir()) == []


def test_a_reader_killed_from_outside_costs_only_its_current_video(
    server: Serving, videos: dict[int, bytes], temporary: Path
) -> None:
    with ThreadPoolExecutor(1) as pool:
        bad = pool.submit(post, server, videos[HANGS])
        until(lambda: httpx.get(f"{server.url}/api/health").json()["num_videos"] == 1)
        time.sleep(0.3)
        # during the reading the video has no name that could remain
        assert list(temporary.iterdir()) == []
        worker_of(server).kill()
        assert bad.result().json()["reason"] == "crashed"
    assert post(server, videos[25]).status_code == 200
    # a reader that dies while idle costs nothing
    worker = worker_of(server)
    worker.kill()
    until(lambda: not worker.is_running())
    assert post(server, videos[25]).status_code == 200
    assert list(temporary.iterdir()) == []


def test_without_proc_the_video_has_a_named_file_that_is_removed(
    server: Serving, videos: dict[int, bytes], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_OWN_FILES", Path("/nowhere"))
    with ThreadPoolExecutor(1) as pool:
        bad = pool.submit(post, server, videos[HANGS])
        until(lambda: len(list(temporary.iterdir())) == 1)
        time.sleep(0.3)
        worker_of(server).kill()
        assert bad.result().json()["reason"] == "crashed"
    assert post(server, videos[25]).json()["text"] == SAID
    assert list(temporary.iterdir()) == []


def test_a_model_that_cannot_be_opened_is_reported(server: Serving) -> None:
    worker = ReadingWorker(no_reader, server.worker._params, 1.0)
    worker.start()
    with pytest.raises(CheckpointError, match="damaged"):
        worker.wait_ready()
    worker.close()


def test_a_process_that_dies_while_it_opens_the_model_is_one_message(server: Serving) -> None:
    worker = ReadingWorker(partial(os._exit, 3), server.worker._params, 1.0)
    worker.start()
    with pytest.raises(
        MachineError, match=r"ended while it opened the model.*; run `pipeline doctor` .*native\.log"
    ):
        worker.wait_ready()
    worker.close()
