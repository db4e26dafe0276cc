"""The command line for particles of one's own:  cryoanm check particles.star --reference model.cif."""

import argparse
import json
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch

from cryoanm_lib import (
    Atoms,
    Consistency,
    ParticleSet,
    PseudoAtoms,
    check_particles,
    load_atoms,
    pseudo_atoms,
    read_cs,
    read_density,
    read_star,
)
from cryoanm_lib.errors import CryoANMError

_EXAMPLES = """examples:
  cryoanm check particles.star --reference model.cif
  cryoanm check run_data.star --data /data/project --reference 4ake --chains A --json
  cryoanm check particles.star --reference map.mrc --threshold 0.02
  cryoanm check old.star --reference model.pdb --override rlnImagePixelSize=1.5 --skip-bad
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; errors of the library become one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="cryoanm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check",
        help="do poses, optics and molecule explain the images, or does a usual mistake?",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("particles", type=Path, help="star file, or .cs file of cryoSPARC")
    check.add_argument("--reference", required=True, help="PDB or mmCIF file, PDB ID, embedded name, or map")
    check.add_argument("--threshold", type=float, help="contour of a map within which the molecule is")
    check.add_argument("--chains", nargs="+", help="those of the reference that are there; default all")
    check.add_argument("--passthrough", type=Path, help="that of a .cs file")
    check.add_argument("--data", type=Path, help="folder below which the stacks are")
    check.add_argument(
        *("--override",),
        action="append",
        default=[],
        metavar="LABEL=NUMBER",
        help="what a label is of all particles",
    )
    check.add_argument(
        "--images", type=int, default=500, help="compared, chosen at random; default %(default)s"
    )
    check.add_argument(
        "--detail", type=float, default=10.0, help="finest compared, in Å; default %(default)s"
    )
    check.add_argument("--skip-bad", action="store_true", help="leave out images that are not usable")
    check.add_argument("--seed", type=int, default=1, help="chooses the images; default %(default)s")
    check.add_argument("--json", action="store_true", help="print one object")
    given = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            _check(given)
        for warning in told:
            print(f"note: {warning.message}", file=sys.stderr)
        return 0
    except CryoANMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _check(given: argparse.Namespace) -> None:
    particles = _read(given)
    molecule = _molecule(given)
    generator = torch.Generator().manual_seed(given.seed)
    found = check_particles(
        *(particles, molecule, given.images, given.detail), skip_bad=given.skip_bad, generator=generator
    )
    print(json.dumps(found.as_dict(), indent=1) if given.json else _told(particles, found))


def _read(given: argparse.Namespace) -> ParticleSet:
    """A star file, or by its name one of cryoSPARC's."""
    if given.particles.suffix != ".cs":
        return read_star(given.particles, given.data, _overrides(given.override))
    if given.override:
        raise CryoANMError("--override is for star files: a .cs file has all its fields")
    return read_cs(given.particles, given.passthrough, given.data)


def _molecule(given: argparse.Namespace) -> Atoms | PseudoAtoms:
    """Atoms of a model, or by its name the pseudo-atoms of a map."""
    if not given.reference.lower().endswith((".mrc", ".map", ".ccp4")):
        return load_atoms(given.reference, chains=given.chains)
    if given.threshold is None:
        raise CryoANMError("a map needs a --threshold: the contour within which the molecule is")
    return pseudo_atoms(read_density(given.reference), given.threshold)


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
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
