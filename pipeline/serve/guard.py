"""Who may ask, and what the browser may do with the answers: wraps the whole app.

A page of another site that a browser shows must neither use this server (cross-site requests) nor, by letting its own
name point here (DNS rebinding), read from it.

Hangs up on those who hold a connection and do nothing.

uvicorn waits for ever for a request's head, and for who takes no answer.
"""

import asyncio
import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.serve.limits import Limits
from pipeline.serve.plain_words import FOREIGN, WRONG_HOST, refusal

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
    """Refuses what another site's page asks, and hosts that are not this server's."""

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
        """A bare address cannot be made to point elsewhere; a name can."""
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
    """Browsers say where a request comes from; other programs say nothing, and no site can make them ask."""
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
    """A connection that ends within twice `pause_s` where nothing becomes of it.

    That is: no whole head of a request has come, or bytes of an answer are left and none is taken. How fast a body
    comes is for who reads it (`upload.py`), how long an answer takes for who gives it (`worker.py`).
    """

    class TimeoutProtocol(H11Protocol):
        _watch: asyncio.TimerHandle

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._look(before=None)

        def connection_lost(self, exc: Exception | None) -> None:
            self._watch.cancel()
            super().connection_lost(exc)

        def _look(self, before: object) -> None:
            num_left = self.transport.get_write_buffer_size()
            between_requests = self.cycle is None or self.cycle.response_complete
            now = (self.cycle, num_left)
            if now == before and (between_requests or num_left > 0):
                self.transport.abort()  # `close` would wait for who takes nothing
            else:
                self._watch = self.loop.call_later(pause_s, self._look, now)

    return TimeoutProtocol
