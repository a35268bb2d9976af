"""Says what ended the command where the memory of its process is limited (`ulimit -v`, many batch systems).

Native libraries do not raise where an allocation or a thread is refused them: OpenBLAS, DuckDB, the C library's loader
and abseil end the process, some without a word, and no handler in it can tell.
"""

import ctypes
import os
import signal

from shards.errors import PipelineError
from shards.machine import is_address_space_short, limit_bytes

USED_UP = (
    "memory is used up: lower machine.workers or train.batch_size, or raise the limit (ulimit -v, or that of the batch "
    "system)"
)
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TOLD_BY = (
    "failed to map segment",
    "can't start new thread",
    "Cannot allocate memory",
    "can't allocate memory",
    "std::bad_alloc",
    "could not create a primitive",
    "XNNPACK",
    "AllocateTensors",
    "Failed to launch worker thread",
    "Resource temporarily unavailable",
)
"""Of which one stands in an error that Python or a library raises where memory is refused."""


def is_about_memory(error: BaseException) -> bool:
    """Whether memory is limited, and `error`, or what it was raised from, says that it was refused.

    Errors that are no message of ours need not say so near the limit: there Python finds faults in its own modules.
    """
    if limit_bytes() is None:
        return False
    if is_address_space_short() and not isinstance(error, PipelineError | OSError):
        return True
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or any(told in str(cause) for told in _TOLD_BY):
            return True
        cause = cause.__cause__
    return False


def run_under_watch() -> int | None:
    """Where memory is limited, returns in a new process, whose end this one waits for; then ends as that one did.

    Gives the descriptor to which the new process writes before it ends by itself; None where memory is not limited.
    One that has not written was ended by a library: then this process says so, and exits with 1. Signals that come to
    this process alone go on to the other; Ctrl-C reaches both from the terminal.
    """
    if (limit := limit_bytes()) is None:
        return None
    ended_by_itself, telling = os.pipe()
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {*_STOPS, signal.SIGCHLD})
    child = os.fork()
    if not child:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(ended_by_itself)
        # its threads take 40 MB each, and where one cannot start it sends this process Ctrl-C
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        return telling
    os.close(telling)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        came = signal.sigwaitinfo({*_STOPS, signal.SIGCHLD})
        # of one that the terminal sent, by the kernel, the other has its own
        if came.si_signo in _STOPS and came.si_code <= 0:
            os.kill(child, came.si_signo)
    code = os.waitstatus_to_exitcode(ended[1])
    if -code in (*_STOPS, signal.SIGKILL):
        os._exit(128 - code)
    if not os.read(ended_by_itself, 1):
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        told = f"pipeline: {USED_UP}; a library ended it ({how}), its address space may have {limit / 1e6:,.0f} MB\n"
        os.write(2, told.encode())
        code = 1
    os._exit(code)


_PR_SET_PDEATHSIG = 1
"""Of Linux: the signal that a process gets when the one that started it is gone."""
