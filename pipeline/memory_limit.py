"""Reports that memory is used up if the memory of the process is limited (`ulimit -v`, many batch systems).

If an allocation or a new thread fails, some native libraries (OpenBLAS, DuckDB, the C library's loader, abseil) end the
process instead of raising, some without a message, and no handler in the process can report it.
"""

import ctypes
import os
import signal
import sys

from shards.errors import PipelineError
from shards.machine import describe_exit, is_address_space_short, limit_bytes

USED_UP = (
    "memory is used up: lower machine.workers or train.batch_size, or raise the limit (ulimit -v, or that of "
    "the batch system)"
)
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MEMORY_MESSAGES = (
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
"""Parts of the errors that Python and libraries raise if an allocation fails."""


def is_about_memory(error: BaseException) -> bool:
    """Returns whether memory is limited and `error`, or one of its causes, says that an allocation failed.

    Near the limit every error counts that is not a PipelineError or OSError: Python then fails in its own modules.
    """
    if limit_bytes() is None:
        return False
    if is_address_space_short() and not isinstance(error, PipelineError | OSError):
        return True
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or any(message in str(cause) for message in _MEMORY_MESSAGES):
            return True
        cause = cause.__cause__
    return False


def run_under_watch() -> int | None:
    """Returns in a new process if memory is limited; the first process waits for it and ends with its exit code.

    Returns the descriptor to which the new process must write before it ends by itself; None if memory is not limited.
    If it did not write, a library ended it: the first process reports this and exits with 1. The first process forwards
    signals that only it receives; Ctrl-C reaches both processes from the terminal.
    """
    if (limit := limit_bytes()) is None:
        return None
    ended_by_itself, report = os.pipe()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {*_STOPS, signal.SIGCHLD})
    child = os.fork()
    if not child:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(ended_by_itself)
        # OpenBLAS threads take 40 MB each; if one cannot start, OpenBLAS sends SIGINT to this process
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        sys.unraisablehook = _print_unless_memory
        return report
    os.close(report)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        received = signal.sigwaitinfo({*_STOPS, signal.SIGCHLD})
        # si_code > 0: the kernel sent it for the terminal, and the new process got it too
        if received.si_signo in _STOPS and received.si_code <= 0:
            os.kill(child, received.si_signo)
    code = os.waitstatus_to_exitcode(ended[1])
    if -code in (*_STOPS, signal.SIGKILL):
        os._exit(128 - code)
    if not os.read(ended_by_itself, 1):
        ended_how = f"a library ended the command ({describe_exit(code)})"
        message = f"pipeline: {USED_UP}; {ended_how}, its address space is limited to {limit / 1e6:,.0f} MB\n"
        os.write(2, message.encode())
        code = 1
    os._exit(code)


def _print_unless_memory(ignored: "sys.UnraisableHookArgs") -> None:
    """Prints an error that Python ignores, as in a destructor, but not a lack of memory: the command reports that.

    Without memory, Python 3.13 prints only a traceback and not what it ignores.
    """
    if not issubclass(ignored.exc_type, MemoryError):
        sys.__unraisablehook__(ignored)


_PR_SET_PDEATHSIG = 1
"""Linux: option of prctl for the signal that a process gets when its parent ends."""
