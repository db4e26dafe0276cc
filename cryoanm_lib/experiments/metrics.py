"""Headline numbers of all runs of a profile: gathered, and held against the ranges that they must be in."""

from collections.abc import Collection
from pathlib import Path

from cryoanm_lib.experiments.profile import Profile
from cryoanm_lib.experiments.run import Assessed, Run
from cryoanm_lib.io.storage import load_json


def runs_and_assessments(settings: Profile) -> dict[str, Run | Assessed]:
    """Every run and assessment of a profile by name."""
    found: dict[str, Run | Assessed] = {name: Run(name, settings, of) for name, of in settings.runs.items()}
    return found | {name: settings.assessed(name) for name in settings.assessments}


def gather_metrics(settings: Profile, results: Path, names: Collection[str] | None = None) -> dict[str, dict]:
    """The metrics of every run and assessment of a profile by name, or some, with what tables say of it."""
    return {
        name: load_json(results / of.path / "metrics.json") | of.description
        for name, of in runs_and_assessments(settings).items()
        if names is None or name in names
    }


def check_metrics(metrics: dict[str, dict], expected: dict[str, dict[str, list[float]]]) -> list[str]:
    """One line for each metric that is missing or outside its expected range; none if all is well."""
    complaints = []
    for name, ranges in expected.items():
        for key, (low, high) in ranges.items():
            value = metrics.get(name, {}).get(key)
            if value is None:
                complaints.append(f"{name}.{key} is missing; expected {low} to {high}")
            elif not low <= value <= high:
                complaints.append(f"{name}.{key} = {value:.4g} is outside {low} to {high}")
    return complaints
