"""Learning from some of the images what all are then inferred with: noise, scale, D, centre and widths."""

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cryoanm_lib.analysis.answering import Answering
from cryoanm_lib.analysis.learned import Learned
from cryoanm_lib.analysis.molecule import Molecule
from cryoanm_lib.analysis.plan import Plan
from cryoanm_lib.analysis.widths import OF_OPTICS, with_widths
from cryoanm_lib.checks.residual_spectrum import residual_spectrum
from cryoanm_lib.errors import CryoANMError, ForwardModelError, ParticleError
from cryoanm_lib.imaging.latents import pose_to_rotation
from cryoanm_lib.imaging.noise_spectrum import Spectrum, background_spectrum
from cryoanm_lib.imaging.radial_noise import shell_hats
from cryoanm_lib.inference.luzzati import luzzati_factor
from cryoanm_lib.inference.place_error import PlaceError, place_error
from cryoanm_lib.inference.refinement import RefinedPosterior
from cryoanm_lib.inference.so3_grid import so3_grid
from cryoanm_lib.numerics.fourier import image_to_coefficients
from cryoanm_lib.numerics.point_groups import point_group
from cryoanm_lib.numerics.rotation import rotation_from_quaternion
from cryoanm_lib.particles.particle_set import ParticleSet
from cryoanm_lib.program.prior import GIVEN_POSE, OpticsPrior

_CPU = torch.device("cpu")

#: Steps of expectation and maximisation, after each of which posteriors are computed again.
ROUNDS = 3
#: Particles of one microscope, at least.
_FEWEST = 20
#: Deviations from which on what images have in common is taken for atoms off their places.
_OFF_PLACE = 4.0
#: Images by which a model is asked for atoms off their places.
_JUDGES = 100
#: χ² of three numbers, which chance exceeds once in 10⁴ times.
_CENTRED = 21.1
#: Shells that say what the scale is, where D is 1.
_COARSE = slice(1, 6)
#: In the first round a molecule may turn about a point so many Å from its centroid.
_OFF_CENTRE = 5.0
#: By how much the level of images is less known than it seems: nothing is read from it.
_UNKNOWN_LEVEL = 10.0

_NOTHING_SHARED = (
    "the images have nothing in common with the molecule at any pose that was looked at: `check` may "
    "say why; where the molecule is dark, and the table does not say so, say it by dark (--dark)"
)


@torch.no_grad()
def learn(
    particles: ParticleSet,
    molecule: Molecule,
    plan: Plan,
    generator: torch.Generator,
    device: torch.device = _CPU,
) -> Learned:
    """What particles through the same optics say of themselves, from some of their images.

    The noise is what surrounds the molecule, and then what predictions leave; the scale is that of the
    predictions at the table's poses, or of the power above the noise's; D and the widths of the priors follow
    by some steps of expectation and maximisation.

    Parameters
    ----------
    particles, molecule, plan : ParticleSet, Molecule, Plan
        Of one optics; what is on the images; and what is asked.
    generator : torch.Generator
        Chooses the images, and draws from posteriors.
    device : torch.device
        Where posteriors are computed.

    Raises
    ------
    ParticleError
        If there are too few particles, or images are not usable.
    CryoANMError
        If they say nothing of the molecule.
    """
    optics = particles.optics[int(particles.group[0])]
    rows = torch.randperm(len(particles), generator=generator)[: plan.learn_from].sort().values
    read = particles.images(rows, plan.skip_bad)
    if len(read.rows) < _FEWEST:
        raise ParticleError(
            f"optics group {optics.name!r} has {len(read.rows)} usable particles, and it takes {_FEWEST} to "
            "learn their noise from: leave them out, or give them the optics of others"
        )
    these, pixels = particles[read.rows], read.pixels
    learned = first_guess(these, pixels, molecule, plan)

    def answered(learned: Learned) -> RefinedPosterior:
        model, (images, _) = learned.model(molecule), learned.prepared(these, pixels)
        return Answering.of(plan, model, learned.resolution, device)(images, generator, 0.0)

    for _ in range(ROUNDS):
        learned = _next(learned, answered(learned), molecule, plan, generator)
    posterior = answered(learned)
    found = place_error(posterior[torch.arange(min(_JUDGES, len(posterior)))], generator)
    deviation = found.deviation if found.z > _OFF_PLACE else 0.0
    return replace(learned, place=PlaceError(deviation, found.z))


def first_guess(
    particles: ParticleSet, pixels: Float[Tensor, "images y x"], molecule: Molecule, plan: Plan
) -> Learned:
    """Noise, scale and priors before anything is inferred."""
    box_size, optics = pixels.shape[-1], particles.optics[int(particles.group[0])]
    resolution = min(2 * math.floor(box_size * optics.pixel_size / plan.detail), box_size - box_size % 2)
    if resolution < 16:
        raise CryoANMError(
            f"details of {plan.detail:g} Å are {resolution // 2} waves in a box of {box_size} pixels of "
            f"{optics.pixel_size:g} Å: ask for finer ones by detail (--detail)"
        )
    reach = molecule.coordinates.norm(dim=1).max().item() / optics.pixel_size
    power = _surroundings(pixels, reach)
    settings: dict[str, Any] = dict(
        pose="space",
        pose_width=plan.pose_width if plan.pose == "star" else 0.0,
        shift_scale=plan.shift_width and math.hypot(plan.shift_width, _OFF_CENTRE / optics.pixel_size),
        amplitude_scale=molecule.scales,
        defocus_scale=max(plan.defocus_width, 1e-3),
        contrast_scale=plan.contrast_width,
    )
    settings |= {f"{name}_scale": OF_OPTICS[name] for name in plan.optics}
    prior = OpticsPrior(**settings)
    n_shells = box_size // 2 + 1
    learned = Learned(
        *(optics, box_size, resolution, 1.0, power, 1.0),
        *(torch.ones(n_shells).double(), torch.zeros(3).double(), prior, PlaceError(0.0, 0.0), len(pixels)),
    )
    level = image_to_coefficients(pixels, 4)[:, 0].real.double()
    level = _UNKNOWN_LEVEL * (level.square().mean().sqrt().item() + power[1].sqrt().item() / box_size)
    learned = replace(learned, level=level)
    scale = _scale(learned, particles, pixels, molecule, plan)
    return replace(learned, scale=scale, power=power / scale**2, level=level / scale)


def _surroundings(pixels: Float[Tensor, "images y x"], reach: float) -> Float64[Tensor, "shells"]:
    """The spectrum of what surrounds the molecule; or where it fills the box, of all."""
    box_size = pixels.shape[-1]
    try:
        return background_spectrum(pixels, reach).smooth().power
    except ForwardModelError:
        hats = shell_hats(box_size, box_size // 2 + 1)
        power = image_to_coefficients(pixels, box_size).abs().double().square() * box_size**2
        each = (power @ hats) / hats.sum(0).clamp(min=1e-12)
        found = Spectrum(each.mean(0), each.std(0) / len(each) ** 0.5).smooth().power
        return torch.cat([found[1:2], found[1:]])


def _scale(
    learned: Learned,
    particles: ParticleSet,
    pixels: Float[Tensor, "images y x"],
    molecule: Molecule,
    plan: Plan,
) -> float:
    """Of images for one of the predictions: by what they share, or where poses are not known, by power."""
    model, (images, _) = learned.model(molecule), learned.prepared(particles, pixels)
    forward = model.forward_model
    rest = model.prior.means(len(images), forward.n_modes, forward.reference)
    searched = plan.pose == "search"
    pose = so3_grid(len(images)).float() if searched else images.given[GIVEN_POSE]
    latents = {**rest, **images.given, "pose": pose}
    predicted = forward.coefficients(latents, learned.resolution)
    ours, theirs = (
        images.noise.whiten(part, learned.resolution).double() for part in (predicted, images.coefficients)
    )
    own = ours.square().sum()
    if searched:
        found = ((theirs.square() - 1).sum() / own).clamp(min=0.0).sqrt()
    else:
        found = (ours * theirs).sum() / own
    if not found > 0:
        raise CryoANMError(_NOTHING_SHARED)
    return found.item()


def _next(
    learned: Learned,
    posterior: RefinedPosterior,
    molecule: Molecule,
    plan: Plan,
    generator: torch.Generator,
) -> Learned:
    """A step of maximisation: noise, D, centre and widths that make the images likely."""
    explained = torch.nonzero(posterior.explained)[:, 0]
    if len(explained) < _FEWEST / 2:
        raise CryoANMError(
            f"{len(explained)} of {len(posterior)} images are explained by the molecule: `check` may say why"
        )
    posterior, model = posterior[explained], posterior.model
    mean = posterior.mean()
    left = residual_spectrum(model, posterior.particles, mean, learned.resolution)
    # Beyond, in the corners of the crop, there are few coefficients: what surrounds the molecule says more.
    seen, power, error = slice(1, learned.resolution // 2 + 1), learned.power.clone(), left.error.clone()
    error[seen.stop :] = math.nan
    power[seen] = Spectrum(left.power, error).smooth().power[seen]
    power[0] = power[1]
    luzzati = luzzati_factor(posterior, generator).smooth().factor
    coarse = luzzati[_COARSE].mean().item()
    if not coarse > 0:
        raise CryoANMError(_NOTHING_SHARED)
    centre = learned.centre
    if "shift" in mean:
        off = _off_centre(mean["pose"], mean["shift"], learned.optics.pixel_size)
        # where the molecule has its symmetry it lies on the axis, or in the point, that all turns leave
        off = rotation_from_quaternion(point_group(plan.symmetry)).mean(0) @ off
        centre = centre + off
        along = pose_to_rotation(mean["pose"])[:, :2] @ off / learned.optics.pixel_size
        mean = {**mean, "shift": mean["shift"] - along}
    return replace(
        learned,
        scale=learned.scale * coarse,
        power=power / coarse**2,
        level=learned.level / coarse,
        luzzati=luzzati / coarse,
        centre=centre,
        prior=with_widths(learned.prior, posterior, mean, molecule, plan),
    )


def _off_centre(
    pose: Float64[Tensor, "images 4"], shift: Float64[Tensor, "images 2"], pixel_size: float
) -> Float64[Tensor, "3"]:
    """The place in the molecule's frame that shifts point to, s = R t, by least squares in Å; 0 by chance."""
    rotations = pose_to_rotation(pose.double())[:, :2].flatten(0, 1)
    seen, normal = pixel_size * shift.double().flatten(), rotations.T @ rotations
    found = torch.linalg.solve(normal, rotations.T @ seen)
    left = (seen - rotations @ found).square().mean()
    return found if found @ normal @ found > _CENTRED * left else torch.zeros_like(found)
