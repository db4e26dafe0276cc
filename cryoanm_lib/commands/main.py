"""What Snakemake calls:  python -m cryoanm_lib fit | assess | metrics | check; and reference, weights."""

import argparse
import sys
from pathlib import Path

import yaml

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.experiments.fit import fit, load_fit, save_weights
from cryoanm_lib.experiments.metrics import check_metrics, gather_metrics
from cryoanm_lib.experiments.profile import Profile, load_profile
from cryoanm_lib.experiments.profile_files import config_folder
from cryoanm_lib.experiments.reference import save_reference
from cryoanm_lib.experiments.schema import DEFAULT_STRUCTURE
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
    keep = commands.add_parser("reference", parents=[shared], help="keep finished fits as the reference run")
    keep.add_argument("--partial", action="store_true", help="those there are, and earlier ones")
    kept = commands.add_parser("weights", parents=[shared], help="keep the networks of a finished fit")
    kept.add_argument("experiment")
    check = commands.add_parser("check", parents=[shared], help="compare metrics with their expected ranges")
    check.add_argument("metrics", type=Path)
    given = parser.parse_args(arguments)
    try:
        return COMMANDS[given.command](load_profile(given.profile, given.structure), given) or 0
    except CryoANMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _fit(profile: Profile, given: argparse.Namespace) -> None:
    fit(profile, given.experiment, given.results)


def _assess(profile: Profile, given: argparse.Namespace) -> None:
    from cryoanm_lib.experiments.assess import assess  # a second of imports that a fit does without

    assess(profile, given.assessment, given.results)


def _metrics(profile: Profile, given: argparse.Namespace) -> None:
    save_json(given.results / "metrics.json", gather_metrics(profile, given.results))


def _reference(profile: Profile, given: argparse.Namespace) -> None:
    print(save_reference(profile, given.results, partial=given.partial))


def _weights(profile: Profile, given: argparse.Namespace) -> None:
    print(save_weights(load_fit(profile, given.experiment, given.results)))


def _check(profile: Profile, given: argparse.Namespace) -> int:
    expected = yaml.safe_load((config_folder() / "expected.yaml").read_text(encoding="utf-8"))
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
