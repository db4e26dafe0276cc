"""A reference run: numbers that took longer than a reader waits, kept and shown as what they are."""

import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from cryoanm_lib.configuration import Profile
from cryoanm_lib.errors import ArtifactError
from cryoanm_lib.experiment import gather_metrics
from cryoanm_lib.storage import load_json, save_json

# What a history needs to be drawn again; the rest stays with the fit.
HISTORY_KEYS = ("resolution", "total_steps", "seconds")


@dataclass(frozen=True)
class Reference:
    """One finished run of a whole profile.

    Attributes
    ----------
    made : dict
        When, where and by which code.
    metrics : dict
        Runs by name, as of `gather_metrics`.
    histories : dict
        Residuals along the training of the runs whose task was also solved by a recipe in between.
    """

    made: dict
    metrics: dict[str, dict]
    histories: dict[str, list[dict]]


def reference_path(profile: str) -> Path:
    """Where the reference run of a profile is kept."""
    return Path(__file__).resolve().parent / "data" / f"reference_{profile}.json"


def save_reference(settings: Profile, results: Path, path: Path | None = None) -> Path:
    """Keep the finished fits of a profile as its reference run, and return the file.

    Raises
    ------
    ArtifactError
        If a fit is missing.
    """
    path = reference_path(settings.name) if path is None else path
    runs = settings.runs
    compared = {section.task for section in runs.values() if section.recipe == "between"}
    histories = {
        name: [_kept(record) for record in load_json(_folder(settings, results, name) / "history.json", list)]
        for name, section in runs.items()
        if section.task in compared
    }
    save_json(path, asdict(Reference(_circumstances(settings), gather_metrics(settings, results), histories)))
    return path


def load_reference(profile: str) -> Reference:
    """The reference run of a profile that came with the library.

    Raises
    ------
    ArtifactError
        If there is none.
    """
    path = reference_path(profile)
    if not path.is_file():
        raise ArtifactError(
            f"there is no reference run of profile {profile!r}: run the profile, then "
            f"`python -m cryoanm_lib reference --profile {profile}`"
        )
    return Reference(**load_json(path))


def _folder(settings: Profile, results: Path, name: str) -> Path:
    return results / settings.artifact_path(name)


def _kept(record: dict) -> dict:
    """Four digits of what a figure needs."""
    wanted = [key for key in record if key in HISTORY_KEYS or key.endswith(("_residual", "_fraction"))]
    return {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in record.items()
        if key in wanted
    }


def _circumstances(settings: Profile) -> dict:
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "profile": settings.name,
        "structure": settings.structure,
        "date": date.today().isoformat(),
        "commit": git.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "torch": version("torch"),
        "pyro": version("pyro-ppl"),
        "processor": _processor(),
    }


def _processor() -> str:
    """The model of the processor where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
