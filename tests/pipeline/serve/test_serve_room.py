"""Space on the server: on its disk, and in the queue of its reader."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from pipeline.serve import uploads
from pipeline.serve.uploads import ReadingQueue, Upload
from pipeline.serve.worker import Answer
from tests.support.serving import HANGS, post, served, until
from tests.support.videos import write_mouth


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    folder = tmp_path_factory.mktemp("videos")
    return {n: write_mouth(folder / f"{n}.mp4", n).read_bytes() for n in (25, HANGS)}


def test_a_full_disk_is_reported(
    tmp_path: Path, videos: dict[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path, max_upload_mb=3) as server:
        monkeypatch.setattr("tempfile.tempdir", "/proc/none")
        # uploads of less than 1 MB stay in memory until they are read
        for content in (videos[25], bytes(1_500_000)):
            answer = post(server, content)
            assert (answer.status_code, answer.json()["reason"]) == (507, "no_room")
            assert "TMPDIR" in answer.json()["message"] and "/proc/none" in answer.json()["detail"]
        assert httpx.get(f"{server.url}/api/health").json()["num_videos"] == 0


def test_a_client_that_leaves_the_queue_makes_room_immediately(
    tmp_path: Path, videos: dict[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "WAITING_REPORT_S", 0.1)
    with served(tmp_path, timeout_s=10) as server, ThreadPoolExecutor(3) as pool:
        num_videos = lambda: httpx.get(f"{server.url}/api/health").json()["num_videos"]  # noqa: E731
        first = pool.submit(post, server, videos[HANGS])
        until(lambda: num_videos() == 1)
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server.url}/api/read", files={"video": videos[25]}, timeout=0.4)
        until(lambda: num_videos() == 1)
        assert not first.done()


def test_a_client_that_does_not_read_its_answer_holds_no_place(tmp_path: Path) -> None:
    """The answer waits for the client, the queue does not."""

    async def num_taken_in_the_end() -> int:
        reading = ReadingQueue(InstantWorker(), 8)  # type: ignore[arg-type]
        file = (tmp_path / "me.mp4").open("wb")
        events = reading.reserve().read(Upload("me.mp4", tmp_path / "me.mp4", file))
        await anext(events)
        for _ in range(200):
            if not reading.num_taken:
                break
            await asyncio.sleep(0.01)
        assert file.closed
        await reading.close()
        return reading.num_taken

    assert asyncio.run(num_taken_in_the_end()) == 0


class InstantWorker:
    def read(self, path: Path, on_mouth: object) -> Answer:
        return Answer({}, 0.0, 0.0)

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass
