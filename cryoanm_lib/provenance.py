"""What a result says of where it comes from: the state of the code, and the machine."""

import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what runs a notebook asks for code and packages alone, and need not wait for torch
    import torch


def commit() -> str:
    """The git commit of the library with "-dirty" if files have changed, or "unknown" outside a clone."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def processor() -> str:
    """The model of the processor where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def circumstances(device: "torch.device") -> dict:
    """Where numbers were made, and by what."""
    import torch

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "commit": commit(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def now() -> datetime:
    """The time in UTC."""
    return datetime.now(timezone.utc)


def provenance(device: "torch.device", started: datetime, **of: object) -> dict:
    """All that made an artifact: what it is of, code, packages, machine, and times in UTC.

    Parameters
    ----------
    device : torch.device
        Where it was computed.
    started : datetime
        When this process began with it; it ends now.
    **of
        What it is of: configuration, data and seed.
    """
    return {
        **of,
        **circumstances(device),
        **code(loaded_packages()),
        "started": started.isoformat(timespec="seconds"),
        "finished": now().isoformat(timespec="seconds"),
    }


def code(packages: dict[str, str]) -> dict:
    """The library, its commit, Python, and these packages."""
    return {
        "version": version(),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
    }


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
