"""Room on the server: on its disk, and in the line before its reader."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from pipeline.serve import queue
from tests.serving import HANGS, post, served, until
from tests.videos import write_mouth


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    folder = tmp_path_factory.mktemp("videos")
    return {n: write_mouth(folder / f"{n}.mp4", n).read_bytes() for n in (25, HANGS)}


def test_a_disk_without_room_is_told(
    tmp_path: Path, videos: dict[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path, max_upload_mb=3) as server:
        monkeypatch.setattr("tempfile.tempdir", "/proc/none")
        # of less than 1 MB memory is left only when they are read
        for content in (videos[25], bytes(1_500_000)):
            answer = post(server, content)
            assert (answer.status_code, answer.json()["reason"]) == (507, "no_room")
            assert "TMPDIR" in answer.json()["message"] and "/proc/none" in answer.json()["detail"]
        assert httpx.get(f"{server.url}/api/health").json()["num_videos"] == 0


def test_who_leaves_while_waiting_makes_room_at_once(
    tmp_path: Path, videos: dict[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "WAITING_TOLD_S", 0.1)
    with served(tmp_path, timeout_s=10) as server, ThreadPoolExecutor(3) as pool:
        num_videos = lambda: httpx.get(f"{server.url}/api/health").json()["num_videos"]  # noqa: E731
        first = pool.submit(post, server, videos[HANGS])
        until(lambda: num_videos() == 1)
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server.url}/api/read", files={"video": videos[25]}, timeout=0.4)
        until(lambda: num_videos() == 1)
        assert not first.done()
