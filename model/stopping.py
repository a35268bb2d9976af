"""SIGTERM and Ctrl-C, answered where training can stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignals:
    """Notes a signal; a second one raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.has_come = False

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.has_come:
            raise KeyboardInterrupt
        self.has_come = True

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Signals are noted inside, and do what they did before it afterwards."""
        former = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
