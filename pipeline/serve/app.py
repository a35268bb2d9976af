"""The web app: the files of the page, /api/read (a reading) and /api/health (the state of the server)."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from pipeline.serve import refusals
from pipeline.serve.refusals import Limits, Refusal, refusal
from pipeline.serve.uploads import (
    BadUpload,
    ClientDisconnect,
    NoRoomForUpload,
    Place,
    QueueFull,
    ReadingQueue,
    SlowUpload,
    Started,
    TooLargeUpload,
    Upload,
    Waiting,
    receive_upload,
)
from pipeline.serve.worker import Answer, Mouth, ReadingWorker, WorkerDied, WorkerLate
from shards.errors import PipelineError
from shards.schema import Reason

EVENTS = "application/x-ndjson"
"""With this type in `Accept`, /api/read answers one JSON object a line: the progress, then the reading."""

FILES = {
    "/": ("pipeline.serve", "page/page.html", "text/html"),
    "/page.css": ("pipeline.serve", "page/page.css", "text/css"),
    "/page.js": ("pipeline.serve", "page/page.js", "text/javascript"),
    "/camera.js": ("pipeline.serve", "page/camera.js", "text/javascript"),
    "/icon.svg": ("pipeline.serve", "page/icon.svg", "image/svg+xml"),
    # the colours and type of the reports
    "/base.css": ("stages.pages", "templates/page.css", "text/css"),
}

JsonObject = dict[str, Any]


def make_app(worker: ReadingWorker, limits: Limits, model_name: str) -> FastAPI:
    """Returns the app, which stops the worker when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.queue = ReadingQueue(worker, limits.max_places)
        yield
        await app.state.queue.close()

    # no API documentation page: FastAPI's would load scripts from other servers
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    for address, file in FILES.items():
        app.add_api_route(address, _file(*file), methods=["GET"])

    @app.get("/api/health")
    async def health() -> JsonObject:
        queue: ReadingQueue = app.state.queue
        return {"status": "ok", "model": model_name, "num_videos": queue.num_taken, "limits": asdict(limits)}

    @app.post("/api/read")
    async def read(request: Request) -> Response:
        queue: ReadingQueue = app.state.queue
        try:
            place = queue.reserve()
        except QueueFull:
            return _refused(refusal(refusals.BUSY, limits), {"Retry-After": "30"})
        try:
            started_s = time.monotonic()
            upload = await receive_upload(request, limits)
            upload_s = time.monotonic() - started_s
        except BaseException as error:
            place.leave()
            reason = _UPLOAD_FAULTS.get(type(error))
            if reason is None:
                raise
            return _refused(refusal(reason, limits, str(error) or None))
        events = _json_events(place, upload, upload_s, worker, limits)
        if EVENTS in request.headers.get("accept", ""):
            return _EventStream(events, place)
        try:
            async for event in events:
                last = event
                if event["state"] == "waiting" and await request.is_disconnected():
                    break
        finally:
            place.leave()
        status = last.pop("status", 200)
        last.pop("state")
        return JSONResponse(last, status)

    return app


_UPLOAD_FAULTS: dict[type[BaseException], str] = {
    TooLargeUpload: refusals.TOO_LARGE,
    BadUpload: refusals.BAD_REQUEST,
    SlowUpload: refusals.SLOW_UPLOAD,
    NoRoomForUpload: refusals.NO_ROOM,
    ClientDisconnect: refusals.BAD_REQUEST,
    # uvicorn cancels only the requests that are not finished soon after the server is stopped
    asyncio.CancelledError: refusals.STOPPING,
}


async def _json_events(
    place: Place, upload: Upload, upload_s: float, worker: ReadingWorker, limits: Limits
) -> AsyncIterator[JsonObject]:
    """Yields the events of a video as JSON objects; the last one is `done` or `failed`."""
    waited_s = 0.0
    mouth: Mouth | None = None
    try:
        async for event in place.read(upload):
            match event:
                case Waiting(num_before):
                    yield {"state": "waiting", "num_before": num_before}
                case Started():
                    waited_s = event.waited_s
                    yield {"state": "started"}
                case Mouth():
                    mouth = event
                    yield {"state": "mouth", "mouth": mouth.strip, "mouth_fps": mouth.fps}
                case Answer(reading, captions, mouth_s, reading_s):
                    if reading["reason"] is not None:
                        reason, detail = _split_reason(reading["reason"], upload)
                        yield _failed(refusal(reason, limits, detail))
                        return
                    yield {
                        "state": "done",
                        **reading,
                        "path": upload.name,
                        "captions": {
                            ending: text.replace(str(upload.path), upload.name)
                            for ending, text in captions.items()
                        },
                        "segments": [_with_message(part, upload, limits) for part in reading["segments"]],
                        "mouth": mouth and mouth.strip,
                        "mouth_fps": mouth and mouth.fps,
                        "seconds": {
                            "upload": round(upload_s, 3),
                            "waiting": round(waited_s, 3),
                            "mouth": round(mouth_s, 3),
                            "reading": round(reading_s, 3),
                        },
                    }
    except WorkerDied:
        yield _failed(refusal(refusals.STOPPING if worker.is_stopped else Reason.CRASHED, limits))
    except WorkerLate:
        yield _failed(refusal(Reason.TIMEOUT, limits))
    except PipelineError as error:
        yield _failed(refusal(refusals.NO_READER, limits, str(error)))


def _with_message(segment: JsonObject, upload: Upload, limits: Limits) -> JsonObject:
    """Adds a plain message to a segment that could not be read."""
    if segment["reason"] is None:
        return segment
    reason, detail = _split_reason(segment["reason"], upload)
    return {**segment, "message": refusal(reason, limits, detail).message}


def _split_reason(text: str, upload: Upload) -> tuple[str, str]:
    """Splits `reason: detail`; the detail gets the file name of the user."""
    reason, _, detail = text.partition(": ")
    for name in (str(upload.path), f"{upload.path.name} "):
        if detail.startswith(name):
            detail = f"{upload.name} {detail.removeprefix(name).lstrip()}"
    return reason, detail


def _failed(refused: Refusal) -> JsonObject:
    return {"state": "failed", "status": refused.status, **refused.as_json()}


def _refused(refused: Refusal, headers: dict[str, str] | None = None) -> JSONResponse:
    # the rest of the request is not read
    return JSONResponse(refused.as_json(), refused.status, {"Connection": "close", **(headers or {})})


class _EventStream(StreamingResponse):
    """Sends each event as a line; gives back the place however the answer ends, also before it begins."""

    def __init__(self, events: AsyncIterator[JsonObject], place: Place) -> None:
        super().__init__(_lines(events), media_type=EVENTS)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._place.leave()


async def _lines(events: AsyncIterator[JsonObject]) -> AsyncIterator[str]:
    async for event in events:
        yield json.dumps(event, ensure_ascii=False) + "\n"


def _file(package: str, path: str, media_type: str) -> Any:
    content = (resources.files(package) / path).read_bytes()

    async def send() -> Response:
        return Response(content, media_type=media_type)

    return send
