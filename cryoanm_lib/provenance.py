"""What a result says of where it comes from: the state of the code, and the machine."""

import platform
import subprocess
from pathlib import Path

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


def circumstances(device: torch.device) -> dict:
    """Where numbers were made, and by what."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "commit": commit(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
