"""Receives a video from a request without a named file in a folder.

On Linux its file has no name, so that nothing remains of it however the server ends.
"""

import os
import re
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

from pipeline.serve.limits import Limits

FIELD = "video"
LONGEST_NAME = 200
_OWN_FILES = Path("/proc/self/fd")


class BadUpload(Exception):
    """The request contains no video."""


class TooLargeUpload(Exception):
    """The request is larger than allowed."""


class NoRoomForUpload(Exception):
    """There is no disk space to store the video."""


class SlowUpload(Exception):
    """The upload stopped or was too slow."""


@dataclass
class Upload:
    """An uploaded video; `path` is valid until `close`."""

    name: str
    path: Path
    _file: IO[Any]

    def close(self) -> None:
        self._file.close()


async def receive_upload(request: Request, limits: Limits) -> Upload:
    """Returns the file in the field `video`.

    Raises BadUpload, NoRoomForUpload, ClientDisconnect, and, at the limit, SlowUpload and TooLargeUpload.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limits.max_upload_bytes:
        raise TooLargeUpload
    try:
        with anyio.fail_after(limits.pause_s) as patience:
            form = await _Capped(request, limits, patience).form(max_files=1, max_fields=0)
    except TimeoutError as error:
        raise SlowUpload from error
    except HTTPException as error:
        raise BadUpload(error.detail) from error
    except UnicodeError as error:  # the sender chooses the encoding of the name
        raise BadUpload(str(error)) from error
    except OSError as error:
        raise _no_room(error) from error
    video = form.get(FIELD)
    if not isinstance(video, UploadFile):
        await form.close()
        raise BadUpload(f"no field `{FIELD}`")
    try:
        return await anyio.to_thread.run_sync(_as_file, _plain_name(video.filename or ""), video.file)
    except OSError as error:
        await form.close()
        raise _no_room(error) from error


def _no_room(error: OSError) -> NoRoomForUpload:
    return NoRoomForUpload(f"{tempfile.gettempdir()}: {error.strerror}")


def _plain_name(given: str) -> str:
    """Returns the name without folders and invisible characters: surrogates, invalid in JSON, and direction marks."""
    name = "".join(character for character in re.split(r"[/\\]", given)[-1] if character.isprintable())
    return name[:LONGEST_NAME] or FIELD


class _Capped(Request):
    """A request with a maximum size, and a deadline that each received byte extends.

    A leaky bucket: each byte adds its time at the slowest allowed speed, and the deadline is at most `pause_s` ahead.
    So silence ends an upload after `pause_s`, half the speed after twice that, and the allowed speed never.
    """

    def __init__(self, request: Request, limits: Limits, patience: anyio.CancelScope) -> None:
        super().__init__(request.scope, request.receive)
        self._limits, self._patience = limits, patience

    async def stream(self) -> AsyncGenerator[bytes, None]:
        num_bytes = 0
        async for chunk in super().stream():
            num_bytes += len(chunk)
            if num_bytes > self._limits.max_upload_bytes:
                raise TooLargeUpload
            self._patience.deadline = min(
                self._patience.deadline + len(chunk) / (1e3 * self._limits.slowest_kb_s),
                anyio.current_time() + self._limits.pause_s,
            )
            yield chunk


def _as_file(name: str, spooled: IO[Any]) -> Upload:
    """Returns the upload with a path that another process of this user can open."""
    number = spooled.fileno()  # moves the content from memory to a file without a name
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
