"""Hostile requests from the same machine to `pipeline serve`."""

import resource
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from fractions import Fraction
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
    pipeline_serve,
    post,
    request_head,
    served,
    speaking_checkpoint,
    until,
)
from tests.support.videos import write_mouth, write_video


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with served(tmp_path_factory.mktemp("cache"), max_upload_mb=8, pause_s=3) as server:
        yield server


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_mouth(tmp_path_factory.mktemp("videos") / "me.mp4", 25).read_bytes()


def sent(server: Serving, body: bytes, charset: str = "utf-8") -> httpx.Response:
    with connect(server) as connection:
        connection.sendall(request_head(len(body), "Connection: close", charset=charset) + body)
        return answer_on(connection)


@pytest.mark.parametrize(
    "charset", ["utf-8", "utf-7", "raw_unicode_escape", "punycode", "idna", "zlib", "no"]
)
@pytest.mark.parametrize("name", [rb"+2AA-\ud800.mp4", b"\xff\xfe\x00.mp4", b"-\x80-"])
def test_a_file_name_in_any_encoding_is_no_server_error(
    server: Serving, video: bytes, charset: str, name: bytes
) -> None:
    """UTF-7 and escapes give surrogates, invalid in JSON; punycode raises a different error."""
    assert sent(server, form_of(video, name), charset).status_code in (200, 400)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"../../etc/passwd", "passwd"),
        (rb"C:\\Users\\me\\a.mp4", "a.mp4"),
        ("\u202egpj.mp4\n\x07".encode(), "gpj.mp4"),
        (b"<img src=x onerror=alert(1)>", "<img src=x onerror=alert(1)>"),
        (b"", "video"),
        (b"a" * 3000, "a" * 200),
    ],
)
def test_a_file_name_is_only_shown(server: Serving, video: bytes, name: bytes, shown: str) -> None:
    """It is never used as a path, and never markup: the answer is JSON, and browsers must not guess its type."""
    answer = sent(server, form_of(video, name))
    assert answer.json()["path"] == shown
    refused = post(server, b"no video", name.decode("latin-1"))
    assert refused.headers["content-type"] == "application/json"
    assert refused.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "body",
    [
        b"".join(
            b'--x\r\nContent-Disposition: form-data; name="v%d"\r\n\r\na\r\n' % n for n in range(20_000)
        ),
        form_of(b"abc", b"a" * 2_000_000),
        b'--x\r\nContent-Disposition: form-data; name="' + b"v" * 2_000_000,
        b"--x\r\n" + b"A: b\r\n" * 300_000,
        b"\r\n" * 2_000_000,
    ],
    ids=["many-parts", "huge-filename", "huge-field-name", "many-part-heads", "no-part"],
)
def test_a_malicious_form_is_refused(server: Serving, body: bytes) -> None:
    with suppress(ConnectionError):  # the server does not wait for the rest
        assert sent(server, body).status_code == 400
    assert num_videos(server) == 0


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: -5"],
        ["Content-Length: 3", "Content-Length: 4"],
        ["Host: evil.example", "Content-Length: 4"],
        ["Content-Length: 99999999999999999999999999"],
    ],
)
def test_contradictory_headers_are_refused(server: Serving, lines: list[str]) -> None:
    with connect(server) as connection:
        head = ["POST /api/read HTTP/1.1", "Host: 127.0.0.1", *lines, "", "abcd"]
        connection.sendall("\r\n".join(head).encode())
        assert answer_on(connection).status_code == 400


def test_a_small_file_with_a_huge_video_is_not_decoded(server: Serving, tmp_path: Path) -> None:
    wall = np.full((4320, 7680, 3), 128, np.uint8)
    huge = write_video(tmp_path / "8k.h264", [wall], options={"preset": "ultrafast"})
    small = np.full((64, 64, 3), 128, np.uint8)
    # pictures a millisecond apart, then beyond the longest video
    times_s = [Fraction(n, 1000) for n in range(2000)] + [Fraction(3600 + n) for n in range(3)]
    long = write_video(tmp_path / "long.mp4", [small] * len(times_s), times_s=times_s)
    for file in (huge, long):
        content = file.read_bytes()
        assert len(content) < 200_000
        answer = post(server, content)
        assert (answer.status_code, answer.json()["reason"]) == (413, "oversized")


def test_a_playlist_opens_none_of_its_files(server: Serving, video: bytes, tmp_path: Path) -> None:
    """Otherwise a client could read files with the rights of the server."""
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(video)
    assert post(server, secret.read_bytes()).json()["text"] == SAID
    for names in (f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n", f"ffconcat version 1.0\nfile {secret}\n"):
        assert post(server, names.encode()).json()["reason"] == "unreadable"


def test_a_disk_that_fills_during_an_upload_is_reported(server: Serving, video: bytes) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        answer = post(server, bytes(5_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (answer.status_code, answer.json()["reason"]) == (507, "no_room")
    assert num_videos(server) == 0
    assert post(server, video).json()["text"] == SAID


def test_many_cancelled_requests_do_not_block_the_next(server: Serving, video: bytes) -> None:
    """Like a page that is reloaded again and again."""

    def cancelled(_: int) -> None:
        with connect(server) as connection:
            body = form_of(video)
            connection.sendall(request_head(len(body), "Accept: application/x-ndjson") + body)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(cancelled, range(18)))
    until(lambda: num_videos(server) < 8)
    assert post(server, video).json()["text"] == SAID
    until(lambda: num_videos(server) == 0)


def test_a_server_stopped_during_uploads_ends_without_errors(tmp_path: Path) -> None:
    checkpoint = speaking_checkpoint(tmp_path, "一")
    with pipeline_serve(checkpoint, tmp_path) as (process, url), ExitStack() as open_ones:
        server = Serving(url, None, int(url.rpartition(":")[2]))  # type: ignore[arg-type]
        silent, *stalled = [open_ones.enter_context(connect(server)) for _ in range(3)]
        for connection in stalled:
            connection.sendall(request_head(1_000_000) + b"--x\r\n")
        until(lambda: num_videos(server) == 2)
        process.send_signal(signal.SIGTERM)
        assert [answer_on(connection).json()["reason"] for connection in stalled] == ["stopping"] * 2
        assert silent.recv(1) == b""
        done = process.wait(20)
        assert done.returncode == 0 and "Traceback" not in done.stderr
