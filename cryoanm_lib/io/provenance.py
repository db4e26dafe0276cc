"""What a result says of where it comes from: the state of the code, and the machine."""

import functools
import hashlib
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what runs a notebook asks for code and packages alone, and need not wait for torch
    import torch


def commit() -> str:
    """The git commit of the library with "-dirty" if files have changed, or "unknown" outside a clone."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # not just installed into another project
        return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def origin() -> str:
    """Address of the repository on GitHub that the library was cloned from, or "" where there is none."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return github_address(_git("remote", "get-url", "origin"))
    except (OSError, subprocess.CalledProcessError):
        return ""


def github_address(remote: str) -> str:
    """A remote as https://github.com/someone/something, without what a user signs in with, or "".

    Examples
    --------
    >>> github_address("git@github.com:someone/something.git")
    'https://github.com/someone/something'
    """
    host = r"(?:https://(?:[^@/]*@)?github\.com/|(?:ssh://)?git@github\.com[:/])"
    found = re.fullmatch(host + r"([\w-]+/[\w.-]+?)(?:\.git)?/?", remote)
    return f"https://github.com/{found[1]}" if found else ""


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    options = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": True}
    return subprocess.run(command, **options).stdout.strip()


@functools.cache
def library_hash() -> str:
    """SHA-256 of the library's modules and tables, as they are when a process first asks."""
    digest, folder = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.csv")]):
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def processor() -> str:
    """The model of the processor where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def circumstances(begun: Mapping[str, str], device: "torch.device") -> dict:
    """Where numbers were made, and by what: the part of `provenance` that stands beside them."""
    import torch

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "commit": begun["commit"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def now() -> datetime:
    """The time in UTC."""
    return datetime.now(timezone.utc)


def beginning() -> dict[str, str]:
    """With what code and when a process begins with something; later the files may be others."""
    return {
        "version": version(),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "started": now().isoformat(timespec="seconds"),
    }


def provenance(begun: Mapping[str, str], device: "torch.device", **of: object) -> dict:
    """All that made an artifact: what it is of, code, packages, machine, and times in UTC.

    Parameters
    ----------
    begun, device : mapping of str, torch.device
        What `beginning` said when this process began with it, which ends now, and where it was computed.
    **of
        What it is of: configuration, data and seed.
    """
    finished = now().isoformat(timespec="seconds")
    made_by = {**circumstances(begun, device), **begun}
    return {**of, **made_by, "finished": finished, "packages": loaded_packages()}


def version() -> str:
    """Of this library as it is installed; "unknown" where its folder is merely on the path."""
    try:
        return metadata.version("cryoanm")
    except metadata.PackageNotFoundError:
        return "unknown"


def loaded_packages() -> dict[str, str]:
    """Versions of the installed packages that this process has imported from."""
    roots = {name.partition(".")[0] for name in sys.modules}
    names = {
        name for root, names in metadata.packages_distributions().items() if root in roots for name in names
    }
    return {name: metadata.version(name) for name in sorted(names, key=str.lower)}


def installed_packages() -> dict[str, str]:
    """Versions of all packages that this interpreter finds."""
    found = {package.metadata["Name"]: package.version for package in metadata.distributions()}
    return {name: found[name] for name in sorted(found, key=str.lower)}
