"""Hangs up on those who hold a connection and do nothing.

uvicorn waits for ever for a request's head, and for who takes no answer.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


def impatient(pause_s: float) -> type[H11Protocol]:
    """A connection that ends within twice `pause_s` where nothing becomes of it.

    That is: no whole head of a request has come, or bytes of an answer are left and none is taken. How fast a body
    comes is for who reads it (`upload.py`), how long an answer takes for who gives it (`worker.py`).
    """

    class Impatient(H11Protocol):
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

    return Impatient
