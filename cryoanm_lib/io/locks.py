"""One run at a time for each artifact, or several that share it: any other waits, however it was started."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cryoanm_lib.errors import ArtifactError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def alone(results: Path, artifact: Path, shared: bool = False) -> Iterator[bool]:
    """Nobody else makes this artifact meanwhile; yields whether somebody did, and had to be waited for.

    The operating system lets go of the lock when a process ends, in whatever way. Where it has no such lock
    to give, as on some network file systems, a warning says so: a file in place of the lock would outlive a
    run that was killed on another machine, and be waited for in vain.

    Parameters
    ----------
    results, artifact : Path
        Folder of results, which holds the locks in `.locks/`, and where the artifact will be, below it.
    shared : bool
        Nobody but others that share it too, each of whom makes a part of its own.

    Raises
    ------
    ArtifactError
        If the folder cannot be written to.
    """
    path = results / ".locks" / f"{artifact.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+")  # on some file systems a shared lock is for files that can be read
    except OSError as error:
        raise ArtifactError(
            f"{results} cannot be written to ({error}): choose another results folder"
        ) from error
    with handle:
        yield _lock(handle, results / artifact, shared)


def _lock(handle: IO[str], made: Path, shared: bool) -> bool:
    """Lock a file until it is closed; returns whether somebody else had locked it."""
    kind = 0 if fcntl is None else fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        if fcntl is None:
            raise OSError("this system has no flock")
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another run is making {made}: waiting until it ends", file=sys.stderr)
        fcntl.flock(handle, kind)  # pyright: ignore[reportOptionalMemberAccess]
        return True
    except OSError as error:
        warnings.warn(
            f"{made} cannot be locked ({error}): going on without. Two runs that make it at once would not "
            "notice each other: start one at a time, or choose a results folder on another file system",
            stacklevel=4,
        )
    return False
