"""One run at a time for each artifact: a second one waits, however it was started."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cryoanm_lib.errors import ArtifactError


@contextmanager
def alone(results: Path, artifact: Path) -> Iterator[bool]:
    """Nobody else makes this artifact meanwhile; yields whether somebody did, and had to be waited for.

    The operating system lets go of the lock when a process ends, in whatever way.

    Parameters
    ----------
    results : Path
        Folder of results, which holds the locks in `.locks/`.
    artifact : Path
        Where the artifact will be, below it.

    Raises
    ------
    ArtifactError
        If the folder cannot be written to.
    """
    path = results / ".locks" / f"{artifact.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
            waited = False
        except Timeout:
            print(f"another run is making {results / artifact}: waiting until it ends", file=sys.stderr)
            lock.acquire()
            waited = True
    except OSError as error:
        raise ArtifactError(
            f"{results} cannot be written to ({error}): choose another results folder"
        ) from error
    try:
        yield waited
    finally:
        lock.release()
