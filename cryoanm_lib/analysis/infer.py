"""A run: learn from some images, infer all in shards, and test the answers on a twin; each part once."""

import itertools
import json
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from cryoanm_lib.analysis.answering import Answering
from cryoanm_lib.analysis.answers import Answers
from cryoanm_lib.analysis.folder import RunFolder, not_prepared, particles_of
from cryoanm_lib.analysis.learn import learn
from cryoanm_lib.analysis.microscope import Microscope, Shard, same_microscope, shards_of
from cryoanm_lib.analysis.molecule import Molecule, molecule_of
from cryoanm_lib.analysis.plan import Plan
from cryoanm_lib.analysis.run_population import RunPopulation
from cryoanm_lib.analysis.shown import shown
from cryoanm_lib.analysis.twin import Trial, judged
from cryoanm_lib.checks.consistency import check_particles
from cryoanm_lib.errors import CryoANMError, ParticleError
from cryoanm_lib.inference.place_error import with_place_error
from cryoanm_lib.io.locks import alone
from cryoanm_lib.io.storage import load_json, save_json, save_tensors
from cryoanm_lib.numerics.device import pick_device
from cryoanm_lib.particles.particle_set import ParticleSet

#: Images compared before a run.
_CHECKED = 200


def infer(
    plan: Plan,
    folder: str | Path,
    despite_check: bool = False,
    progress: bool = True,
    device: str = "cpu",
) -> RunFolder:
    """Posteriors of all particles of a plan, in a folder; what is there already is not done again.

    Parameters
    ----------
    plan : Plan
        What is asked.
    folder : str or Path
        Where everything is kept. A second run there waits for the first.
    despite_check : bool
        Go on where `check_particles` does not find the table consistent.
    progress : bool
        Show how far it is, and when it will end.
    device : str
        Where posteriors are computed: "cpu", "cuda", or "auto", a GPU where there is one. It is no part of
        the plan, for answers are the same but for the rounding of sums in another order.

    Raises
    ------
    ParticleError
        If table or images are not usable, or do not fit the molecule.
    ArtifactError
        If the folder belongs to another run, or cannot be written to.
    CryoANMError
        As of `pick_device`, `molecule_of` and `learn`.
    """
    run, where = RunFolder(Path(folder)), pick_device(device)
    with alone(run.path, Path("run")):
        particles, molecule = _prepared(run, plan, despite_check, where)
        microscopes = [
            _microscope(run, plan, number, rows, molecule, where)
            for number, rows in enumerate(same_microscope(particles))
        ]
        total = len(particles) + plan.twin + 2 * plan.nulls
        with tqdm(total=total, unit="image", disable=not progress, desc="infer") as bar:
            for shard in shards_of(particles, plan.shard):
                if not run.shard(shard.number).exists():
                    _infer_shard(run, plan, particles, microscopes[shard.microscope], shard)
                bar.update(len(shard.rows))
            if not run.population.exists():
                _populate(run, plan)
            if not run.shown.exists():
                save_tensors(run.shown, shown(plan, particles, microscopes[0], run.answers()))
            if plan.twin and not run.twin.exists():
                save_json(run.twin, _judged(run, plan, particles, microscopes, molecule, bar))
    return run


def prepare(plan: Plan, folder: str | Path, despite_check: bool = False, device: str = "cpu") -> RunFolder:
    """The first part of `infer`: check the table, and learn from the images of each microscope.

    After it `infer_shards` makes any shard, anywhere, and `infer` what is still missing. Arguments and errors
    are those of `infer`.
    """
    run, where = RunFolder(Path(folder)), pick_device(device)
    with alone(run.path, Path("run")):
        _prepared(run, plan, despite_check, where)
    return run


def infer_shards(folder: str | Path, numbers: Iterable[int], device: str = "cpu") -> None:
    """Some shards of a run that is prepared, beside others that make others; none that is there already.

    Parameters
    ----------
    folder : str or Path
        Of the run.
    numbers : iterable of int
        Of the shards, counted from 0.
    device : str
        As of `infer`.

    Raises
    ------
    ArtifactError
        If the run is not prepared, or what it was prepared with has changed.
    CryoANMError
        If there is no such shard; or, when the others are there, naming those that failed.
    """
    run, where = RunFolder(Path(folder)), pick_device(device)
    plan, failed = run.plan(), {}
    with alone(run.path, Path("run"), shared=True):
        particles, molecule = _read(plan)
        run.begin(plan, particles)
        molecule = run.moving(molecule)
        shards, rows = shards_of(particles, plan.shard), same_microscope(particles)
        asked = sorted(set(numbers))
        if wrong := [number for number in asked if not 0 <= number < len(shards)]:
            raise CryoANMError(f"{run.path} has no shard {wrong[0]}: they are from 0 to {len(shards) - 1}")
        for microscope, some in itertools.groupby((shards[n] for n in asked), lambda s: s.microscope):
            used = _microscope(run, plan, microscope, rows[microscope], molecule, where)
            for shard in some:
                if run.shard(shard.number).exists():  # somebody else was asked for it too
                    continue
                try:
                    _infer_shard(run, plan, particles, used, shard)
                except Exception as error:  # whatever it is, it costs this shard alone
                    failed[shard.number] = f"{type(error).__name__}: {error}"
    if failed:
        told = "; ".join(f"shard {number}: {why}" for number, why in failed.items())
        again = " ".join(map(str, failed))
        raise CryoANMError(f"{told}; go on by cryoanm shard {run.path} {again}")


def _read(plan: Plan) -> tuple[ParticleSet, Molecule]:
    """The table, and the molecule."""
    particles, molecule = particles_of(plan), molecule_of(plan)
    return _to_be_searched(particles) if plan.pose == "search" else particles, molecule


def _prepared(
    run: RunFolder, plan: Plan, despite_check: bool, device: torch.device
) -> tuple[ParticleSet, Molecule]:
    """Table and molecule of a run of which all is learned."""
    particles, molecule = _read(plan)
    run.begin(plan, particles)
    run.sweep()
    _check(run, plan, particles, molecule, despite_check)
    for number, rows in enumerate(same_microscope(particles)):
        if run.learned(number) is None:
            generator = torch.Generator().manual_seed(plan.seed + number)
            learned = learn(particles[rows], molecule, plan, generator, device)
            run.save_learned(number, learned, molecule)
        molecule = run.moving(molecule)
    return particles, molecule


def _populate(run: RunFolder, plan: Plan) -> None:
    """How amplitudes are distributed, if images tell; where they do not, what else a run finds is found."""
    try:
        found = RunPopulation.of(Answers.each(run.shards()), plan.seed)
    except CryoANMError as error:
        warnings.warn(f"the population of {run.path} is not known: {error}", stacklevel=3)
        return
    if found is not None:
        found.save(run.population)


def _to_be_searched(particles: ParticleSet) -> ParticleSet:
    """With poses and shifts of nothing where a table has none: what looks for them asks for no more."""
    n = len(particles)
    nothing = {
        "pose": torch.eye(4, dtype=torch.float64)[:1].repeat(n, 1),
        "shift": torch.zeros(n, 2, dtype=torch.float64),
    }
    lacking = {name: value for name, value in nothing.items() if getattr(particles, name) is None}
    return replace(particles, **lacking)


def _check(
    run: RunFolder, plan: Plan, particles: ParticleSet, molecule: Molecule, despite_check: bool
) -> None:
    """Ask whether the table explains the images, unless it is not taken at its word anyway."""
    if particles.pose is None:
        raise ParticleError(
            f"{plan.particles!r} {particles.absent['pose']}; or look for poses by --pose search"
        )
    if "pose" in particles.absent:
        return  # there is nothing to compare with
    if known := run.check.exists():
        found = load_json(run.check)
    else:
        generator = torch.Generator().manual_seed(plan.seed)
        checked = check_particles(particles, molecule.source, _CHECKED, 10.0, plan.skip_bad, generator)
        found = checked.as_dict()
    verdict = found["verdict"]
    # a search asks for no pose, but what the wrong sign explains at the table's poses it would not find
    bad = verdict == "inverted_contrast" if plan.pose == "search" else verdict != "consistent"
    if bad and not despite_check:
        raise ParticleError(
            f"{plan.particles!r} and {plan.reference!r} are not consistent: {verdict.replace('_', ' ')}; see "
            "cryoanm check, and go on nevertheless by --despite-check"
        )
    # one that ends the run is not kept, for images may be mended in their places
    if not known:
        save_json(run.check, found)


def _microscope(
    run: RunFolder,
    plan: Plan,
    number: int,
    rows: Int64[Tensor, "particles"],
    molecule: Molecule,
    device: torch.device,
) -> Microscope:
    """Particles that were imaged alike, by what was learned of them."""
    if (learned := run.learned(number)) is None:
        raise not_prepared(run.path)
    answering = Answering.of(plan, learned.model(molecule), learned.resolution, device)
    return Microscope(number, rows, learned, answering)


def _infer_shard(
    run: RunFolder, plan: Plan, particles: ParticleSet, microscope: Microscope, shard: Shard
) -> None:
    """Read some images, infer them and write the answers."""
    generator = torch.Generator().manual_seed(1_000_003 * plan.seed + shard.number)
    try:
        read = particles.images(shard.rows, plan.skip_bad)
    except ParticleError as error:
        if not plan.skip_bad:
            raise
        # none of these is usable, which is no reason to leave out the rest
        bad = dict.fromkeys(particles[shard.rows].names, str(error))
        save_tensors(run.shard(shard.number), {"row": shard.rows[:0]}, bad=json.dumps(bad))
        return
    names = dict(zip(read.bad, particles[torch.tensor(list(read.bad), dtype=torch.long)].names, strict=True))
    learned = microscope.learned
    images, shift = learned.prepared(particles[read.rows], read.pixels)
    posterior = microscope.answering(images, generator)
    wider = with_place_error(posterior, learned.place.deviation)
    answers = Answers.of(posterior, wider, read.rows, shift, plan.draws, generator)
    bad = {names[row]: why for row, why in read.bad.items()}
    answers.save(run.shard(shard.number), bad=json.dumps(bad), microscope=str(microscope.number))


def _judged(
    run: RunFolder,
    plan: Plan,
    particles: ParticleSet,
    microscopes: list[Microscope],
    molecule: Molecule,
    bar: tqdm,
) -> dict:
    """The twin and the nulls, of all microscopes by their shares of the particles."""
    answers, trials = run.answers(), []
    for microscope in microscopes:
        here = torch.isin(answers.row, microscope.rows)
        generator = torch.Generator().manual_seed(2_000_003 * plan.seed + microscope.number)
        trials.append(Trial(plan, microscope, particles, torch.nonzero(here)[:, 0], generator))
    return judged(trials, answers, molecule, bar)
