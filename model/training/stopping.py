"""SIGTERM and Ctrl-C: noted at once, handled where training can stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignals:
    """Notes a signal. A second Ctrl-C raises KeyboardInterrupt at once.

    One stop may send SIGTERM twice: the batch system sends it to every process, torchrun to its own processes.
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
        """Notes signals within it; restores the previous handlers afterwards."""
        previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
