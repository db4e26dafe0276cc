"""Run one notebook with papermill; a failed one leaves a partial report and no output."""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
import papermill
from traitlets.config import Config

sys.path.insert(0, str(Path(__file__).parents[2]))  # the library of this very checkout
from cryoanm_lib.io.provenance import beginning, installed_packages, processor

KERNEL = "python3"  # by name: the notebook's own metadata may name a kernel that only its author has
LONGEST_SOCKET = 103  # bytes of a socket's path that macOS allows; Linux allows four more


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--partial", type=Path, required=True, help="where the report of a failed run stays")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--structure", required=True)
    parser.add_argument("--results", required=True)
    args = parser.parse_args()

    args.partial.parent.mkdir(parents=True, exist_ok=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.unlink(missing_ok=True)
    made_by = {"source": hashlib.sha256(args.source.read_bytes()).hexdigest(), **beginning()}
    made_by |= {"processor": processor(), "threads": os.environ.get("OMP_NUM_THREADS", "")}
    try:
        with folder_for_sockets() as folder:
            if os.path.expanduser("~") == "~":  # a user without a home, which Jupyter asks for
                os.environ["HOME"] = folder
            executed = papermill.execute_notebook(
                literally(args.source),
                literally(args.partial),
                parameters={"profile": args.profile, "structure": args.structure, "results": args.results},
                kernel_name=KERNEL,
                progress_bar=False,
                log_output=True,
                request_save_on_cell_execute=True,
                config=own_sockets(Path(folder)),
            )
    except papermill.exceptions.PapermillExecutionError as error:
        print(
            f"{error}\n{args.source} failed in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
            f"what it had done until then is in {args.partial}",
            file=sys.stderr,
        )
        return 1
    # papermill has written profile, structure and times; this is what else made it.
    executed.metadata["provenance"] = {**made_by, "packages": installed_packages()}
    nbformat.write(executed, args.partial)
    shutil.move(args.partial, args.output)
    return 0


def literally(path: Path) -> str:
    """A path into which papermill fills no parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def folder_for_sockets() -> tempfile.TemporaryDirectory[str]:
    """The usual folder of temporary files, or /tmp where a socket's path in that would be too long."""
    usual = tempfile.gettempdir()
    if len(os.fsencode(f"{usual}/kernel-12345678/connection-ipc-1")) <= LONGEST_SOCKET:
        return tempfile.TemporaryDirectory(prefix="kernel-")
    try:
        return tempfile.TemporaryDirectory(prefix="kernel-", dir="/tmp")
    except OSError as error:
        raise SystemExit(
            f"no place for the kernel's sockets: {usual} is too long for their paths, and /tmp cannot be "
            f"written to ({error}): set TMPDIR to a folder with a shorter path"
        ) from error


def own_sockets(folder: Path) -> Config:
    """Talk to the kernel through files of its own: two that start at once may be told the same TCP port."""
    return Config({"KernelManager": {"transport": "ipc", "connection_file": str(folder / "connection.json")}})


if __name__ == "__main__":
    raise SystemExit(main())
