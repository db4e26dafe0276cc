"""The folder of a run: what was asked, what was learned, and the answers so far."""

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from cryoanm_lib.analysis.answers import Answers
from cryoanm_lib.analysis.learned import Learned
from cryoanm_lib.analysis.microscope import shards_of
from cryoanm_lib.analysis.molecule import Molecule
from cryoanm_lib.analysis.plan import Plan
from cryoanm_lib.errors import ArtifactError, ParticleError
from cryoanm_lib.inference.place_error import PlaceError
from cryoanm_lib.io.provenance import library_hash
from cryoanm_lib.io.storage import (
    load_json,
    load_tensors,
    read_header,
    save_json,
    save_tensors,
    sweep,
    unusable,
)
from cryoanm_lib.particles.cryosparc import read_cs
from cryoanm_lib.particles.optics_group import OpticsGroup
from cryoanm_lib.particles.particle_set import ParticleSet, found_among
from cryoanm_lib.particles.star import read_star
from cryoanm_lib.program.prior import OpticsPrior

#: How a molecule moves, of all that it is.
_MOTION = ("directions", "of_atoms")


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps everything, each file whole or not there at all."""

    path: Path

    def begin(self, plan: Plan, particles: ParticleSet) -> None:
        """Write what is asked; or make sure that it is what was asked here before, by the same code.

        Raises
        ------
        ArtifactError
            If the folder belongs to another run, or a stack has changed since it was begun.
        """
        asked = {"plan": json.loads(plan.model_dump_json()), "inputs": _digests(plan)}
        asked |= {"library": library_hash(), "stacks": _stacks(particles)}
        asked["shards"] = len(shards_of(particles, plan.shard))
        learned = (self.path / "learned").exists()
        before = load_json(self.asked) if learned or self.asked.exists() else {}
        changed, stacks = _changed(before, asked), before.get("stacks", {})
        replaced = [name for name, v in asked["stacks"].items() if stacks.get(name) != v]
        if not changed and not replaced:
            return
        if not learned:  # nothing else was computed yet that belongs to another plan
            self.check.unlink(missing_ok=True)
            save_tensors(self.images, {"key": particles.keys})
            save_json(self.asked, asked)
        elif changed:
            raise ArtifactError(
                f"{self.path} holds a run with other {', '.join(changed)}: choose another folder (--out), or "
                "remove it"
            )
        else:
            first = replaced[0]
            raise ArtifactError(
                f"{len(replaced)} stacks have changed since {self.path} was begun, such as {first!r}, which "
                f"was {stacks.get(first)} and is {asked['stacks'][first]}: put back what it was, with its "
                "time, or choose another folder (--out)"
            )

    def sweep(self) -> None:
        """Remove what runs that were killed left half-written; for the one run that writes here."""
        for folder in (self.path, self.path / "learned", self.path / "shards"):
            sweep(folder)

    def plan(self, by_row: bool = True) -> Plan:
        """What was asked.

        Parameters
        ----------
        by_row : bool
            Particles are to be found by their rows, and so the table must be what it was.

        Raises
        ------
        ArtifactError
            If no run was begun here, the file is damaged, or table or molecule have changed since.
        """
        if not self.asked.exists():
            raise ArtifactError(f"{self.path} holds no run: begin one by cryoanm infer --out {self.path}")
        asked = load_json(self.asked)
        try:
            plan = Plan.model_validate_json(json.dumps(asked["plan"]))
        except (KeyError, ValueError) as error:
            raise unusable(self.asked, error) from error
        changed = {path for path, v in _digests(plan).items() if asked.get("inputs", {}).get(path) != v}
        if not by_row:
            changed -= {str(Path(name)) for name in (plan.particles, plan.passthrough) if name is not None}
        if changed:
            raise ArtifactError(
                f"{', '.join(sorted(changed))} has changed since {self.path} was begun, and answers are kept "
                "by the rows of its table: put back what it was, or begin another run; cryoanm export alone "
                "goes by the names of images"
            )
        return plan

    def places_in(self, particles: ParticleSet) -> Int64[Tensor, "rows"]:
        """Where in any table the image of each row of the run's own is; -1 where it is not there.

        Raises
        ------
        ArtifactError
            If an image is none of the run's; or one stands several times in either table, and they differ.
        """
        if self.images.exists():
            known = load_tensors(self.images)[0]["key"]
        else:  # a run of an older version, which must have its table
            known = particles_of(self.plan()).keys
        if torch.equal(asked := particles.keys, known):  # also where images repeat
            return torch.arange(len(known))
        rows, times = found_among(asked, known)
        unknown, source = times == 0, repr(str(particles.source))
        if unknown.any():
            raise ArtifactError(
                f"{source} has {unknown.sum()} images that are none of {self.path}, such as "
                f"{_first(particles, unknown)}: leave them out, or infer them in a run of their own"
            )
        several = (times > 1) | (found_among(asked, asked)[1] > 1)
        if several.any():
            raise ArtifactError(
                f"{source} is not the table of {self.path}, and {several.sum()} of its rows, such as that of "
                f"{_first(particles, several)}, are of images that stand in one of them several times: which "
                "answer is whose is not told by names; put back the table of the run"
            )
        places = torch.full_like(known, -1)
        places[rows] = torch.arange(len(rows))
        return places

    @property
    def asked(self) -> Path:
        return self.path / "plan.json"

    @property
    def images(self) -> Path:
        """Which image is in each row of the table."""
        return self.path / "images.safetensors"

    @property
    def check(self) -> Path:
        return self.path / "check.json"

    @property
    def twin(self) -> Path:
        return self.path / "twin.json"

    @property
    def shown(self) -> Path:
        """Some images beside their predictions, and the difference map."""
        return self.path / "shown.safetensors"

    @property
    def population(self) -> Path:
        """How amplitudes are distributed; not there where too few images tell."""
        return self.path / "population.safetensors"

    def shard(self, number: int) -> Path:
        return self.path / "shards" / f"{number:05d}.safetensors"

    def missing(self) -> list[int]:
        """Numbers of the shards that are still to be inferred."""
        count = load_json(self.asked).get("shards", 0)  # runs of older versions do not say
        return [number for number in range(count) if not self.shard(number).exists()]

    def shards(self) -> list[Path]:
        return sorted((self.path / "shards").glob("[0-9]*.safetensors"))

    def answers(self, draws: bool = False) -> Answers:
        """All that have been found so far.

        Raises
        ------
        ArtifactError
            If there are none.
        """
        if not (shards := self.shards()):
            raise ArtifactError(f"{self.path} holds no answers yet: run cryoanm infer to its end")
        return Answers.load(shards, draws)

    def bad(self) -> dict[str, str]:
        """Images that were not usable, and why."""
        found: dict[str, str] = {}
        for path in self.shards():
            found |= json.loads(read_header(path).get("bad", "{}"))
        return found

    def learned(self, number: int) -> Learned | None:
        """What the images of one microscope said, if that is known already."""
        path = self.path / "learned" / f"{number}.safetensors"
        if not path.exists():
            return None
        tensors, told = load_tensors(path)
        values = json.loads(told["values"])
        for name in _MOTION:  # runs of older versions lack it, and can be reported
            tensors.pop(name, None)
        return Learned(
            **tensors,
            optics=OpticsGroup(**values.pop("optics")),
            prior=OpticsPrior.model_validate_json(json.dumps(values.pop("prior"))),
            place=PlaceError(*values.pop("place")),
            **values,
        )

    def moving(self, molecule: Molecule) -> Molecule:
        """The molecule as it moved when the first microscope was learned.

        Modes are computed anew where a run goes on or is exported, and another machine rounds otherwise: what
        decides about the sign of one, or about two of equal stiffness, must be decided once.

        Raises
        ------
        ArtifactError
            If nothing was learned yet, or the file is damaged.
        """
        path = self.path / "learned" / "0.safetensors"
        if not path.exists():
            raise not_prepared(self.path)
        kept = load_tensors(path)[0]
        return replace(molecule, **{name: kept[name] for name in _MOTION if name in kept})

    def save_learned(self, number: int, learned: Learned, molecule: Molecule) -> None:
        """Keep what the images of one microscope said, of a molecule that moves as it does."""
        values = {field.name: getattr(learned, field.name) for field in fields(learned)}
        tensors = {name: values.pop(name) for name in ("power", "luzzati", "centre")}
        tensors |= {name: getattr(molecule, name).clone() for name in _MOTION}
        values["optics"] = asdict(learned.optics)
        values["prior"] = json.loads(learned.prior.model_dump_json())
        path = self.path / "learned" / f"{number}.safetensors"
        save_tensors(path, tensors, values=json.dumps(values))


def not_prepared(path: Path) -> ArtifactError:
    """The error for a run of which not all is learned."""
    return ArtifactError(f"{path} is not prepared: run cryoanm infer --prepare --out {path} to its end")


def _first(particles: ParticleSet, which: Bool[Tensor, "particles"]) -> str:
    """The name of one image of some."""
    return repr(particles[torch.nonzero(which)[:1, 0]].names[0])


def particles_of(plan: Plan) -> ParticleSet:
    """The table that a plan names: a star file, or by its name one of cryoSPARC's; of a dark molecule, if so.

    Raises
    ------
    ParticleError
        As of `read_star` and `read_cs`; or if labels are overridden in a `.cs` file, or it says that the
        molecule is bright and the plan that it is dark.
    """
    if Path(plan.particles).suffix != ".cs":
        particles = read_star(plan.particles, plan.data, plan.override)
    elif plan.override:
        raise ParticleError("override (--override) is for star files: a .cs file has all its fields")
    else:
        particles = read_cs(plan.particles, plan.passthrough, plan.data)
        if plan.dark and particles.said_bright:
            raise ParticleError(
                f"dark (--dark) says that the molecule is dark, and blob/sign of {plan.particles!r} is 1, "
                "that it is bright: leave dark out, or where `check` finds it dark set blob/sign to -1"
            )
    if plan.dark:
        dark = tuple(replace(group, sign=-1) for group in particles.optics)
        particles = replace(particles, optics=dark)
    return particles


def _stacks(particles: ParticleSet) -> dict[str, str]:
    """Size and time of modification of each stack: a digest would read all images before a run begins."""
    files = particles.files
    found = dict.fromkeys(files, "not found")
    for name, path in files.items():
        with contextlib.suppress(OSError):  # it has gone since it was found
            if path is not None:
                there = path.stat()
                changed = datetime.fromtimestamp(int(there.st_mtime), UTC)
                found[name] = f"of {there.st_size} bytes and {changed:%Y-%m-%d %H:%M:%S} UTC"
    return found


def _changed(before: dict, asked: dict) -> list[str]:
    """In what that which was asked before differs from what is asked."""
    changed = [k for k, v in asked["plan"].items() if before.get("plan", {}).get(k) != v]
    known = before.get("inputs", {})
    changed += [f"contents of {path}" for path, v in asked["inputs"].items() if known.get(path) != v]
    return changed + (["library"] if before.get("library") != asked["library"] else [])


def _digests(plan: Plan) -> dict[str, str]:
    """SHA-256 of the table and of the files that the molecule is read from."""
    named = (plan.particles, plan.passthrough, plan.reference, plan.towards)
    found = {}
    for path in (Path(name) for name in named if name is not None):
        try:
            if path.is_file():
                with open(path, "rb") as file:
                    found[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ParticleError(f"{str(path)!r} cannot be read ({error.strerror or error})") from error
    return found
