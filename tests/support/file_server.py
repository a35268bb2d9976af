"""A local web server for the files of a folder, without ranges; it can close connections in the middle of a file."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.quiet_handler import QuietHandler


@dataclass
class FileServer:
    url: str = ""
    num_cuts: int = 0
    """Number of the next downloads of tars that end after half of the bytes."""
    gets: list[str] = field(default_factory=list)


@contextmanager
def file_server(folder: Path) -> Iterator[FileServer]:
    server = FileServer()

    class Handler(QuietHandler, SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            server.gets.append(self.path)
            if not self.path.endswith(".tar") or not server.num_cuts:
                super().do_GET()
                return
            server.num_cuts -= 1
            content = (folder / self.path.lstrip("/")).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as http:
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        server.url = f"http://127.0.0.1:{http.server_port}"
        try:
            yield server
        finally:
            http.shutdown()
