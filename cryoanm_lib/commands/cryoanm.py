"""The command line for particles of one's own: cryoanm check, infer, shard, reference, report …"""

import argparse
import json
import sys
import types
import typing
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pydantic
import torch

from cryoanm_lib import (
    Consistency,
    ParticleSet,
    Plan,
    check_particles,
    export,
    infer,
    infer_shards,
    learn_reference,
    particles_of,
    prepare,
    read_molecule,
    simulate_stack,
)
from cryoanm_lib.errors import CryoANMError

#: What says which particles and which molecule, of the settings of a plan.
_DATA = ("chains", "threshold", "origin", "passthrough", "data", "dark", "override", "skip_bad", "seed")
#: What to do where the molecule is not as it was taken to be.
_REMEDY = {
    "dark": "--dark; or where a .cs file says that the molecule is bright, set its blob/sign to -1",
    "bright": "leave out --dark; or where a .cs file says that the molecule is dark, set its blob/sign to 1",
}
_EXAMPLES = {
    "check": """examples:
  cryoanm check particles.star --reference model.cif
  cryoanm check run_data.star --data /data/project --reference 4ake --chains A --json
  cryoanm check particles.star --reference map.mrc --threshold 0.02
  cryoanm check raw.star --reference model.cif --dark
  cryoanm check old.star --reference model.pdb --override rlnImagePixelSize=1.5 --skip-bad
""",
    "infer": """examples:
  cryoanm infer particles.star --reference model.cif --modes 3 --out run/
  cryoanm infer particles.star --reference open.cif --towards closed.cif --out run/
  cryoanm infer particles.star --reference model.cif --pose search --detail 8 --out run/

The same command goes on with a run that was stopped.
""",
    "reference": """examples:
  cryoanm reference run/
  cryoanm infer particles.star --reference run/reference/moved.cif --modes 3 --out run2/
""",
    "shard": """examples:
  cryoanm infer particles.star --reference model.cif --out run/ --prepare
  cryoanm shard run/ 0 1 2

Shards are made in any order and at once, on any machines; cryoanm infer makes what is missing, and ends the
run. workflow/particles.smk does all of it by Snakemake.
""",
    "report": "example:\n  cryoanm report run/\n",
    "export": """examples:
  cryoanm export run/
  cryoanm export run/ --subsets 3 --direction 2
  cryoanm export run/ --particles best.star
""",
    "simulate": """examples:
  cryoanm simulate particles.star --reference model.cif --out twin.mrcs
  cryoanm simulate poses.star --reference model.cif --out clean.mrcs --noise-free
""",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; errors of the library become one line and exit status 1."""
    given = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            _COMMANDS[given.command](given)
        for text in dict.fromkeys(str(warning.message) for warning in told):
            print(f"note: {text}", file=sys.stderr)
        return 0
    except CryoANMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cryoanm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, told: str) -> argparse.ArgumentParser:
        layout = argparse.RawDescriptionHelpFormatter
        return commands.add_parser(name, help=told, epilog=_EXAMPLES[name], formatter_class=layout)

    check = command("check", "do poses, optics and molecule explain the images, or does a usual mistake?")
    _add_settings(check, _DATA)
    check.add_argument(
        "--images", type=int, default=500, help="compared, chosen at random; default %(default)s"
    )
    check.add_argument(
        "--detail", type=float, default=10.0, help="finest compared, in Å; default %(default)s"
    )
    check.add_argument("--json", action="store_true", help="print one object")
    run = command("infer", "how is each particle turned and bent, and how sure is that?")
    _add_settings(run, tuple(name for name in Plan.model_fields if name not in ("particles", "reference")))
    run.add_argument("--out", type=Path, required=True, help="folder of the run")
    run.add_argument("--despite-check", action="store_true", help="go on where check finds a mistake")
    run.add_argument("--quiet", action="store_true", help="show no progress")
    run.add_argument("--prepare", action="store_true", help="check and learn, and leave the rest to shard")
    _add_device(run)
    shard = command("shard", "some particles of a run that is prepared, beside those that others infer")
    shard.add_argument("run", type=Path, help="folder of the run")
    shard.add_argument("numbers", type=int, nargs="+", help="of the shards, from 0")
    _add_device(shard)
    reference = command("reference", "where do all particles together have the reference structure?")
    reference.add_argument(
        "--directions", type=int, default=40, help="along so many further modes; default %(default)s"
    )
    reference.add_argument("--quiet", action="store_true", help="show no progress")
    report = command("report", "one HTML file of what a run found")
    export_ = command("export", "tables for RELION or cryoSPARC, movies and draws of what a run found")
    for each in (reference, report, export_):
        each.add_argument("run", type=Path, help="folder of the run")
    report.add_argument("--to", type=Path, help="the file; default report.html in the folder")
    export_.add_argument("--subsets", type=int, default=5, help="by amplitude; default %(default)s")
    export_.add_argument("--direction", type=int, default=1, help="of which amplitude; default %(default)s")
    export_.add_argument("--particles", type=Path, help="another table of its images; default the run's")
    made = command("simulate", "images of a model with a table's own poses, optics and noise")
    _add_settings(made, (*_DATA, "beads"))
    made.add_argument("--out", type=Path, required=True, help="stack to write; its star file is beside it")
    made.add_argument("--noise-free", action="store_true", help="leave the noise out")
    made.add_argument("--snr", type=float, help="signal-to-noise ratio, in place of the noise of the images")
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    told = "that computes posteriors: cpu, cuda or auto; default %(default)s"
    parser.add_argument("--device", default="cpu", help=told)


def _add_settings(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Options for settings of a plan, with their descriptions and defaults."""
    parser.add_argument("particles", help=Plan.model_fields["particles"].description)
    parser.add_argument("--reference", required=True, help=Plan.model_fields["reference"].description)
    for name in names:
        field, option = Plan.model_fields[name], f"--{name.replace('_', '-')}"
        kind, told = _bare(field.annotation), f"{field.description}"
        if kind is bool:
            parser.add_argument(option, action="store_true", help=told)
        elif kind is dict:
            parser.add_argument(option, action="append", default=[], metavar="LABEL=NUMBER", help=told)
        elif kind is tuple:
            number = 3 if name == "origin" else "+"
            inner = float if name == "origin" else str
            parser.add_argument(option, nargs=number, type=inner, default=field.default, help=told)
        else:
            choices = typing.get_args(field.annotation) if kind is str else ()
            choices = [c for c in choices if isinstance(c, str)] or None
            told += "" if field.default is None else f"; default {field.default}"
            parser.add_argument(option, type=kind, default=field.default, choices=choices, help=told)


def _bare(annotation: object) -> type:
    """str, int, float, bool, tuple or dict, of what a setting may be."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return str
    if origin is types.UnionType or origin is typing.Union:
        return _bare(next(each for each in inner if each is not type(None)))
    if origin is typing.Annotated:
        return _bare(inner[0])
    return origin or annotation  # pyright: ignore[reportReturnType]


def _plan(given: argparse.Namespace) -> Plan:
    told = {name: value for name, value in vars(given).items() if name in Plan.model_fields}
    told["override"] = _overrides(given.override)
    for name in ("particles", "reference", "towards", "passthrough", "data"):
        # a run is gone on with, and reported, from wherever that is asked
        if told.get(name) is not None and Path(told[name]).exists():
            told[name] = str(Path(told[name]).absolute())
    for name in ("chains", "optics", "origin"):
        if told.get(name) is not None:
            told[name] = tuple(told[name])
    try:
        return Plan(**told)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = "-".join(str(part) for part in first["loc"][:1]).replace("_", "-")
        raise CryoANMError(f"--{name} {first['input']} is not usable: {first['msg'].lower()}") from error


def _check(given: argparse.Namespace) -> None:
    plan = _plan(given)
    particles, molecule = particles_of(plan), read_molecule(plan)
    generator = torch.Generator().manual_seed(plan.seed)
    found = check_particles(
        *(particles, molecule, given.images, given.detail), skip_bad=plan.skip_bad, generator=generator
    )
    print(json.dumps(found.as_dict(), indent=1) if given.json else _told(particles, found))


def _infer(given: argparse.Namespace) -> None:
    if given.prepare:
        left = prepare(_plan(given), given.out, given.despite_check, given.device).missing()
        print(f"{len(left)} shards are to be inferred: cryoanm shard {given.out} NUMBER")
        return
    infer(_plan(given), given.out, given.despite_check, not given.quiet, given.device)
    print(f"done: cryoanm report {given.out}")


def _shard(given: argparse.Namespace) -> None:
    infer_shards(given.run, given.numbers, given.device)


def _reference(given: argparse.Namespace) -> None:
    for path in learn_reference(given.run, given.directions, progress=not given.quiet):
        print(path)


def _report(given: argparse.Namespace) -> None:
    try:
        from cryoanm_lib import write_report
    except ModuleNotFoundError as error:
        told = f'a report has figures, and {error.name} is not installed: pip install "cryoanm[plots]"'
        raise CryoANMError(told) from error
    print(write_report(given.run, given.to))


def _export(given: argparse.Namespace) -> None:
    for path in export(given.run, given.subsets, given.direction, given.particles):
        print(path)


def _simulate(given: argparse.Namespace) -> None:
    print(simulate_stack(_plan(given), given.out, given.noise_free, given.snr))


_COMMANDS = {
    "check": _check,
    "infer": _infer,
    "shard": _shard,
    "reference": _reference,
    "report": _report,
    "export": _export,
    "simulate": _simulate,
}


def _overrides(texts: list[str]) -> dict[str, float]:
    """Of LABEL=NUMBER each."""
    pairs = [text.partition("=") for text in texts]
    try:
        return {label: float(number) for label, _, number in pairs}
    except ValueError:
        raise CryoANMError(f"--override {' '.join(texts)} is not usable: give LABEL=NUMBER each") from None


def _told(particles: ParticleSet, found: Consistency) -> str:
    """For the eye."""
    count = Counter(particles.group.tolist())
    lines = [f"{len(particles)} particles in {len(particles.stacks)} stacks"]
    lines += [
        f"  {group.name}: {count[number]} images, {group.voltage:g} kV, "
        f"C_s {group.spherical_aberration:g} mm, amplitude contrast {group.amplitude_contrast:g}, "
        f"{group.pixel_size:g} Å a pixel"
        for number, group in enumerate(particles.optics)
    ]
    lines += ["", f"correlation of {found.images} images with predictions"]
    lines += [f"  {'as the table says':22}{found.correlation['as_is']:7.3f}"]
    lines += [
        f"  {name.replace('_', ' '):22}{found.correlation[name]:7.3f}  "
        f"({found.difference[name]:+.1f} standard errors)"
        for name in found.difference
    ]
    sign = "bright" if found.sign > 0 else "dark"
    lines += [
        f"  of fine details {100 * found.kept:.0f} % are kept of what coarse ones promise",
        "",
        f"molecule: {sign}; signal-to-noise ratio {found.snr:.2g}",
        f"verdict: {found.verdict.replace('_', ' ')}",
    ]
    if found.verdict == "inverted_contrast":
        lines.append(f"remedy: {_REMEDY[sign]}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
