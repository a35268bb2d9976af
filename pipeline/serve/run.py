"""Runs the server until it is stopped; leaves no process and no file."""

import ipaddress
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import typer
import uvicorn
from starlette.types import ASGIApp

from pipeline.command import terminable
from pipeline.inference.readers import open_reader
from pipeline.params import Params
from pipeline.serve.app import make_app
from pipeline.serve.guard import Guard, timeout_protocol
from pipeline.serve.refusals import Limits
from pipeline.serve.worker import ReadingWorker
from shards.errors import ConfigError
from shards.safe_text import message_lines

SHUTDOWN_S = 3
"""Time to finish pending answers when the server is stopped."""


def serve(
    source: Path, params: Params, host: str, port: int, limits: Limits, adapter: Path | None = None
) -> None:
    """Serves the model of `source` and `adapter` (files for `open_reader`) until Ctrl-C or SIGTERM.

    Raises CheckpointError, and ConfigError if the address cannot be used.
    """
    reading = within_limits(params, limits)
    with terminable(), listening(host, port) as listener:
        worker = ReadingWorker(partial(open_reader, [source], reading, adapter), reading, limits.timeout_s)
        try:
            _print_message(f"opening {source}")
            worker.start()
            worker.wait_ready()
            app = Guard(make_app(worker, limits, source.name), host, limits)
            server = _Server(configured(app, limits), worker.stop)
            typer.echo(_address(listener))
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            pass
        finally:
            worker.close()


def configured(app: ASGIApp, limits: Limits) -> uvicorn.Config:
    """Returns uvicorn's configuration: no access log, no server header, idle connections are closed."""
    return uvicorn.Config(
        app,
        http=timeout_protocol(limits.pause_s),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=SHUTDOWN_S,
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # clients in the queue get an answer immediately, so the shutdown need not wait for them
        self._on_stop()


def within_limits(params: Params, limits: Limits) -> Params:
    """Returns parameters that reject a video longer than the limit, at the latest while it is decoded."""
    longest_s = min(params.inference.max_video_s, limits.max_video_s)
    inference = params.inference.model_copy(update={"max_video_s": longest_s})
    return params.model_copy(update={"inference": inference})


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Opens the listening socket. Raises ConfigError if the address cannot be used."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: cannot listen on this address ({error.strerror}); choose another --port, or "
            "0 for any free port"
        ) from error
    with listener:
        if not _is_loopback(host):
            _print_message(
                f"--host {host}: everyone who can reach this machine over the network can now send videos to it, "
                "unencrypted; browsers allow the camera only on 127.0.0.1 or over https"
            )
        yield listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _print_message(message: str) -> None:
    typer.echo(f"pipeline: {message_lines(message)}", err=True)
