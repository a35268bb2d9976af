"""Takes a video out of a request, without ever giving it a name in a folder.

Its file has no name on Linux, so that nothing stays of it however the server ends.
"""

import os
import shutil
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import anyio
import anyio.to_thread
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

FIELD = "video"
UPLOAD_TIMEOUT_S = 300.0
LONGEST_NAME = 200
_OWN_FILES = Path("/proc/self/fd")


class BadUpload(Exception):
    """The request holds no video."""


class TooLargeUpload(Exception):
    """It holds more bytes than it may."""


class NoRoomForUpload(Exception):
    """It cannot be kept while it is read."""


class SlowUpload(Exception):
    """It was not here in time."""


@dataclass
class Upload:
    """A video that came in; `path` holds as long as it is open."""

    name: str
    path: Path
    _file: IO[Any]

    def close(self) -> None:
        self._file.close()


async def receive_upload(request: Request, max_bytes: int) -> Upload:
    """The field `video`.

    Raises BadUpload, SlowUpload, NoRoomForUpload, ClientDisconnect, and TooLargeUpload as soon as it is one.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise TooLargeUpload
    capped = _Capped(request.scope, request.receive)
    capped.max_bytes = max_bytes
    try:
        with anyio.fail_after(UPLOAD_TIMEOUT_S):
            form = await capped.form(max_files=1, max_fields=0)
    except TimeoutError as error:
        raise SlowUpload from error
    except HTTPException as error:
        raise BadUpload(error.detail) from error
    except OSError as error:
        raise _no_room(error) from error
    video = form.get(FIELD)
    if not isinstance(video, UploadFile):
        await form.close()
        raise BadUpload(f"no field `{FIELD}`")
    name = Path(video.filename or "").name[:LONGEST_NAME] or FIELD
    try:
        return await anyio.to_thread.run_sync(_as_file, name, video.file)
    except OSError as error:
        await form.close()
        raise _no_room(error) from error


def _no_room(error: OSError) -> NoRoomForUpload:
    return NoRoomForUpload(f"{tempfile.gettempdir()}: {error.strerror}")


class _Capped(Request):
    max_bytes = 0

    async def stream(self) -> AsyncGenerator[bytes, None]:
        num_bytes = 0
        async for chunk in super().stream():
            num_bytes += len(chunk)
            if num_bytes > self.max_bytes:
                raise TooLargeUpload
            yield chunk


def _as_file(name: str, spooled: IO[Any]) -> Upload:
    """With a path that another process of this user can open."""
    number = spooled.fileno()  # leaves memory for a file without a name
    if _OWN_FILES.is_dir():
        return Upload(name, Path(f"/proc/{os.getpid()}/fd/{number}"), spooled)
    named = tempfile.NamedTemporaryFile(prefix="pipeline-serve-")  # noqa: SIM115 (closed with the upload)
    spooled.seek(0)
    shutil.copyfileobj(spooled, named)
    named.flush()
    spooled.close()
    return Upload(name, Path(named.name), named)


__all__ = [
    "BadUpload",
    "ClientDisconnect",
    "NoRoomForUpload",
    "SlowUpload",
    "TooLargeUpload",
    "Upload",
    "receive_upload",
]
