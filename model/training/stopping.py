"""SIGTERM and Ctrl-C, answered where training can stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignals:
    """Notes a signal; a second Ctrl-C raises KeyboardInterrupt at once.

    SIGTERM may come twice for one stop: from the batch system to every process, and from torchrun to its own.
    """

    def __init__(self) -> None:
        self.requested = False
        self._was_ctrl_c = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        is_ctrl_c = number == signal.SIGINT
        if is_ctrl_c and self._was_ctrl_c:
            raise KeyboardInterrupt
        self.requested, self._was_ctrl_c = True, self._was_ctrl_c or is_ctrl_c

    @contextmanager
    def handlers(self) -> Iterator[None]:
        """Signals are noted inside, and do what they did before it afterwards."""
        former = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
