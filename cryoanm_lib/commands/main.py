"""What Snakemake calls:  python -m cryoanm_lib fit | assess | metrics | check; and reference, weights."""

import argparse
import sys
from pathlib import Path

import yaml

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.experiments.fit import fit, load_fit, save_weights
from cryoanm_lib.experiments.metrics import check_metrics, gather_metrics
from cryoanm_lib.experiments.profile import DEFAULT_STRUCTURE, load_profile
from cryoanm_lib.experiments.profile_files import config_folder
from cryoanm_lib.experiments.reference import save_reference
from cryoanm_lib.io.storage import load_json, save_json


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; errors of the library become one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m cryoanm_lib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--profile", default="laptop", help="name or file of the profile")
    shared.add_argument("--structure", help="in place of the profile's own")
    shared.add_argument("--results", type=Path, default=Path("results"))
    train = commands.add_parser("fit", parents=[shared], help="train one experiment")
    train.add_argument("experiment")
    refined = commands.add_parser("assess", parents=[shared], help="refine and test a finished experiment")
    refined.add_argument("assessment")
    commands.add_parser("metrics", parents=[shared], help="gather results/metrics.json")
    commands.add_parser("reference", parents=[shared], help="keep finished fits as the reference run")
    kept = commands.add_parser("weights", parents=[shared], help="keep the networks of a finished fit")
    kept.add_argument("experiment")
    check = commands.add_parser("check", parents=[shared], help="compare metrics with their expected ranges")
    check.add_argument("metrics", type=Path)
    given = parser.parse_args(arguments)
    try:
        return COMMANDS[given.command](given)
    except CryoANMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _fit(given: argparse.Namespace) -> int:
    fit(load_profile(given.profile, given.structure), given.experiment, given.results)
    return 0


def _assess(given: argparse.Namespace) -> int:
    from cryoanm_lib.experiments.assess import assess  # a second of imports that a fit does without

    assess(load_profile(given.profile, given.structure), given.assessment, given.results)
    return 0


def _metrics(given: argparse.Namespace) -> int:
    metrics = gather_metrics(load_profile(given.profile, given.structure), given.results)
    save_json(given.results / "metrics.json", metrics)
    return 0


def _reference(given: argparse.Namespace) -> int:
    print(save_reference(load_profile(given.profile, given.structure), given.results))
    return 0


def _weights(given: argparse.Namespace) -> int:
    settings = load_profile(given.profile, given.structure)
    print(save_weights(load_fit(settings, given.experiment, given.results)))
    return 0


def _check(given: argparse.Namespace) -> int:
    expected = yaml.safe_load((config_folder() / "expected.yaml").read_text(encoding="utf-8"))
    profile = load_profile(given.profile, given.structure)
    if profile.structure != DEFAULT_STRUCTURE:
        print(f"no ranges are known for {profile.structure}: they are those of {DEFAULT_STRUCTURE}")
        return 0
    ranges = expected.get(given.profile, {})
    if not ranges:
        print(f"no ranges are known for profile {given.profile}: those of {', '.join(expected)} are")
        return 0
    # A run with another seed must do as well as the first.
    repeats = {run: name for name in ranges for run in profile.runs if run.startswith(f"{name}_seed_")}
    ranges = ranges | {run: ranges[name] for run, name in repeats.items()}
    complaints = check_metrics(load_json(given.metrics), ranges)
    for complaint in complaints:
        print(complaint)
    if not complaints:
        count = sum(len(metrics) for metrics in ranges.values())
        print(f"all {count} metrics of profile {given.profile} are within their ranges")
    return 1 if complaints else 0


COMMANDS = {
    "fit": _fit,
    "assess": _assess,
    "metrics": _metrics,
    "check": _check,
    "reference": _reference,
    "weights": _weights,
}
