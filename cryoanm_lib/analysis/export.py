"""Answers in the files of others: star files, models to play, and draws."""

from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from cryoanm_lib.analysis.answers import Answers
from cryoanm_lib.analysis.folder import RunFolder, particles_of
from cryoanm_lib.analysis.molecule import molecule_of
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.io.storage import save_tensors, write_atomically
from cryoanm_lib.molecule.atoms import Atoms
from cryoanm_lib.molecule.movie import fits_pdb, write_models
from cryoanm_lib.particles.particle_set import ParticleSet
from cryoanm_lib.particles.star import euler_of_quaternions, write_star

#: Models of a movie; and the share of particles that its ends leave beyond either.
_FRAMES, _BEYOND = 21, 0.05


def export(folder: str | Path, subsets: int = 5, direction: int = 1) -> list[Path]:
    """Write what a run found, for RELION, cryoSPARC, viewers and scripts, into its folder `export/`.

    `posterior.star` has all tables and columns of the input and ours, `_cryoanm…`, of each particle that was
    answered; `subset_….star` the rows of as many particles each, by their mean amplitude along a direction,
    for ordinary reconstructions: where these show what the model says, it is not the model alone that says
    it. `direction_….cif` and `.pdb` are the molecule between the 5th and the 95th percentile, and
    `draws.safetensors` the posterior draws. Of a `.cs` file there are tables with commas, in RELION's
    convention too.

    Parameters
    ----------
    folder : str or Path
        Of a run.
    subsets : int
        How many; 0 for none.
    direction : int
        Along which particles are divided, counted from 1.

    Returns
    -------
    list of Path
        All that was written.

    Raises
    ------
    ArtifactError
        If there is no answer yet, or a file cannot be written.
    CryoANMError
        If there is no such direction, or there are more subsets than particles.
    """
    run = RunFolder(Path(folder))
    plan, answers = run.plan(), run.answers(draws=True)
    out, particles, molecule = run.path / "export", particles_of(plan), molecule_of(plan)
    if not 1 <= direction <= plan.modes or not 0 <= subsets <= len(answers):
        raise CryoANMError(
            f"direction = {direction} and subsets = {subsets} are not usable: there are {plan.modes} "
            f"directions and {len(answers)} particles"
        )
    suffix = ".csv" if particles.source.suffix == ".cs" else ".star"
    columns = columns_of(answers, _odd(particles)[answers.row])
    written = [out / f"posterior{suffix}"]
    _write(particles, answers, columns, torch.arange(len(answers)), written[0])
    order = answers.mean["amplitude"][:, direction - 1].argsort()
    for number, some in enumerate(order.tensor_split(subsets) if subsets else ()):
        written.append(out / f"subset_{direction}_{number + 1}of{subsets}{suffix}")
        _write(particles, answers, columns, some.sort().values, written[-1])
    written.append(out / "draws.safetensors")
    save_tensors(written[-1], {"row": answers.row, **answers.draws})
    if isinstance(molecule.source, Atoms):
        for number, along in enumerate(molecule.of_atoms):
            ends = (
                answers.mean["amplitude"][:, number]
                .double()
                .quantile(torch.tensor([_BEYOND, 1 - _BEYOND], dtype=torch.float64))
            )
            steps = ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, _FRAMES, dtype=torch.float64)
            # where the model's file has it, so that it lies on whatever that lay on
            place = torch.tensor(plan.origin or molecule.source.centroid, dtype=torch.float64)
            frames = place + molecule.source.coordinates + steps[:, None, None] * along
            kinds = (".cif", ".pdb") if fits_pdb(molecule.source) else (".cif",)
            for kind in kinds:
                written.append(out / f"direction_{number + 1}{kind}")
                write_models(molecule.source, frames, written[-1])
    return written


def _odd(particles: ParticleSet) -> Float64[Tensor, "particles"]:
    """Å by which RELION's centre of each image lies beyond ours, along x and y: a pixel in odd boxes."""
    each = [(group.box_size or 0) % 2 * group.pixel_size for group in particles.optics]
    return torch.tensor(each, dtype=torch.float64)[particles.group]


def columns_of(answers: Answers, odd: Float64[Tensor, "images"]) -> dict[str, Float64[Tensor, "images"]]:
    """Numbers of each particle by label: RELION's angles and origins, amplitudes, deviations and alarms."""
    angles = euler_of_quaternions(answers.mean["pose"].double())
    found: dict[str, Float64[Tensor, "images"]] = {}
    found |= zip(("AngleRot", "AngleTilt", "AnglePsi"), angles.T, strict=True)
    deviation = answers.deviation.double()
    found["AngleError"] = torch.rad2deg(deviation[:, :3].square().mean(1).sqrt())
    place = 3
    for name, value in answers.mean.items():
        if name == "pose":
            continue
        for number, column in enumerate(value.double().reshape(len(answers), -1).T):
            label = _label(name, number)
            found[label] = odd - column if name == "shift" else column
            found[f"{label}Error"] = deviation[:, place]
            place += 1
    return {
        **found,
        "LogEvidence": answers.log_evidence,
        "EssFraction": answers.ess_fraction,
        "PredictiveP": answers.p_value,
    }


def _label(name: str, number: int) -> str:
    if name == "shift":
        return ("OriginXAngst", "OriginYAngst")[number]
    if name in ("amplitude", "astigmatism"):
        return f"{name.title()}{number + 1}"
    return "".join(part.title() for part in name.split("_"))


def _write(
    particles: ParticleSet,
    answers: Answers,
    columns: dict[str, Float64[Tensor, "images"]],
    which: Tensor,
    path: Path,
) -> None:
    """Some of the answers, beside all that their star file says of them; or beside their names alone."""
    chosen = {label: column[which] for label, column in columns.items()}
    these = particles[answers.row[which]]
    if path.suffix == ".star":
        # under RELION's own names they would take the place of what a program has found
        write_star(these, path, {f"cryoanm{label}": column for label, column in chosen.items()})
        return
    lines = [",".join(("image", *chosen))]
    for name, *numbers in zip(these.names, *(c.tolist() for c in chosen.values()), strict=True):
        lines.append(",".join((name, *(f"{number:.6g}" for number in numbers))))
    text = "\n".join(lines) + "\n"
    write_atomically(path, lambda beside: beside.write_text(text, encoding="utf-8"))
