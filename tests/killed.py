"""Work in processes of their own, that can be killed, find the disk full, or run beside each other."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

#: How often the quick suite kills something, and the long one.
FEW, MANY = 3, 100

#: Ctrl-C, what a batch system sends, and what nobody can refuse.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def started(work: Callable[[Path], object], folder: Path, largest_file: int | None = None) -> int:
    """A process of its own that works in a folder, and says beside it what went wrong.

    No file may grow beyond a limit, if there is one, as where a disk is full.
    """
    import resource  # which Windows has no more than fork

    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    outcome = 1
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stderr = open(log_of(folder), "a", buffering=1)
        os.dup2(sys.stderr.fileno(), 2)
        torch.set_num_threads(1)
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, unlimited[1]))
        work(folder)
        outcome = 0
    except BaseException as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)  # there is room for what is said of it
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(outcome)


def log_of(folder: Path) -> Path:
    """Where processes say what went wrong."""
    return folder.with_suffix(".log")


def until(condition: Callable[[], object], seconds: float = 300.0) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing came in {seconds:.0f} s"
        time.sleep(0.005)


def outcome_of(process: int, wait: float = 0.0) -> int | None:
    """The exit status of a process, minus the signal where one ended it; none while it runs."""
    end = time.monotonic() + wait
    while not (found := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() >= end:
            return None
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(found[1])


def must_run(process: int, folder: Path) -> None:
    """It has not ended, neither well nor badly."""
    outcome = outcome_of(process)
    said = log_of(folder).read_text() if outcome else "too short for this test"
    assert outcome is None, f"it has ended: {said}"


def must_succeed(process: int, folder: Path) -> None:
    """It ends, and well."""
    assert outcome_of(process, wait=900.0) == 0, log_of(folder).read_text()


def must_end(process: int, by: int) -> None:
    """It ends when it is sent a signal, in whatever way."""
    os.kill(process, by)
    assert outcome_of(process, wait=60.0) is not None, "it would not end"
