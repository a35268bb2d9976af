"""Clients that send slowly or not at all, or do not read, must not block `pipeline serve` for others."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.serving import (
    SAID,
    Serving,
    answer_on,
    connect,
    form_of,
    num_videos,
    post,
    request_head,
    served,
    until,
)
from tests.support.videos import write_mouth, write_video

PAUSE_S, SLOWEST_KB_S = 0.8, 40.0
PART_HEAD = form_of(b"").removesuffix(b"\r\n--x--\r\n")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    cache = tmp_path_factory.mktemp("cache")
    with served(cache, max_upload_mb=8, pause_s=PAUSE_S, slowest_kb_s=SLOWEST_KB_S) as server:
        yield server


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_mouth(tmp_path_factory.mktemp("videos") / "me.mp4", 25).read_bytes()


def unnamed_files() -> list[str]:
    """Returns the open files of this process without a name, which store uploads."""
    links = []
    for number in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(number.readlink()))
        except FileNotFoundError:
            continue
    return [link for link in links if link.endswith(" (deleted)") and "/memfd:" not in link]


def test_stalled_uploads_make_room_and_leave_no_file(server: Serving, video: bytes) -> None:
    before = unnamed_files()
    stalled = [connect(server) for _ in range(8)]
    for connection in stalled:
        # more than stays in memory
        connection.sendall(request_head(7_000_000) + PART_HEAD + bytes(1_500_000))
    until(lambda: num_videos(server) == 8)
    assert post(server, video).json()["reason"] == "busy"
    assert len(unnamed_files()) == len(before) + 8
    started_s = time.monotonic()
    for connection in stalled:
        answer = answer_on(connection)
        assert (answer.status_code, answer.json()["reason"]) == (408, "slow_upload")
        assert "slower than 40 kB per second" in answer.json()["message"]
        connection.close()
    assert time.monotonic() - started_s < 5 * PAUSE_S
    assert num_videos(server) == 0
    assert unnamed_files() == before
    assert post(server, video).json()["text"] == SAID


@pytest.mark.parametrize("length", [7_000_000, None])
def test_a_slow_upload_without_pauses_is_stopped(server: Serving, length: int | None) -> None:
    """At a quarter of the slowest speed, with an announced length, and in chunks without one."""
    with connect(server) as connection:
        connection.sendall(request_head(length))
        piece = bytes(500) if length else b"1f4\r\n" + bytes(500) + b"\r\n"
        started_s, is_answered = time.monotonic(), threading.Event()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(answer_on, connection)
            answer.add_done_callback(lambda _: is_answered.set())
            try:
                connection.sendall(PART_HEAD if length else b"%x\r\n%s\r\n" % (len(PART_HEAD), PART_HEAD))
                while not is_answered.wait(0.05) and time.monotonic() < started_s + 20:
                    connection.sendall(piece)
            except OSError:
                pass  # the server closed the connection
            took_s = time.monotonic() - started_s
            assert answer.result().status_code == 408
    assert PAUSE_S <= took_s < 6 * PAUSE_S
    assert num_videos(server) == 0


def test_a_slow_but_allowed_upload_is_read(server: Serving, video: bytes) -> None:
    """At three times the slowest speed, longer than `pause_s`, with a halt shorter than `pause_s`."""
    padded = video + bytes(int(3e3 * SLOWEST_KB_S * 2 * PAUSE_S))  # an MP4 may be followed by anything
    body, step = form_of(padded), int(3e3 * SLOWEST_KB_S * 0.05)
    started_s = time.monotonic()
    with connect(server) as connection:
        connection.sendall(request_head(len(body), "Connection: close"))
        for number, begin in enumerate(range(0, len(body), step)):
            connection.sendall(body[begin : begin + step])
            time.sleep(PAUSE_S / 2 if number == 3 else 0.05)
        assert time.monotonic() - started_s > 2 * PAUSE_S
        answer = answer_on(connection)
    assert (answer.status_code, answer.json()["text"]) == (200, SAID)


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: "])
def test_a_request_head_without_an_end_closes_the_connection(server: Serving, said: bytes) -> None:
    """Also if a byte comes now and then, and after a complete request."""
    for earlier in (b"", b"GET /api/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"):
        with connect(server) as connection:
            started_s = time.monotonic()
            connection.sendall(earlier + said)
            connection.settimeout(0.1)
            while time.monotonic() < started_s + 10:
                try:
                    if said:
                        connection.sendall(b"a")
                    if not connection.recv(65_536):
                        break
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
            assert PAUSE_S / 2 < time.monotonic() - started_s < 5 * PAUSE_S


def test_a_client_that_does_not_read_does_not_block_the_queue(
    server: Serving, video: bytes, tmp_path: Path
) -> None:
    """Many requests on one connection, until no buffer holds their answers."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (96, 96, 3), np.uint8) for _ in range(110)]
    body = form_of(write_video(tmp_path / "noise.mp4", noise, options={"crf": "30"}).read_bytes())
    request = request_head(len(body), "Accept: application/x-ndjson") + body
    with connect(server, receive_buffer=2048) as connection, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(_send_until_hung_up, connection, request)
        while not sent.done():
            assert post(server, video).json()["text"] == SAID
        # more than one answer was pending
        assert 1 < sent.result() < 200
    assert num_videos(server) == 0


def _send_until_hung_up(connection: socket.socket, request: bytes) -> int:
    for number in range(200):
        try:
            connection.sendall(request)
        except ConnectionError:
            return number
    return 200


def test_a_client_that_leaves_during_an_upload_makes_room(server: Serving) -> None:
    before = unnamed_files()
    for _ in range(3):
        with connect(server) as connection:
            connection.sendall(request_head(7_000_000) + PART_HEAD + bytes(2_000_000))
            until(lambda: num_videos(server) == 1)
        until(lambda: num_videos(server) == 0, PAUSE_S / 2)
    assert unnamed_files() == before
    assert httpx.get(f"{server.url}/api/health").status_code == 200
