"""`metrics.jsonl`, the figures of all steps and epochs of a run, and how trackers get them.

The file is complete whatever happens to a tracker. `trackers.json` next to it holds each tracker's run id and how many
lines it was sent. So a tracker that failed, or was added later, gets the lines that it lacks; and a resumed run, which
repeats steps that a killed run has sent, sends none twice.
"""

import json
import math
import secrets
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Any

from model.progress import Progress
from model.runs import RunFolder, logger
from model.training.trackers import MAX_ROWS, Row, TrackedRun, Tracker, start_tracker
from shards.files import write_bytes, write_json

SEND_EVERY_S = 30.0
REST = 10
"""Sending waits at least this many times as long as it took, so that a slow server costs training a tenth at most."""
EPOCH = "epoch/number"


@dataclass
class _Sender:
    """One tracker: the number of lines sent to it, and the rows that follow them."""

    name: str
    id: str
    sent: int
    pending: deque[Row] = field(default_factory=deque)
    tracker: Tracker | None = None
    has_failed: bool = False


class MetricJournal:
    """Appends rows to metrics.jsonl and sends them to the trackers, every 30 s and at the end. First rank only."""

    def __init__(
        self,
        run: RunFolder,
        trackers: Sequence[str],
        config: Mapping[str, Mapping[str, Any]],
        progress: Progress,
    ) -> None:
        """Continues after `progress`: removes the lines of steps that are repeated. `trackers` are names."""
        self._run, self._config = run, config
        self._positions: dict[str, dict[str, Any]] = {}
        if run.trackers.exists():
            self._positions = json.loads(run.trackers.read_text("utf-8"))
        # 21 characters: all that SwanLab takes
        fresh = {"id": secrets.token_hex(16)[:21], "sent": 0}
        self._senders = [_Sender(name, **{**fresh, **self._positions.get(name, {})}) for name in trackers]
        self._file: IO[str] | None = None
        self._num_rows = 0
        self._next_s = time.monotonic() + SEND_EVERY_S
        self._rewind(progress)

    def start(self) -> None:
        """Starts all trackers. Raises ConfigError or TrainingError, before anything is trained."""
        for sender in self._senders:
            self._start(sender)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Appends the finite figures of a step or an epoch. Raises OSError if the disk is full."""
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        if not finite:
            return
        if self._file is None:  # a run that was already finished writes no file
            self._run.folder.mkdir(parents=True, exist_ok=True)
            self._file = self._run.metrics.open("a", encoding="utf-8", buffering=1)
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._queue(step, finite)
        if time.monotonic() >= self._next_s:
            self._send_all()

    def close(self, is_complete: bool) -> None:
        """Sends the rest and ends the trackers; `is_complete` is whether the training is over."""
        self._send_all()
        for sender in self._senders:
            if sender.tracker:
                self._guarded(sender, lambda tracker: tracker.finish(is_complete))
            if sender.pending:
                logger.warning(
                    "machine.trackers: %s was not sent the last %d of %d rows of %s; the same command sends them, "
                    "also after training has finished",
                    sender.name,
                    len(sender.pending),
                    self._num_rows,
                    self._run.metrics,
                )
        if self._file:
            self._file.close()

    def _rewind(self, progress: Progress) -> None:
        """Keeps the lines up to `progress`, and queues those that a tracker lacks."""
        if not self._run.metrics.exists():
            return
        lines = self._run.metrics.read_bytes().splitlines(keepends=True)
        kept = 0
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                break  # a killed run has not written it to the end
            if row["step"] > progress.steps or row.get(EPOCH, -1) >= progress.epoch:
                break
            self._queue(row.pop("step"), row)
            kept += 1
        if kept < len(lines):
            write_bytes(self._run.metrics, b"".join(lines[:kept]))

    def _queue(self, step: int, figures: Mapping[str, float]) -> None:
        for sender in self._senders:
            if self._num_rows >= sender.sent:
                sender.pending.append((step, figures))
        self._num_rows += 1

    def _send_all(self) -> None:
        start_s = time.monotonic()
        for sender in self._senders:
            if sender.pending:
                self._guarded(sender, lambda tracker, sender=sender: self._send(tracker, sender))
        now_s = time.monotonic()
        self._next_s = now_s + max(SEND_EVERY_S, REST * (now_s - start_s))

    def _send(self, tracker: Tracker, sender: _Sender) -> None:
        while sender.pending:
            rows = list(islice(sender.pending, MAX_ROWS))
            # the position comes first: after a kill the tracker may lack these rows, but it shows none twice
            self._move(sender, len(rows))
            try:
                tracker.log(rows)
            except BaseException:
                self._move(sender, -len(rows))
                raise
            for _ in rows:
                sender.pending.popleft()
        if sender.has_failed:
            logger.info("machine.trackers: %s works again, and has all rows", sender.name)
            sender.has_failed = False

    def _move(self, sender: _Sender, num_rows: int) -> None:
        sender.sent += num_rows
        self._positions[sender.name] = {"id": sender.id, "sent": sender.sent}
        write_json(self._run.trackers, self._positions)

    def _start(self, sender: _Sender) -> Tracker:
        if sender.tracker is None:
            self._move(sender, 0)  # the id: a killed run must not leave a second run in the tracker
            run = TrackedRun(sender.id, self._run.folder.name, self._run.folder, self._config)
            sender.tracker = start_tracker(sender.name, run)
        return sender.tracker

    def _guarded(self, sender: _Sender, use: Any) -> None:
        """Calls `use` with the tracker. A failure is logged once, and does not end a training of days."""
        try:
            use(self._start(sender))
        except Exception as error:  # noqa: BLE001 (foreign code without a common class of errors)
            if not sender.has_failed:
                logger.warning(
                    "machine.trackers: %s failed (%s: %s). Training continues, %s keeps all figures, and sending is "
                    "tried again",
                    sender.name,
                    type(error).__name__,
                    error,
                    self._run.metrics,
                )
            sender.has_failed = True
