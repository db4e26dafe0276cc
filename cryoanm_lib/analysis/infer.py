"""A run: learn from some images, infer all in shards, and test the answers on a twin; each part once."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from cryoanm_lib.analysis.answering import answer, search_of
from cryoanm_lib.analysis.answers import Answers
from cryoanm_lib.analysis.folder import RunFolder, particles_of
from cryoanm_lib.analysis.learn import learn
from cryoanm_lib.analysis.microscope import Microscope, same_microscope
from cryoanm_lib.analysis.molecule import Molecule, molecule_of
from cryoanm_lib.analysis.plan import Plan
from cryoanm_lib.analysis.run_population import RunPopulation, each_shard
from cryoanm_lib.analysis.shown import shown
from cryoanm_lib.analysis.twin import Trial, judged
from cryoanm_lib.checks.consistency import check_particles
from cryoanm_lib.errors import ParticleError
from cryoanm_lib.inference.place_error import with_place_error
from cryoanm_lib.io.locks import alone
from cryoanm_lib.io.storage import load_json, save_json, save_tensors
from cryoanm_lib.particles.particle_set import ParticleSet

#: Images compared before a run.
_CHECKED = 200


def infer(plan: Plan, folder: str | Path, despite_check: bool = False, progress: bool = True) -> RunFolder:
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

    Raises
    ------
    ParticleError
        If table or images are not usable, or do not fit the molecule.
    ArtifactError
        If the folder belongs to another run, or cannot be written to.
    CryoANMError
        As of `molecule_of` and `learn`.
    """
    run = RunFolder(Path(folder))
    with alone(run.path, Path("run")):
        particles, molecule = particles_of(plan), molecule_of(plan)
        if plan.pose == "search":
            particles = _to_be_searched(particles)
        run.begin(plan, particles)
        run.sweep()
        _check(run, plan, particles, molecule, despite_check)
        microscopes = list(_microscopes(run, plan, particles, molecule))
        total = len(particles) + plan.twin + 2 * plan.nulls
        with tqdm(total=total, unit="image", disable=not progress, desc="infer") as bar:
            _infer_all(run, plan, particles, microscopes, bar)
            if not run.population.exists():
                found = RunPopulation.of(each_shard(run.shards()), len(particles), plan.seed)
                if found is not None:
                    found.save(run.population)
            if not run.shown.exists():
                save_tensors(run.shown, shown(plan, particles, microscopes[0], run.answers()))
            if plan.twin and not run.twin.exists():
                save_json(run.twin, _judged(run, plan, particles, microscopes, molecule, bar))
    return run


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


def _microscopes(
    run: RunFolder, plan: Plan, particles: ParticleSet, molecule: Molecule
) -> Iterator[Microscope]:
    for number, rows in enumerate(same_microscope(particles)):
        learned = run.learned(number)
        if learned is None:
            generator = torch.Generator().manual_seed(plan.seed + number)
            learned = learn(particles[rows], molecule, plan, generator)
            run.save_learned(number, learned)
        model = learned.model(molecule)
        yield Microscope(number, rows, learned, model, search_of(plan, model))


def _infer_all(
    run: RunFolder, plan: Plan, particles: ParticleSet, microscopes: list[Microscope], bar: tqdm
) -> None:
    number = 0
    for microscope in microscopes:
        for rows in microscope.rows.split(plan.shard):
            if not run.shard(number).exists():
                _infer_shard(run, plan, particles, microscope, rows, number)
            bar.update(len(rows))
            number += 1


def _infer_shard(
    run: RunFolder,
    plan: Plan,
    particles: ParticleSet,
    microscope: Microscope,
    rows: Int64[Tensor, "particles"],
    number: int,
) -> None:
    """Read some images, infer them and write the answers."""
    generator = torch.Generator().manual_seed(1_000_003 * plan.seed + number)
    try:
        read = particles.images(rows, plan.skip_bad)
    except ParticleError as error:
        if not plan.skip_bad:
            raise
        # none of these is usable, which is no reason to leave out the rest
        bad = dict.fromkeys(particles[rows].names, str(error))
        save_tensors(run.shard(number), {"row": rows[:0]}, bad=json.dumps(bad))
        return
    names = dict(zip(read.bad, particles[torch.tensor(list(read.bad), dtype=torch.long)].names, strict=True))
    learned = microscope.learned
    images, shift = learned.prepared(particles[read.rows], read.pixels)
    posterior = answer(microscope.model, images, learned.resolution, microscope.search, generator)
    wider = with_place_error(posterior, learned.place.deviation)
    answers = Answers.of(posterior, wider, read.rows, shift, plan.draws, generator)
    bad = {names[row]: why for row, why in read.bad.items()}
    answers.save(run.shard(number), bad=json.dumps(bad), microscope=str(microscope.number))


def _judged(
    run: RunFolder,
    plan: Plan,
    particles: ParticleSet,
    microscopes: list[Microscope],
    molecule: Molecule,
    bar: tqdm,
) -> dict:
    """The twin and the nulls, of all microscopes by their shares of the particles."""
    answers, trials = run.answers(draws=True), []
    for microscope in microscopes:
        here = torch.isin(answers.row, microscope.rows)
        generator = torch.Generator().manual_seed(2_000_003 * plan.seed + microscope.number)
        trials.append(Trial(plan, microscope, particles, torch.nonzero(here)[:, 0], generator))
    return judged(trials, answers, molecule, bar)
