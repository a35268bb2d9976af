"""Checks who sends a request and restricts what the browser may do with the answer: wraps the whole app.

A page of another site must not use this server (cross-site requests), nor read from it after pointing its own name
here (DNS rebinding).

Also closes idle connections: uvicorn waits for ever for the head of a request, and for clients that do not read.
"""

import asyncio
import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.serve.refusals import FOREIGN, WRONG_HOST, Limits, refusal

ANSWER_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses requests from pages of other sites, and requests for host names that are not this server's."""

    def __init__(self, app: ASGIApp, host: str, limits: Limits) -> None:
        self._app, self._limits = app, limits
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(ANSWER_HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        answer: ASGIApp = self._app
        if not self._is_own_name(headers.get("host", "")):
            answer = self._refused(WRONG_HOST)
        elif scope["method"] not in ("GET", "HEAD") and not _is_own_page(headers):
            answer = self._refused(FOREIGN)
        await answer(scope, receive, send_guarded)

    def _refused(self, reason: str) -> JSONResponse:
        refused = refusal(reason, self._limits)
        return JSONResponse(refused.as_json(), refused.status, {"Connection": "close"})

    def _is_own_name(self, host: str) -> bool:
        """Accepts own names and all IP addresses: a name can be made to point here, an address cannot."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _is_own_page(headers: Headers) -> bool:
    """Returns whether the server's own page sent the request, or a program: a site can only control browsers.

    Browsers say where a request comes from; other programs do not.
    """
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc == headers.get("host")
    except ValueError:
        return False


def timeout_protocol(pause_s: float) -> type[H11Protocol]:
    """Returns a protocol that closes an idle connection within twice `pause_s`.

    Idle means: the head of a request is not complete, or the client does not read the rest of an answer. `uploads.py`
    checks the speed of a request's body, `worker.py` the time for an answer.
    """

    class TimeoutProtocol(H11Protocol):
        _watch: asyncio.TimerHandle

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._check(before=None)

        def connection_lost(self, exc: Exception | None) -> None:
            self._watch.cancel()
            super().connection_lost(exc)

        def _check(self, before: object) -> None:
            num_left = self.transport.get_write_buffer_size()
            between_requests = self.cycle is None or self.cycle.response_complete
            now = (self.cycle, num_left)
            if now == before and (between_requests or num_left > 0):
                self.transport.abort()  # `close` would wait for a client that does not read
            else:
                self._watch = self.loop.call_later(pause_s, self._check, now)

    return TimeoutProtocol
