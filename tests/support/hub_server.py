"""A local server with the calls of the Hugging Face Hub that huggingface_hub makes for git and LFS files (no Xet)."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.quiet_handler import QuietHandler

_ENDS = "|".join(("tar", "parquet", "onnx", "safetensors", "pt"))
IS_LFS = re.compile(rf".*\.({_ENDS})")
Repo = tuple[str, str]
"""Type (dataset or model), and USER/NAME."""


@dataclass
class HubServer:
    """Repositories in memory. `fault` is called before each body is taken or given: it may wait, or return a body."""

    fault: Callable[[str, bytes], bytes] = lambda request, body: body
    requests: list[str] = field(default_factory=list)
    """Method, path and range of each request, in the order in which they arrived."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """LFS files by sha256."""
    commits: dict[Repo, list[dict[str, bytes | str]]] = field(default_factory=dict)
    """By repository: for each commit its files by name, as bytes or as the sha256 of an object."""
    visibility: dict[Repo, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def content(self, repo: Repo, name: str) -> bytes:
        stored = self.commits[repo][-1][name]
        return stored if isinstance(stored, bytes) else self.objects[stored]

    def replace(self, repo: Repo, **files: bytes) -> None:
        """Commits other content of files, as bytes."""
        self.commits[repo].append(self.commits[repo][-1] | files)

    def count(self, start: str) -> int:
        return sum(request.startswith(start) for request in self.requests)


class _Answer(Exception):
    def __init__(self, status: int, value: Any = None, code: str = "") -> None:
        self.status, self.value, self.code = status, value, code


def _sha(repo: Repo, number: int) -> str:
    return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()


def _handler(hub: HubServer) -> type[QuietHandler]:
    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            url = urlsplit(self.path)
            request = f"{self.command} {unquote(url.path)} {self.headers.get('Range', '')}".strip()
            hub.requests.append(request)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
            try:
                self.route(request, unquote(url.path), parse_qs(url.query), body)
            except _Answer as answer:
                content = b"" if answer.value is None else json.dumps(answer.value).encode()
                headers = {"X-Error-Code": answer.code} if answer.code else {}
                self.send(answer.status, content, {"Content-Type": "application/json", **headers})

        do_GET = do_PUT = do_HEAD = do_POST = answer

        def route(self, request: str, path: str, query: dict[str, list[str]], body: bytes) -> None:
            if path == "/api/repos/create":
                wanted = json.loads(body)
                repo = (wanted.get("type", "model"), f"{wanted['organization']}/{wanted['name']}")
                if repo in hub.commits:
                    raise _Answer(409, {"url": self.page(repo)})
                hub.commits[repo] = [{".gitattributes": b"* text=auto\n"}]
                hub.visibility[repo] = wanted.get("visibility", wanted.get("private"))
                raise _Answer(200, {"url": self.page(repo)})
            if path == "/api/validate-yaml":
                raise _Answer(200, {})
            if found := re.fullmatch(r"/objects/([0-9a-f]{64})", path):
                body = hub.fault(request, body)
                assert hashlib.sha256(body).hexdigest() == found[1]
                hub.objects[found[1]] = body
                raise _Answer(200)
            if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
                objects = json.loads(body)["objects"]
                raise _Answer(200, {"transfer": "basic", "objects": [self.action(each) for each in objects]})
            if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                repo, number = self.repo("dataset" if found[1] else "model", found[2], found[3])
                return self.resolve(request, repo, number, found[4])
            if found := re.fullmatch(
                r"/api/(dataset|model)s/([^/]+/[^/]+)(?:/([a-z-]+)/([^/]+)(/.*)?)?", path
            ):
                repo, number = self.repo(found[1], found[2], found[4] or "main")
                return self.api(repo, number, found[3] or "revision", (found[5] or "").strip("/"), body)
            raise _Answer(404, {"error": "Not found"})

        def repo(self, kind: str, name: str, revision: str) -> tuple[Repo, int]:
            repo = (kind, name)
            if repo not in hub.commits:
                raise _Answer(404, {"error": "Repository not found"}, "RepoNotFound")
            shas = [_sha(repo, number) for number in range(len(hub.commits[repo]))]
            if revision == "main":
                return repo, len(shas) - 1
            if revision not in shas:
                raise _Answer(404, {"error": "Revision not found"}, "RevisionNotFound")
            return repo, shas.index(revision)

        def page(self, repo: Repo) -> str:
            return f"{hub.url}/{'datasets/' if repo[0] == 'dataset' else ''}{repo[1]}"

        def action(self, wanted: dict[str, Any]) -> dict[str, Any]:
            if wanted["oid"] in hub.objects:
                return wanted
            return wanted | {"actions": {"upload": {"href": f"{hub.url}/objects/{wanted['oid']}"}}}

        def api(self, repo: Repo, number: int, verb: str, place: str, body: bytes) -> None:
            files = hub.commits[repo][number]
            if verb == "revision":
                siblings = [{"rfilename": name} for name in files]
                about = {"id": repo[1], "sha": _sha(repo, number), "siblings": siblings, "private": True}
                raise _Answer(200, about | {"tags": [], "downloads": 0, "likes": 0, "disabled": False})
            if verb == "tree":
                found = [self.entry(name, files) for name in files if name.startswith(place)]
                folders = {name.rpartition("/")[0] for name in files if "/" in name}
                found += [{"type": "directory", "path": name, "size": 0, "oid": "0"} for name in folders]
                raise _Answer(200, found)
            if verb == "paths-info":
                wanted = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
                raise _Answer(200, [self.entry(name, files) for name in wanted if name in files])
            if verb == "preupload":
                paths = [each["path"] for each in json.loads(body)["files"]]
                modes = ["lfs" if IS_LFS.fullmatch(path) else "regular" for path in paths]
                known = [
                    {"path": path, "uploadMode": mode, "shouldIgnore": False}
                    for path, mode in zip(paths, modes, strict=True)
                ]
                raise _Answer(200, {"files": known})
            assert verb == "commit", verb
            made = dict(files)
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    made[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    assert value["oid"] in hub.objects
                    made[value["path"]] = value["oid"]
                elif item["key"] == "deletedFile":
                    del made[value["path"]]
            hub.commits[repo].append(made)
            oid = _sha(repo, len(hub.commits[repo]) - 1)
            raise _Answer(200, {"commitUrl": f"{self.page(repo)}/commit/{oid}", "commitOid": oid})

        def entry(self, name: str, files: dict[str, bytes | str]) -> dict[str, Any]:
            stored = files[name]
            content = stored if isinstance(stored, bytes) else hub.objects[stored]
            about = {"type": "file", "path": name, "size": len(content)}
            about["oid"] = hashlib.sha1(content).hexdigest()
            if isinstance(stored, str):
                about["lfs"] = {"oid": stored, "size": len(content), "pointerSize": 130}
            return about

        def resolve(self, request: str, repo: Repo, number: int, name: str) -> None:
            stored = hub.commits[repo][number].get(name)
            if stored is None:
                raise _Answer(404, {"error": "Entry not found"}, "EntryNotFound")
            content = stored if isinstance(stored, bytes) else hub.objects[stored]
            etag = hashlib.sha1(content).hexdigest() if isinstance(stored, bytes) else stored
            headers = {
                "X-Repo-Commit": _sha(repo, number),
                "ETag": f'"{etag}"',
                "X-Linked-Etag": f'"{etag}"',
                "X-Linked-Size": str(len(content)),
                "Accept-Ranges": "bytes",
            }
            status = 200
            if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(found[1]), min(int(found[2] or len(content) - 1), len(content) - 1)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
                content, status = content[first : last + 1], 206
            self.send(status, content, headers, request)

        def send(self, status: int, content: bytes, headers: dict[str, str], request: str = "") -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                half = len(content) // 2
                self.wfile.write(content[:half])
                self.wfile.flush()
                self.wfile.write(hub.fault(request, content[half:]) if request else content[half:])

    return Handler
