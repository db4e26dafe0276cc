"""Answers in the files of others: star files and those of cryoSPARC, models to play, and draws."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from cryoanm_lib.analysis.answers import Answers
from cryoanm_lib.analysis.folder import RunFolder, particles_of
from cryoanm_lib.analysis.molecule import molecule_of
from cryoanm_lib.analysis.run_population import RunPopulation
from cryoanm_lib.errors import ArtifactError, CryoANMError
from cryoanm_lib.io.storage import read_tensor, save_made, write_atomically
from cryoanm_lib.molecule.atoms import Atoms
from cryoanm_lib.molecule.movie import fits_pdb, write_models
from cryoanm_lib.particles.cryosparc import CryosparcParticles, vectors_of_quaternions, write_cs
from cryoanm_lib.particles.particle_set import ParticleSet
from cryoanm_lib.particles.star import euler_of_quaternions, write_star

#: Models of a movie; and the share of particles that its ends leave beyond either.
_FRAMES, _BEYOND = 21, 0.05
#: Latents of several numbers, which are counted from 1.
_NUMBERED = ("amplitude", "astigmatism")


def export(
    folder: str | Path, subsets: int = 5, direction: int = 1, particles: str | Path | None = None
) -> list[Path]:
    """Write what a run found, for RELION, cryoSPARC, viewers and scripts, into its folder `export/`.

    `posterior.star` has all tables and columns of the input and ours, `_cryoanm…`, of each particle that was
    answered; `subset_….star` the rows of as many particles each, by their mean amplitude along a direction,
    for ordinary reconstructions: where these show what the model says, it is not the model alone that says
    it. `direction_….cif` and `.pdb` are the molecule between the 5th and the 95th percentile, and
    `draws.safetensors` the posterior draws. Of a `.cs` file there are `.cs` files, whose fields of ours,
    `cryoanm/…`, are in cryoSPARC's conventions. Where the run has a population, `population_….csv` is each
    amplitude's, `population_1_2.csv` that of the first two together, and `…Population` among the columns what
    particles are with it in place of the prior.

    Parameters
    ----------
    folder : str or Path
        Of a run.
    subsets : int
        How many; 0 for none.
    direction : int
        Along which particles are divided, counted from 1.
    particles : str or Path, optional
        Another table of images of the run, such as some of them or in another order; default the run's.
        Each image has its own answer, found by its name, or by cryoSPARC's `uid`.

    Returns
    -------
    list of Path
        All that was written.

    Raises
    ------
    ArtifactError
        If there is no answer yet, a file cannot be written, or an image of the table is none of the run's.
    CryoANMError
        If there is no such direction, or there are more subsets than particles.
    """
    run = RunFolder(Path(folder))
    plan = run.plan(by_row=False)
    if particles is not None:
        plan = plan.model_copy(update={"particles": str(particles)})
    table, out = particles_of(plan), run.path / "export"
    population = RunPopulation.load(run.population) if run.population.exists() else None
    places = run.places_in(table)
    columns, amplitude, answered = _gathered(run, table, places, population)
    if not 1 <= direction <= plan.modes or not 0 <= subsets <= len(answered):
        raise CryoANMError(
            f"direction = {direction} and subsets = {subsets} are not usable: there are {plan.modes} "
            f"directions and {len(answered)} particles"
        )
    molecule = run.moving(molecule_of(plan))
    suffix = ".cs" if isinstance(table, CryosparcParticles) else ".star"
    written = [out / f"posterior{suffix}"]
    _write(table, columns, answered, written[0])
    order = answered[amplitude[answered, direction - 1].argsort()]
    for number, some in enumerate(order.tensor_split(subsets) if subsets else ()):
        written.append(out / f"subset_{direction}_{number + 1}of{subsets}{suffix}")
        _write(table, columns, some.sort().values, written[-1])
    written.append(out / "draws.safetensors")
    _write_draws(run, places, answered, written[-1])
    if population is not None:
        written += _write_densities(population, out)
    if isinstance(source := molecule.source, Atoms):
        # where the model's file has it, so that it lies on whatever that lay on
        middle = torch.tensor(plan.origin or source.centroid, dtype=torch.float64)
        written += _write_movies(source, middle, molecule.of_atoms, amplitude[answered], out)
    return written


def _gathered(
    run: RunFolder, table: ParticleSet, places: Int64[Tensor, "rows"], population: RunPopulation | None
) -> tuple[
    dict[str, Float64[Tensor, "particles ..."]], Float[Tensor, "particles modes"], Int64[Tensor, "images"]
]:
    """What we say of each particle, its mean amplitudes, and which are answered; of others there is anything.

    Shards are read one after the other, so that no more than these columns is held.
    """
    columns: dict[str, Float64[Tensor, "particles ..."]] = {}
    answered, odd = torch.zeros(len(table), dtype=torch.bool), _odd(table)
    for shard in Answers.each(run.shards()):
        at = places[shard.row]
        some, at = shard[at >= 0], at[at >= 0]
        if not len(at):
            continue
        here: dict[str, Tensor] = {"": some.mean["amplitude"]}
        if isinstance(table, CryosparcParticles):
            here |= fields_of(some, table.shift_pixel[at], population)
        else:
            here |= columns_of(some, odd[at], population)
        for name, values in here.items():
            if name not in columns:
                columns[name] = values.new_empty(len(table), *values.shape[1:])
            columns[name][at] = values
        answered[at] = True
    if not answered.any():
        source = f" of images of {str(table.source)!r}" if run.shards() else ""
        raise ArtifactError(f"{run.path} holds no answers yet{source}: run cryoanm infer to its end")
    amplitude = columns.pop("")
    return columns, amplitude, torch.nonzero(answered)[:, 0]


def _write_draws(
    run: RunFolder, places: Int64[Tensor, "rows"], answered: Int64[Tensor, "images"], path: Path
) -> None:
    """Of one latent after the other, since those of all together may not fit into the memory."""
    into = torch.full((int(answered[-1]) + 2,), -1)  # the last is where -1 leads
    into[answered] = torch.arange(len(answered))
    into = into[places.clamp(max=len(into) - 1)]

    def make(name: str) -> Tensor:
        if name == "row":
            return answered
        found = like[name].new_empty(like[name].shape, device="cpu")
        for shard in run.shards():
            if len(row := read_tensor(shard, "row")):
                found[into[row][into[row] >= 0]] = read_tensor(shard, f"draws.{name}")[into[row] >= 0]
        return found

    first = next(Answers.each(run.shards(), draws=True)).draws
    like = {
        name: value.new_empty(len(answered), *value.shape[1:], device="meta") for name, value in first.items()
    }
    like["row"] = answered
    save_made(path, like, make)


def _write_movies(
    source: Atoms,
    middle: Float64[Tensor, "3"],
    directions: Float64[Tensor, "modes atoms 3"],
    amplitude: Float[Tensor, "images modes"],
    out: Path,
) -> list[Path]:
    """The molecule along each direction, between the ends of what particles have."""
    written, shares = [], torch.tensor([_BEYOND, 1 - _BEYOND], dtype=torch.float64)
    for number, along in enumerate(directions):
        ends = amplitude[:, number].double().quantile(shares)
        steps = ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, _FRAMES, dtype=torch.float64)
        frames = middle + source.coordinates + steps[:, None, None] * along
        for kind in (".cif", ".pdb") if fits_pdb(source) else (".cif",):
            written.append(out / f"direction_{number + 1}{kind}")
            write_models(source, frames, written[-1])
    return written


def _write_densities(population: RunPopulation, out: Path) -> list[Path]:
    """A table of each amplitude: where, density, its 95 % band, and minus its logarithm in kT; and of two."""
    written = []
    for number, smooth in enumerate(population.smooth):
        at = population.at[number]
        columns = {"amplitude": at, "density": smooth.density(at[:, None])}
        columns |= {"low": population.low[number], "high": population.high[number]}
        columns["free_energy"] = smooth.free_energy(at[:, None])
        written.append(out / f"population_{number + 1}.csv")
        _write_table(columns, written[-1])
    if (pair := population.pair) is not None:
        at = population.grid_of_pair()
        columns = {"amplitude_1": at[:, 0], "amplitude_2": at[:, 1], "density": pair.density(at)}
        written.append(out / "population_1_2.csv")
        _write_table(columns | {"free_energy": pair.free_energy(at)}, written[-1])
    return written


def _write_table(columns: Mapping[str, Float64[Tensor, "rows"]], path: Path) -> None:
    rows = torch.stack(list(columns.values()), dim=1).tolist()
    lines = [",".join(columns), *(",".join(f"{x:.6g}" for x in row) for row in rows), ""]
    write_atomically(path, lambda beside: beside.write_text("\n".join(lines), encoding="ascii"))


def _odd(particles: ParticleSet) -> Float64[Tensor, "particles"]:
    """Å by which RELION's centre of each image lies beyond ours, along x and y: a pixel in odd boxes."""
    each = [(group.box_size or 0) % 2 * group.pixel_size for group in particles.optics]
    return torch.tensor(each, dtype=torch.float64)[particles.group]


def columns_of(
    answers: Answers, odd: Float64[Tensor, "images"], population: RunPopulation | None = None
) -> dict[str, Float64[Tensor, "images"]]:
    """Numbers of each particle by label: RELION's angles and origins, amplitudes, deviations and alarms."""
    angles = euler_of_quaternions(answers.mean["pose"].double())
    found: dict[str, Float64[Tensor, "images"]] = {}
    found |= zip(("AngleRot", "AngleTilt", "AnglePsi"), angles.T, strict=True)
    found["AngleError"] = torch.rad2deg(_pose_deviation(answers))
    for name, number, mean, deviation in _numbers(answers):
        label = _label(name, number)
        found[label] = odd - mean if name == "shift" else mean
        found[f"{label}Error"] = deviation
    for number, mean, deviation in _under(population, answers):
        found |= {f"Amplitude{number}Population": mean, f"Amplitude{number}PopulationError": deviation}
    return {
        **found,
        "LogEvidence": answers.log_evidence,
        "EssFraction": answers.ess_fraction,
        "PredictiveP": answers.p_value,
    }


def fields_of(
    answers: Answers, shift_pixel: Float64[Tensor, "images"], population: RunPopulation | None = None
) -> dict[str, Float64[Tensor, "images ..."]]:
    """The same as cryoSPARC would have it: rotation vectors in radians, and shifts in pixels of so many Å."""
    found: dict[str, Float64[Tensor, "images ..."]] = {}
    found["pose"] = vectors_of_quaternions(answers.mean["pose"])
    found["pose_error"] = _pose_deviation(answers)
    shifts = []
    for name, number, mean, deviation in _numbers(answers):
        if name == "shift":
            shifts.append((-mean / shift_pixel, deviation / shift_pixel))
            continue
        field = f"{name}{number + 1}" if name in _NUMBERED else name
        found |= {field: mean, f"{field}_error": deviation}
    if shifts:
        mean, deviation = (torch.stack(both, dim=1) for both in zip(*shifts, strict=True))
        found |= {"shift": mean, "shift_error": deviation, "psize_A": shift_pixel}
    for number, mean, deviation in _under(population, answers):
        found |= {f"amplitude{number}_population": mean, f"amplitude{number}_population_error": deviation}
    return {
        **found,
        "log_evidence": answers.log_evidence,
        "ess_fraction": answers.ess_fraction,
        "predictive_p": answers.p_value,
    }


def _under(
    population: RunPopulation | None, answers: Answers
) -> Iterator[tuple[int, Float64[Tensor, "images"], Float64[Tensor, "images"]]]:
    """Of each amplitude, counted from 1, mean and deviation with the population in place of the prior."""
    if population is not None:
        mean, deviation = population.posterior(answers)
        yield from zip(range(1, mean.shape[1] + 1), mean.T, deviation.T, strict=True)


def _pose_deviation(answers: Answers) -> Float64[Tensor, "images"]:
    """In radians, root mean square over axes."""
    return answers.deviation[:, :3].double().square().mean(1).sqrt()


def _numbers(
    answers: Answers,
) -> Iterator[tuple[str, int, Float64[Tensor, "images"], Float64[Tensor, "images"]]]:
    """Name, place, mean and deviation of each number of each latent but the pose, the first of all."""
    deviation = iter(answers.deviation[:, 3:].double().T)
    for name, value in answers.mean.items():
        if name != "pose":
            for number, mean in enumerate(value.double().reshape(len(answers), -1).T):
                yield name, number, mean, next(deviation)


def _label(name: str, number: int) -> str:
    if name == "shift":
        return ("OriginXAngst", "OriginYAngst")[number]
    if name in _NUMBERED:
        return f"{name.title()}{number + 1}"
    return "".join(part.title() for part in name.split("_"))


def _write(
    table: ParticleSet,
    columns: Mapping[str, Float64[Tensor, "particles ..."]],
    rows: Int64[Tensor, "some"],
    path: Path,
) -> None:
    """Some rows of a table, and what we say of them."""
    these, chosen = table[rows], {name: column[rows] for name, column in columns.items()}
    if isinstance(these, CryosparcParticles):
        write_cs(these, path, chosen)
    else:
        write_star(these, path, chosen)
