"""Answers put to the test: on images simulated like those of the data, and on images of something else."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import scipy  # loads its parts where they are first used
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from tqdm import tqdm

from cryoanm_lib.analysis.answering import GOOD_SHARE
from cryoanm_lib.analysis.answers import Answers
from cryoanm_lib.analysis.microscope import Microscope
from cryoanm_lib.analysis.molecule import Molecule
from cryoanm_lib.analysis.plan import Plan
from cryoanm_lib.checks.calibration import LEVELS, central_level, coverage, credible_level, ranks
from cryoanm_lib.imaging.contrast_transfer import GIVEN_CTF
from cryoanm_lib.inference.fisher import fisher_information
from cryoanm_lib.inference.place_error import with_place_error
from cryoanm_lib.inference.refinement import SUSPICIOUS, RefinedPosterior
from cryoanm_lib.numerics.point_groups import nearest_equivalent, point_group
from cryoanm_lib.particles.particle_set import ParticleSet
from cryoanm_lib.particles.particles import Particles, Simulated
from cryoanm_lib.program.prior import GIVEN_POSE
from cryoanm_lib.program.program import Model

#: Posterior draws for each image of the twin: so many are good for all `LEVELS`.
_DRAWS = 199
#: Images at a time; and where atoms are off their places, those that have them off alike, which are few, so
#: that what one draw of displacements happens to do is not taken for what displacements do.
_IMAGES, _ALIKE = 250, 25


@dataclass(frozen=True, eq=False)
class Trial:
    """What it takes to simulate images as one microscope would have taken them, and to infer them blind.

    Attributes
    ----------
    plan, microscope : Plan, Microscope
        How images are inferred.
    particles : ParticleSet
        The table, of which the twin has rows.
    which : Int64[Tensor, "images"]
        Of all answers, those that belong to this microscope.
    generator : torch.Generator
        Of all random numbers.
    """

    plan: Plan
    microscope: Microscope
    particles: ParticleSet
    which: Int64[Tensor, "images"]
    generator: torch.Generator

    def parts(self, count: int) -> tuple[Int64[Tensor, "images"], ...]:
        """Some of the answers, none twice, some at a time; none where none is asked for."""
        order = torch.randperm(len(self.which), generator=self.generator)
        size = _ALIKE if self.microscope.learned.place.deviation else _IMAGES
        return self.which[order[:count]].split(size) if count else ()

    def simulated(self, answers: Answers, which: Int64[Tensor, "images"], model: Model) -> Simulated:
        """Images like some of the data: optics, table and noise are theirs, the truth a posterior draw."""
        table = self.particles[answers.row[which]].latents()
        truth = {name: value[which] for name, value in answers.own.items()}
        if "shift" in truth:
            truth["shift"] = (
                truth["shift"] / self.microscope.learned.optics.pixel_size - table["shift"]
            ).float()
        given = {GIVEN_CTF: table[GIVEN_CTF].float(), GIVEN_POSE: table["pose"].float()}
        noise = self.microscope.learned.noise(answers.noise_scale[which])
        clean = model.forward_model.coefficients({**given, **truth}, self.microscope.learned.resolution)
        return Simulated(noise.sample(clean, self.generator), given, noise, truth)

    def displaced(self, molecule: Molecule) -> Model:
        """The model with atoms off their places, drawn anew, as far as those of the data are.

        What displacements take from predictions on average, exp(-2π² τ_a² k²), is in D already.
        """
        learned = self.microscope.learned
        if not (deviation := learned.place.deviation):
            return self.microscope.model
        away = torch.randn(molecule.coordinates.shape, generator=self.generator, dtype=torch.float64)
        # beyond the corners of what is looked at it does not matter, and would overflow
        highest = math.ceil(learned.resolution / 2**0.5)
        shell = torch.arange(len(learned.luzzati)).double().clamp(max=highest)
        k = shell / (learned.box_size * learned.optics.pixel_size)
        given_back = (2 * (math.pi * deviation * k).square()).exp()
        here = replace(learned, luzzati=learned.luzzati * given_back)
        return here.model(molecule.moved(deviation * away))

    def answered(self, images: Particles, good_share: float = GOOD_SHARE) -> RefinedPosterior:
        """As the data are; or by Gaussians alone, with a share of 0, which tell what is explained."""
        return self.microscope.answering(images, self.generator, good_share)


def judged(trials: Sequence[Trial], answers: Answers, molecule: Molecule, bar: tqdm) -> dict:
    """How honest the answers are on a twin of the data, and what alarms do on what the data are not.

    Returns
    -------
    dict
        "latents", by name: root mean square of errors, in deviations that were claimed ("standardised"), of
        what Fisher information allows ("limit", "ratio"), and coverage of central intervals; "region", the
        coverage of regions of all latents; "rank_correlation" of the first amplitude with the truth, and
        "rank_limit" of means of posteriors at the limit; "alarms" of the data, the
        twin, images of noise, and of the mirrored molecule.
    """
    plan, found, mirrored, noisy = trials[0].plan, [], [], []
    for trial in trials:
        share = len(trial.which) / len(answers)
        for some in trial.parts(math.ceil(plan.twin * share)):
            images = trial.simulated(answers, some, trial.displaced(molecule))
            found.append(_compared(trial, images))
            bar.update(len(some))
        other = trial.microscope.learned.model(molecule.mirrored())
        for some in trial.parts(math.ceil(plan.nulls * share)):
            images = trial.simulated(answers, some, other)
            mirrored.append(_alarms(trial, images))
            nothing = torch.zeros_like(images.coefficients)
            empty = Particles(images.noise.sample(nothing, trial.generator), images.given, images.noise)
            noisy.append(_alarms(trial, empty))
            bar.update(2 * len(some))
    learned = sum(trial.microscope.learned.images for trial in trials)
    alarms = {"data": torch.stack([answers.p_value, answers.matched], dim=1)}
    alarms["twin"] = torch.cat([part.alarms for part in found])
    if mirrored:
        alarms |= {"mirrored": torch.cat(mirrored), "noise": torch.cat(noisy)}
    return {
        "images": sum(len(part.alarms) for part in found),
        **_summary(found),
        "alarms": {name: _rung(values, learned if name == "data" else 0) for name, values in alarms.items()},
    }


@dataclass(frozen=True, eq=False)
class _Compared:
    """Images of the twin: names of the columns, errors, deviations claimed and allowed, and levels."""

    columns: tuple[str, ...]
    error: Float64[Tensor, "images columns"]
    claimed: Float64[Tensor, "images columns"]
    allowed: Float64[Tensor, "images columns"]
    central: Float64[Tensor, "images columns"]
    level: Float64[Tensor, "images"]
    first: Float64[Tensor, "images three"]
    alarms: Float64[Tensor, "images two"]


def _compared(trial: Trial, images: Simulated) -> _Compared:
    answered = trial.answered(Particles(images.coefficients, images.given, images.noise))
    posterior = with_place_error(answered, trial.microscope.learned.place.deviation)
    columns, pixel_size = posterior.mixture.unknowns.columns, posterior.model.forward_model.pixel_size
    truth = dict(images.truth)
    # of poses that a symmetric molecule looks the same from, the one that is meant
    group, meant = point_group(trial.plan.symmetry), posterior.mean()
    truth["pose"] = nearest_equivalent(truth["pose"], meant["pose"], group)
    claimed = posterior.covariance().diagonal(dim1=1, dim2=2).sqrt()
    error = claimed * posterior.standardised(truth)
    information = fisher_information(
        trial.microscope.model, images, truth, trial.microscope.learned.resolution
    )
    allowed = torch.linalg.inv(information).diagonal(dim1=1, dim2=2).sqrt()
    # in Å, as those of other microscopes are, whose pixels have another size
    unit = torch.tensor([pixel_size if name == "shift" else 1.0 for name in columns])
    draws = posterior.sample(_DRAWS, trial.generator)
    rank = torch.cat(list(ranks(draws, truth).values()), dim=1)
    true, place = truth["amplitude"][:, 0].double(), columns.index("amplitude")
    modes = trial.microscope.model.forward_model.n_modes
    width = trial.microscope.model.prior.amplitude_scales(modes)[0]
    # the mean of the best posterior: of the truth with the noise of the images alone, drawn to the prior
    said = (allowed[:, place] ** -2 - width**-2).clamp(min=0.0)
    noise = torch.randn(true.shape, generator=trial.generator).double()
    best = allowed[:, place] ** 2 * (said * true + said.sqrt() * noise)
    first = torch.stack([true, meant["amplitude"][:, 0].double(), best], dim=1)
    return _Compared(
        *(columns, unit * error, unit * claimed, unit * allowed, central_level(rank)),
        *(credible_level(posterior, draws, truth), first, _rings(answered, trial)),
    )


def _alarms(trial: Trial, images: Particles) -> Float64[Tensor, "images two"]:
    return _rings(trial.answered(images, 0.0), trial)


def _rings(posterior: RefinedPosterior, trial: Trial) -> Float64[Tensor, "images two"]:
    """The p-values of `Answers`."""
    nowhere = torch.zeros(len(posterior), 2, dtype=torch.float64)
    found = Answers.of(posterior, posterior, torch.arange(len(posterior)), nowhere, 1, trial.generator)
    return torch.stack([found.p_value, found.matched], dim=1)


def _rung(values: Float64[Tensor, "images two"], learned: int) -> dict[str, float]:
    """Share of images that are not explained; and how far the matched tests of all are from chance.

    Scale and D of the data are known no better than the images tell from which they were learned: what these
    are off by, all images have in common.
    """
    p_value, matched = values.unbind(1)
    score = torch.special.ndtri(matched.clamp(1e-300, 1 - 1e-16))
    return {
        "images": len(values),
        "unexplained": (p_value < SUSPICIOUS).double().mean().item(),
        "matched": (score.mean() / (1 / len(score) + (1 / learned if learned else 0.0)) ** 0.5).item(),
    }


def _summary(found: Sequence[_Compared]) -> dict:
    """Numbers of all images together."""
    columns = found[0].columns
    error, claimed, allowed, central = (
        torch.cat([getattr(part, name) for part in found])
        for name in ("error", "claimed", "allowed", "central")
    )
    latents = {}
    for name in dict.fromkeys(columns):
        for place, number in enumerate(_places(columns, name)):
            unit = math.degrees(1.0) if name == "pose" else 1.0
            e, c, a = (part[:, number] for part in (error, claimed, allowed))
            inside = {f"{n:g}": coverage(central[:, number], n, _DRAWS) for n in LEVELS}
            latents[f"{name} {place + 1}" if columns.count(name) > 1 else name] = {
                "error": unit * _rms(e),
                "limit": unit * _rms(a),
                "ratio": _rms(e) / _rms(a),
                "typical_ratio": _rms(e / a),
                "standardised": _rms(e / c),
                "inside": inside,
            }
    level, first = (torch.cat([getattr(part, name) for part in found]) for name in ("level", "first"))
    true, answered, best = (part.numpy() for part in first.unbind(1))
    return {
        "latents": latents,
        "region": {f"{nominal:g}": coverage(level, nominal, _DRAWS) for nominal in LEVELS},
        "rank_correlation": float(scipy.stats.spearmanr(true, answered).statistic),
        "rank_limit": float(scipy.stats.spearmanr(true, best).statistic),
    }


def _places(columns: tuple[str, ...], name: str) -> list[int]:
    return [place for place, own in enumerate(columns) if own == name]


def _rms(values: Float[Tensor, "images"]) -> float:
    return values.square().mean().sqrt().item()
