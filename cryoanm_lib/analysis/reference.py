"""A run's reference, moved to where all of its images have it, with what is left of doubt."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from tqdm import tqdm

from cryoanm_lib.analysis.answering import GOOD_SHARE
from cryoanm_lib.analysis.folder import RunFolder, particles_of
from cryoanm_lib.analysis.learn import learn
from cryoanm_lib.analysis.learned import Learned
from cryoanm_lib.analysis.microscope import same_microscope
from cryoanm_lib.analysis.molecule import molecule_of
from cryoanm_lib.analysis.plan import Plan
from cryoanm_lib.checks.predictive import matched_p_value
from cryoanm_lib.errors import ArtifactError, CryoANMError
from cryoanm_lib.inference.moved_reference import MovedReference, moved_reference
from cryoanm_lib.inference.peak_finding import Starts
from cryoanm_lib.inference.refinement import RefinedPosterior, refine
from cryoanm_lib.io.locks import alone
from cryoanm_lib.io.storage import save_json, save_tensors
from cryoanm_lib.molecule.atoms import Atoms
from cryoanm_lib.molecule.movie import fits_pdb, write_models
from cryoanm_lib.program.program import Model

#: Alarms ring at deviations that chance gives once in 10⁴ times, and where more images are unexplained.
_FAR, _UNEXPLAINED = 4.0, 0.01
#: The least p-value of which a normal score is taken.
_TINY = 1e-12


def learn_reference(folder: str | Path, directions: int = 40, progress: bool = True) -> list[Path]:
    """Move the reference of a run to where all of its images have it, and write it into `reference/`.

    It moves along the modes beyond those that the run inferred, so that no image's bend can take its place,
    under the elastic energy as prior; and posteriors, noise, scale, D and widths move with it. `moved.cif`
    and `.pdb` are the model from which `cryoanm infer --reference` goes on; `places.safetensors` has the
    displacement of each atom in Å, its error along x, y and z, and the amplitudes of the directions with
    their covariance; `reference.json` what was found, and alarms. Where one rings no model is written, and a
    warning says why: of noise or of another molecule there is none. What is wrong along the run's own modes,
    or along none of the directions, stays as it is and is not in these errors.

    Parameters
    ----------
    folder : str or Path
        Of a run that has come to its end.
    directions : int
        Along how many further modes.
    progress : bool
        Show how far it is.

    Returns
    -------
    list of Path
        All that was written.

    Raises
    ------
    ArtifactError
        If there is no answer yet, or a file cannot be written.
    CryoANMError
        If there is no direction, or the reference is a map, whose places are no atoms, or has not as many
        modes.
    """
    if directions < 1:
        raise CryoANMError(f"directions = {directions} is not usable: the reference moves along 1 or more")
    run = RunFolder(Path(folder))
    with alone(run.path, Path("run")):
        plan = run.plan()
        if missing := run.missing():
            raise ArtifactError(
                f"{run.path} lacks {len(missing)} shards, such as {missing[0]}: run cryoanm infer to its end"
            )
        wider = molecule_of(plan.model_copy(update={"modes": plan.modes + directions}))
        if not isinstance(wider.source, Atoms):
            raise CryoANMError("a map has no atoms that move: run cryoanm infer with a model of the molecule")
        beyond = slice(plan.modes, None)
        scales = torch.tensor(wider.scales[beyond], dtype=torch.float64)
        with tqdm(unit="image", disable=not progress, desc="reference") as bar:
            again = _Again(run, plan, bar)
            moved = moved_reference(again, wider.directions[beyond], scales, again.resolution, plan.seed)
        return _written(run, plan, wider.source, wider.of_atoms[beyond], moved, again)


class _Again:
    """The posteriors of a run once more, its reference displaced, and all that was learned with it.

    Attributes
    ----------
    learned : dict of int to Learned
        What images of each microscope say of themselves, with the reference where it was last.
    scores, explained : list of Tensor
        Normal scores of the last posteriors' `matched_p_value`, and whether each image was explained.
    """

    def __init__(self, run: RunFolder, plan: Plan, bar: tqdm) -> None:
        self.plan, self.bar, self.molecule = plan, bar, run.moving(molecule_of(plan))
        self.particles, self.answers = particles_of(plan), run.answers()
        groups = enumerate(same_microscope(self.particles))
        self.rows = {number: rows[torch.isin(rows, self.answers.row)] for number, rows in groups}
        self.rows = {number: rows for number, rows in self.rows.items() if len(rows)}
        self.learned: dict[int, Learned] = {}
        for number in self.rows:
            if (learned := run.learned(number)) is None:
                raise ArtifactError(
                    f"{run.path} has answers and not what they were computed with: run it again"
                )
            self.learned[number] = learned
        self.resolution = max(learned.resolution for learned in self.learned.values())
        self._found: dict[tuple[int, int], Starts] = {}

    def __call__(self, away: Float64[Tensor, "places 3"], resolution: int) -> Iterator[RefinedPosterior]:
        """The posterior of every image that was answered, shard by shard."""
        self.scores, self.explained = [], []
        molecule = self.molecule.moved(away)
        self.bar.reset(len(self.answers))
        for number, rows in self.rows.items():
            if away.any():
                generator = torch.Generator().manual_seed(self.plan.seed + number)
                group = same_microscope(self.particles)[number]
                self.learned[number] = learn(self.particles[group], molecule, self.plan, generator)
            learned = self.learned[number]
            model = learned.model(molecule)
            for part, some in enumerate(rows.split(self.plan.shard)):
                yield self._posterior((number, part), learned, model, some, resolution)
                self.bar.update(len(some))

    def _posterior(
        self,
        key: tuple[int, int],
        learned: Learned,
        model: Model,
        rows: Int64[Tensor, "images"],
        resolution: int,
    ) -> RefinedPosterior:
        """Of some images, climbed to from where their peaks were last."""
        read = self.particles.images(rows, self.plan.skip_bad)
        images, shift = learned.prepared(self.particles[read.rows], read.pixels)
        if (starts := self._found.get(key)) is None:
            answered = self._answered(read.rows, shift, learned.optics.pixel_size)
            starts = Starts.of_each(model.unknowns.points(answered)[:, None])
        generator = torch.Generator().manual_seed(1_000_003 * self.plan.seed + int(rows[0]))
        resolution = min(resolution, learned.resolution)
        posterior = refine(model, images, resolution, starts, generator=generator, good_share=GOOD_SHARE)
        image, peak = torch.nonzero(posterior.mixture.log_weight.isfinite(), as_tuple=True)
        self._found[key] = Starts(image, posterior.mixture.centre[image, peak])
        own = {name: value[0] for name, value in posterior.sample(1, generator).items()}
        # a p-value of 0 or 1 is no number of deviations, and one as small as this is enough
        matched = matched_p_value(model, images, own, resolution).double().clamp(_TINY, 1 - _TINY)
        self.scores.append(torch.special.ndtri(matched))
        self.explained.append(posterior.explained)
        return posterior

    def _answered(
        self, rows: Int64[Tensor, "images"], shift: Float64[Tensor, "images 2"], pixel_size: float
    ) -> dict[str, Tensor]:
        """The run's means, shifts in pixels of images that are moved back by those of their table."""
        at = torch.searchsorted(self.answers.row, rows)
        values = {name: value[at].double() for name, value in self.answers.mean.items()}
        if "shift" in values:
            values["shift"] = values["shift"] / pixel_size - shift
        return values


def _alarms(moved: MovedReference, again: _Again) -> dict[str, str]:
    """What speaks against the reference where it is now, by name; none where the model is right."""
    scores, explained = torch.cat(again.scores), torch.cat(again.explained)
    matched = scores.mean().item() * len(scores) ** 0.5
    shared = max(learned.place.z for learned in again.learned.values())
    unexplained = 1 - explained.double().mean().item()
    rings = {
        "matched": (
            abs(matched) > _FAR,
            f"what images have of predictions is {matched:.1f} standard errors from what it should be",
        ),
        "unexplained": (unexplained > _UNEXPLAINED, f"{unexplained:.1%} of images are not explained"),
        "shared": (shared > _FAR, f"residuals have in common {shared:.1f} deviations more than by chance"),
    }
    return moved.alarms | {name: told for name, (ringing, told) in rings.items() if ringing}


def _written(
    run: RunFolder,
    plan: Plan,
    source: Atoms,
    directions: Float64[Tensor, "directions atoms 3"],
    moved: MovedReference,
    again: _Again,
) -> list[Path]:
    """Model, errors and figures."""
    out, error = run.path / "reference", moved.error
    away = torch.tensordot(error.amplitudes, directions, dims=1)
    spread = torch.einsum("jax,jk,kax->ax", directions, error.covariance, directions).clamp(min=0.0).sqrt()
    # where the model's file has it, so that it lies on whatever that lay on
    place = torch.tensor(plan.origin or source.centroid, dtype=torch.float64)
    alarms = _alarms(moved, again)
    models = [out / f"moved{kind}" for kind in ((".cif", ".pdb") if fits_pdb(source) else (".cif",))]
    for path in models:
        if alarms:  # of noise, or of another molecule, there is no reference
            path.unlink(missing_ok=True)
        else:
            write_models(source, (place + source.coordinates + away)[None], path)
    if alarms:
        told = "; ".join(f"{name}, {why}" for name, why in alarms.items())
        warnings.warn(f"no moved model is written, for alarms ring: {told}", stacklevel=3)
    written = [] if alarms else models
    written.append(out / "places.safetensors")
    save_tensors(
        written[-1],
        {
            "displacement": away,
            "error": spread,
            "amplitudes": error.amplitudes,
            "covariance": error.covariance,
        },
    )
    written.append(out / "reference.json")
    save_json(
        written[-1],
        {
            "images": moved.all.images,
            "directions": len(directions),
            "rmsd": away.square().sum(1).mean().sqrt().item(),
            "rmsd_error": spread.square().sum(1).mean().sqrt().item(),
            "spread": error.spread,
            "nats": error.gain,
            "p_value_of_nothing": error.p_value,
            "p_value_of_halves": moved.half_p_value,
            "excess": moved.excess,
            "steps": list(moved.steps),
            "alarms": alarms,
        },
    )
    return written
