"""A reference run: numbers that took longer than a reader waits, kept and shown as what they are."""

from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path

from cryoanm_lib.errors import ArtifactError
from cryoanm_lib.experiments.metrics import gather_metrics, runs_and_assessments
from cryoanm_lib.experiments.profile import Profile
from cryoanm_lib.experiments.schema import DEFAULT_STRUCTURE
from cryoanm_lib.io.storage import load_json, save_json, unusable

# What a history needs to be drawn again; the rest stays with the fit.
HISTORY_KEYS = ("resolution", "total_steps", "seconds")


@dataclass(frozen=True)
class Reference:
    """One finished run of a whole profile.

    Attributes
    ----------
    made : dict
        Profile, structure, date, and the commit, torch, device and threads of its runs.
    metrics : dict
        Runs by name, as of `gather_metrics`.
    histories : dict
        Residuals along the training of the runs whose task was also solved by a recipe in between.
    """

    made: dict
    metrics: dict[str, dict]
    histories: dict[str, list[dict]]

    def older(self, settings: Profile) -> list[str]:
        """Runs of an earlier configuration than the profile's, kept until they are run again."""
        today = {name: of.config_hash for name, of in runs_and_assessments(settings).items()}
        return [name for name, run in self.metrics.items() if run["config_hash"] != today.get(name)]


def reference_path(profile: str) -> Path:
    """Where the reference run of a profile is kept."""
    return Path(__file__).resolve().parents[1] / "data" / f"reference_{profile}.json"


def save_reference(settings: Profile, results: Path, path: Path | None = None, partial: bool = False) -> Path:
    """Keep the finished fits of a profile as its reference run, and return the file.

    What has not been run again stays as it was, if its configuration has not changed since. A partial one
    takes what there is: it keeps runs of an earlier configuration too (`Reference.older` names them), and
    lacks those that were never made.

    Raises
    ------
    ArtifactError
        If a fit is missing that no earlier reference run of this configuration has, or the structure is not
        the default.
    """
    if settings.structure != DEFAULT_STRUCTURE:
        raise ArtifactError(
            f"a reference run is of {DEFAULT_STRUCTURE}, the protein of the book, not of {settings.structure}"
        )
    path = reference_path(settings.name) if path is None else path
    before = Reference(**load_json(path)) if path.is_file() else Reference({}, {}, {})
    every, runs = runs_and_assessments(settings), settings.runs
    found = {name for name, of in every.items() if (results / of.path / "metrics.json").is_file()}
    compared = {
        name
        for name, section in runs.items()
        if (partial and section.recipe == "paper" and name in found)
        or any(other.recipe == "between" and other.task == section.task for other in runs.values())
    }
    kept = {
        name
        for name in (before.metrics.keys() - found) & every.keys()
        if (name in before.histories or name not in compared)
        and (partial or before.metrics[name]["config_hash"] == every[name].config_hash)
    }
    if partial:
        every = {name: of for name, of in every.items() if name in found | kept}
    metrics = {name: before.metrics[name] | every[name].description for name in kept}
    metrics |= gather_metrics(settings, results, every.keys() - kept)
    metrics = {name: metrics[name] for name in every}
    histories = {
        name: before.histories[name]
        if name in kept
        else [_kept(record) for record in load_json(results / every[name].path / "history.json", list)]
        for name in runs
        if name in compared & every.keys()
    }
    save_json(path, asdict(Reference(_made(settings, metrics), metrics, histories)))
    return path


def load_reference(profile: str) -> Reference:
    """The reference run of a profile that came with the library.

    Raises
    ------
    ArtifactError
        If there is none, or it is damaged.
    """
    path = reference_path(profile)
    if not path.is_file():
        raise ArtifactError(
            f"there is no reference run of profile {profile!r}: run the profile, then "
            f"`python -m cryoanm_lib reference --profile {profile}`"
        )
    content = load_json(path)
    if set(content) != {field.name for field in fields(Reference)}:
        raise unusable(path, "keys are missing or unknown")
    return Reference(**content)


def load_benchmarks() -> dict:
    """The benchmark that came with the library: when and where it was "made", "versions", and "rows"."""
    return load_json(reference_path("bench"))


def _kept(record: dict) -> dict:
    """Four decimals of what a figure needs."""
    return {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in record.items()
        if key in HISTORY_KEYS or key.endswith(("_residual", "_fraction"))
    }


def _made(settings: Profile, metrics: dict[str, dict]) -> dict:
    """What all runs have in common; what differs between them is listed."""
    common = {"profile": settings.name, "structure": settings.structure, "date": date.today().isoformat()}
    for key in ("commit", "torch", "device", "threads"):
        common[key] = ", ".join(sorted({str(run[key]) for run in metrics.values()}))
    return common
