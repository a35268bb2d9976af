"""A server with a fake reader, without a network: the length of a clip decides what the reader does."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import httpx
import numpy as np
import uvicorn

from model.decoding.result import Alternative, Candidate, PartScores, Reading, TimedCharacter
from model.settings import DecodeParams, Head, TextParams
from pipeline.params import load_params
from pipeline.serve import worker as worker_module
from pipeline.serve.app import make_app
from pipeline.serve.guard import Guard
from pipeline.serve.refusals import Limits
from pipeline.serve.run import configured, within_limits
from pipeline.serve.worker import ReadingWorker
from shards.errors import CheckpointError
from tests.support.forked import Forked, context

ROOT = Path(__file__).parents[2]
SAID = "你好世界"
HANGS, DIES, IS_SLOW = 31, 32, 33
"""Lengths of clips, in frames, for which the reader hangs, dies or is slow."""
SLOW_S = 1.5
PATIENCE_S = 60.0


@dataclass
class FakeReader:
    """Reads the same text from every clip, except for the special lengths; has candidates for a beam search."""

    fps: float = 25.0
    crop_px: int = 96
    text: TextParams = field(default_factory=TextParams)
    heads: list[Head] = field(default_factory=lambda: ["ctc", "decoder"])

    def read_clip(self, clip_THW: np.ndarray, params: DecodeParams) -> Reading:
        if len(clip_THW) == HANGS:
            time.sleep(600)
        if len(clip_THW) == DIES:
            os.kill(os.getpid(), signal.SIGKILL)
        if len(clip_THW) == IS_SLOW:
            time.sleep(SLOW_S)
        if params.decoder != "ctc_beam":
            return Reading(SAID, -0.25)
        scores = PartScores(-1.0, None, None, None, 4)
        candidates = (
            Candidate(SAID, -1.0, -1.0, scores),
            Candidate("你好<b>四界", -2.0, -2.0, replace(scores, length=7)),
        )
        characters = tuple(
            TimedCharacter(one, place / 4, (place + 1) / 4, confidence, (Alternative("<b>", 0.25),))
            for place, (one, confidence) in enumerate(zip(SAID, (0.9, 0.8, 0.3, 0.7), strict=True))
        )
        return Reading(SAID, -0.25, candidates, characters)

    def reference(self, label: str, params: DecodeParams) -> str:
        return label


def no_reader() -> FakeReader:
    raise CheckpointError("best_model.pt is damaged")


@dataclass(frozen=True)
class Serving:
    url: str
    worker: ReadingWorker
    port: int


@contextmanager
def served(cache: Path, host: str = "127.0.0.1", **limits: float) -> Iterator[Serving]:
    """Runs a server in a thread of this process, with its worker in a separate process, forked after all imports."""
    chosen = Limits(**limits)  # type: ignore[arg-type]
    # the small videos of these tests, some of them noise, are mouth crops
    flags = {"machine.device": "cpu", "machine.cache_dir": str(cache), "corpus.media_kind": "mouth"}
    params = within_limits(load_params(ROOT / "params.yaml", flags=flags), chosen)
    worker = ReadingWorker(FakeReader, params, chosen.timeout_s)
    app = Guard(make_app(worker, chosen, "fake.pt"), host, chosen)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = uvicorn.Server(configured(app, chosen))
    thread = threading.Thread(target=server.run, args=([listener],))
    # `pipeline_serve` spawns its worker, as for users
    with patch.object(worker_module, "multiprocessing", SimpleNamespace(get_context=lambda _: context())):
        worker.start()
        worker.wait_ready()
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield Serving(f"http://127.0.0.1:{port}", worker, port)
        finally:
            server.should_exit = True
            thread.join()
            listener.close()


def speaking_checkpoint(folder: Path, character: str) -> Path:
    """Writes the checkpoint of an untrained network that always reads one character."""
    import torch

    from model.checkpoints import save_checkpoint
    from tests.support.packed import pack_clips, toy_clips
    from tests.support.resuming import state_of
    from tests.support.trainings import job_in

    state = state_of(job_in(folder, pack_clips(folder, toy_clips(8, 2)), ctc_weight=1.0))
    head = state.network.ctc_head
    assert head is not None
    (number,) = state.data.vocabulary.characters.encode(character)
    with torch.no_grad():
        head.bias[number] = 100.0
    save_checkpoint(folder / "best_model.pt", state.as_checkpoint(None))
    return folder / "best_model.pt"


def serve_arguments(checkpoint: Path, cache: Path) -> list[str]:
    """Returns the arguments of `pipeline` that serve the checkpoint on a free port."""
    settings = ["--params", str(ROOT / "params.yaml"), "--set", "machine.device=cpu", "--port", "0"]
    return ["serve", "--checkpoint", str(checkpoint), *settings, "--set", f"machine.cache_dir={cache}"]


@contextmanager
def pipeline_serve(
    checkpoint: Path, folder: Path, *flags: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Forked, str]]:
    """Starts `pipeline serve` as a person does; yields the process and the printed address."""
    arguments = [*serve_arguments(checkpoint, folder / "cache"), *flags]
    with Forked(ROOT, arguments, environment=environment) as process:
        until(lambda: process.poll() is not None or "\n" in process.output()[0], PATIENCE_S)
        yield process, process.output()[0].strip()


def post(
    server: Serving, content: bytes, name: str = "me.mp4", headers: dict[str, str] | None = None
) -> httpx.Response:
    files = {"video": (name, content)}
    return httpx.post(f"{server.url}/api/read", files=files, headers=headers, timeout=PATIENCE_S)


def num_videos(server: Serving) -> int:
    return int(httpx.get(f"{server.url}/api/health").json()["num_videos"])


def form_of(content: bytes, filename: bytes = b"me.mp4") -> bytes:
    """Returns the body of a request, matching `request_head`."""
    disposition = b'Content-Disposition: form-data; name="video"; filename="' + filename + b'"'
    return b"--x\r\n" + disposition + b"\r\n\r\n" + content + b"\r\n--x--\r\n"


def request_head(length: int | None, *lines: str, charset: str = "utf-8") -> bytes:
    """Returns the head of a POST with a body of `length` bytes; None: chunked."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    kind = f"Content-Type: multipart/form-data; charset={charset}; boundary=x"
    return "\r\n".join(["POST /api/read HTTP/1.1", "Host: 127.0.0.1", kind, size, *lines, "", ""]).encode()


def connect(server: Serving, receive_buffer: int | None = None) -> socket.socket:
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(PATIENCE_S)
    connection.connect(("127.0.0.1", server.port))
    return connection


def answer_on(connection: socket.socket) -> httpx.Response:
    """Returns the answer, read until the server closes the connection."""
    received = b"".join(iter(lambda: connection.recv(65_536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    return httpx.Response(int(head.split()[1]), content=body)


def until(is_so: object, seconds: float = 20.0) -> None:
    assert callable(is_so)
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)
