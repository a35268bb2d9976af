"""A local S3-compatible server (moto), and a proxy in front of it that simulates network faults."""

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import boto3
import pytest
from botocore.loaders import JSONFileLoader, Loader, create_loader
from moto.server import ThreadedMotoServer

from tests.support.quiet_handler import QuietHandler

BUCKET = "lips"
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive"}
_HANG_AT_MOST_S = 30.0


@dataclass
class FaultyProxy:
    """Forwards requests to `upstream`, with the fault that `fault` returns for request number n (from 1).

    Faults: "" (none), a status such as "503", "cut" (half of the body, then the connection closes), "garbled" (one
    byte of the body is changed), "hang" (no answer) or "trickle" (single bytes with pauses).
    """

    upstream: tuple[str, int]
    fault: Callable[[int, str], str] = lambda number, request: ""
    requests: list[str] = field(default_factory=list)
    """Method, path and range of each request."""
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def gets(self, name: str) -> list[str]:
        """Returns the requests that read `name`."""
        return [request for request in self.requests if request.startswith("GET") and name in request]

    def stop(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _next(self, request: str) -> str:
        with self._lock:
            self.requests.append(request)
            fault = self.fault(len(self.requests), request)
            if fault:
                self.faults.append(fault)
            return fault

    def _handler(self) -> type[QuietHandler]:
        proxy = self

        class Handler(QuietHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.close_connection = True
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fault = proxy._next(f"{self.command} {self.path} {self.headers.get('Range', '')}")
                if fault == "hang":
                    proxy._ended.wait(_HANG_AT_MOST_S)
                elif fault.isdecimal():
                    self.send_response(int(fault))
                    self.send_header("Content-Length", "0")
                    self.send_header("Connection", "close")
                    self.end_headers()
                else:
                    self.pass_on(sent, fault)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

            def pass_on(self, sent: bytes, fault: str) -> None:
                connection = http.client.HTTPConnection(*proxy.upstream, timeout=10)
                connection.request(self.command, self.path, sent, dict(self.headers.items()))
                answer = connection.getresponse()
                body = bytearray(answer.read())
                connection.close()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in _HOP_BY_HOP:
                        self.send_header(name, value)
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.flush()
                if fault == "cut":
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                elif fault == "trickle":
                    for byte in body:
                        self.wfile.write(bytes([byte]))
                        if proxy._ended.wait(0.02):
                            return
                else:
                    if fault == "garbled" and body:
                        body[len(body) // 2] ^= 1
                    self.wfile.write(body)

        return Handler


_load_file, _list_services = JSONFileLoader._load_file, Loader.list_available_services


@cache
def _description(path: str, open_method: Callable[..., Any]) -> Any:
    return _load_file(JSONFileLoader(), path, open_method)


@cache
def _services(type_name: str) -> list[str]:
    return list(_list_services(create_loader(), type_name))


@contextmanager
def _descriptions_read_once() -> Iterator[None]:
    """Lets botocore read its descriptions of S3 once, not again for each client: most of a client's time."""
    with (
        patch.object(JSONFileLoader, "_load_file", lambda _, *arguments: _description(*arguments)),
        patch.object(Loader, "list_available_services", lambda _, type_name: _services(type_name)),
    ):
        yield


@contextmanager
def s3_server() -> Iterator[tuple[str, int]]:
    """Starts an S3 server with the empty `BUCKET`; yields host and port."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host_and_port = server.get_host_and_port()
        client = s3_client(host_and_port)
        client.create_bucket(Bucket=BUCKET)
        with _descriptions_read_once():
            yield host_and_port
        # moto keeps its objects until the process ends
        for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
            client.delete_object(Bucket=BUCKET, Key=entry["Key"])
        client.delete_bucket(Bucket=BUCKET)
        client.close()
    finally:
        server.stop()


@contextmanager
def faulty_proxy(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Starts a proxy without faults; sets fake keys and its address in the environment."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "fake",
        "AWS_SECRET_ACCESS_KEY": "fake",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    proxy = FaultyProxy(server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    try:
        yield proxy
    finally:
        proxy.stop()


def s3_client(server: tuple[str, int]) -> Any:
    """Returns an independent boto3 client, to check the content of the bucket."""
    return boto3.client(
        "s3",
        endpoint_url=f"http://{server[0]}:{server[1]}",
        region_name="us-east-1",
        aws_access_key_id="fake",
        aws_secret_access_key="fake",
    )


def upload(server: tuple[str, int], folder: Path, prefix: str) -> None:
    """Copies every file below `folder` to the bucket."""
    client = s3_client(server)
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder)}")
    client.close()
