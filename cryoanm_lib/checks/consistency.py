"""Whether poses, shifts, optics and a molecule explain the images of a star file, or a usual mistake does."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Complex, Float, Float64
from torch import Tensor

from cryoanm_lib.errors import ParticleError
from cryoanm_lib.imaging.contrast_transfer import GIVEN_CTF
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.imaging.radial_noise import shell_hats
from cryoanm_lib.imaging.scattering import Scattering
from cryoanm_lib.molecule.atoms import Atoms
from cryoanm_lib.molecule.pseudo_atoms import PseudoAtoms
from cryoanm_lib.numerics.fourier import image_to_coefficients
from cryoanm_lib.numerics.rotation import quaternion_conjugate
from cryoanm_lib.particles.optics_group import OpticsGroup
from cryoanm_lib.particles.particle_set import ParticleSet

#: The usual mistakes, each a way to predict the images in which the table is not taken at its word.
MISTAKES = ("inverted_contrast", "shift_sign", "no_shifts", "transposed_rotation", "mirrored", "no_ctf")

#: Standard errors by which a correlation must be above 0, and a mistake's above that of the table.
SIGNAL, BETTER = 5.0, 4.0
#: In units of the finest details compared: above the first is shape alone, between the others what tells
#: one molecule from another, where that is some 10 Å.
_COARSE, _FINE = 3.0, (1.2, 2.0)
#: Share of its coarse correlation that a right molecule keeps there at least, whatever blurs it.
_KEPT = 0.25


@dataclass(frozen=True, eq=False)
class Consistency:
    """What a sample of images says of its table.

    Attributes
    ----------
    images : int
        How many were compared.
    box_size, pixel_size : int, float
        Of the largest optics group among them.
    correlation : dict of str to float
        Mean correlation of images with predictions, in units of their power in each shell: "as_is", and with
        each of `MISTAKES`.
    difference : dict of str to float
        By how many standard errors a mistake's is higher than that as it is, image by image.
    significance : float
        By how many standard errors the highest is above 0.
    kept : float
        How much less images hold of the fine details of the prediction that explains them best than of its
        coarse ones: 1 for a perfect model, poses and envelope.
    snr : float
        Power of what is explained for that of the rest, over all pixels.
    sign : int
        1 where the molecule is bright, -1 where it is dark.
    verdict : str
        "consistent", one of `MISTAKES`, "wrong_molecule" or "no_signal".
    """

    images: int
    box_size: int
    pixel_size: float
    correlation: dict[str, float]
    difference: dict[str, float]
    significance: float
    kept: float
    snr: float
    sign: int
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON, one level deep."""
        flat: dict[str, Any] = {
            name: getattr(self, name) for name in ("images", "box_size", "pixel_size", "sign")
        }
        flat["correlation_mean"] = self.correlation["as_is"]
        flat |= {f"correlation_{name}": self.correlation[name] for name in MISTAKES}
        return flat | {"kept": self.kept, "snr": self.snr, "verdict": self.verdict}


@torch.no_grad()
def check_particles(
    particles: ParticleSet,
    molecule: Atoms | PseudoAtoms,
    images: int = 500,
    detail: float = 10.0,
    skip_bad: bool = False,
    generator: torch.Generator | None = None,
) -> Consistency:
    """Compare some images with what a molecule looks like at their poses, through their optics.

    Nothing is inferred. Both are divided by the root mean square of the images in each shell, which is mostly
    noise, and correlated; and so are predictions with one of the usual mistakes in reading the table.

    Parameters
    ----------
    particles : ParticleSet
        With poses, shifts and optics.
    molecule : Atoms or PseudoAtoms
        Of a model or of a map, about the origin about which particles are turned.
    images : int
        At most so many, chosen at random.
    detail : float
        Å of the finest details compared. Much coarser ones tell few molecules apart.
    skip_bad, generator : bool, torch.Generator
        As of `ParticleSet.images`; and what chooses.

    Raises
    ------
    ParticleError
        If an image is not usable, there are fewer than two, or poses, shifts or defoci are missing.
    ForwardModelError
        If the molecule does not fit the box.
    """
    chosen = torch.randperm(len(particles), generator=generator)[:images].sort().values
    parts = [
        _Compared.of(particles, chosen[particles.group[chosen] == number], molecule, detail, skip_bad)
        for number in particles.group[chosen].unique().tolist()
    ]
    largest = max(parts, key=len)
    score = {name: torch.cat([part.score[name] for part in parts]) for name in ("as_is", *MISTAKES)}
    if len(score["as_is"]) < 2:
        raise ParticleError("1 image tells no error of a correlation: give two or more")
    shared = {name: torch.stack([part.shared[name] for part in parts]).sum(0) for name in score}
    explained = torch.stack([part.explained for part in parts]).sum(0)
    return _judged(score, shared, explained, largest)


@dataclass(frozen=True, eq=False)
class _Compared:
    """Images of one optics group beside their predictions.

    Attributes
    ----------
    group, box_size : OpticsGroup, int
        What they have in common.
    score : dict of str to Float64[Tensor, "images"]
        Correlation of each image with its prediction.
    shared : dict of str to Float64[Tensor, "bands two"]
        In the coarse band and in the fine one, Re Σ y ŷ* and Σ |ŷ|² of each prediction.
    explained : Float64[Tensor, "two"]
        Power that the best multiple of all predictions explains, and all.
    """

    group: OpticsGroup
    box_size: int
    score: dict[str, Float64[Tensor, "images"]]
    shared: dict[str, Float64[Tensor, "bands two"]]
    explained: Float64[Tensor, "two"]

    def __len__(self) -> int:
        return len(self.score["as_is"])

    @classmethod
    def of(
        cls,
        particles: ParticleSet,
        rows: Tensor,
        molecule: Atoms | PseudoAtoms,
        detail: float,
        skip_bad: bool,
    ) -> "_Compared":
        """Read and compare some of the particles."""
        read = particles.images(rows, skip_bad)
        these = particles[read.rows]
        group, box_size = these.optics[int(these.group[0])], read.pixels.shape[-1]
        highest = math.floor(box_size * group.pixel_size / detail)
        resolution = min(box_size - box_size % 2, max(8, 2 * highest))
        observed = image_to_coefficients(read.pixels.double(), resolution)[:, 1:]
        predicted = _predictions(these.latents(), group, box_size, molecule, resolution)
        hats = shell_hats(resolution, resolution // 2 + 1)[1:]
        power = (observed.abs().square().mean(0) @ hats) / hats.sum(0).clamp(min=1e-12)
        weight = (hats @ power).clamp(min=1e-300).rsqrt()
        y = weight * observed
        score = {name: _correlation(y, weight * made) for name, made in predicted.items()}
        wave = (resolution // 2) / (hats @ torch.arange(hats.shape[1]).double()).clamp(min=0.5)
        bands = torch.stack([wave > _COARSE, (wave > _FINE[0]) & (wave < _FINE[1])]).double()
        shared = {}
        for name, made in predicted.items():
            own = weight * made
            products = [(y.conj() * own).real.sum(0), own.abs().square().sum(0)]
            shared[name] = torch.stack([bands @ product for product in products], dim=-1)
        plain = (observed.conj() * predicted["as_is"]).real.sum(), predicted["as_is"].abs().square().sum()
        explained = torch.stack([plain[0].square() / plain[1], observed.abs().square().sum()])
        return cls(group, box_size, score, shared, explained)


def _predictions(
    latents: Values,
    group: OpticsGroup,
    box_size: int,
    molecule: Atoms | PseudoAtoms,
    resolution: int,
) -> dict[str, Complex[Tensor, "images kept"]]:
    """Coefficients without that at k = 0, as the table has it and with each mistake."""
    scattering = (
        Scattering.of_pseudo_atoms(molecule)
        if isinstance(molecule, PseudoAtoms)
        else Scattering.of_elements(molecule.elements, molecule.b_factors)
    )
    sizes = {"box_size": box_size, "pixel_size": group.pixel_size}
    transfer = group.transfer(varies=())
    hands = {}
    for hand, mirror in {"": 1.0, "mirrored": -1.0}.items():
        places = molecule.coordinates * torch.tensor([1.0, 1.0, mirror], dtype=torch.float64)
        rigid = torch.zeros(1, len(molecule), 3)
        forward = ForwardModel(places.float(), rigid, **sizes, transfer=transfer, scattering=scattering)
        forward.check_fit(3)
        hands[hand] = forward
    frequencies = forward.frequencies(resolution)[1:].double()
    h = transfer.values({GIVEN_CTF: latents[GIVEN_CTF]}, frequencies)
    phase = -2 * math.pi * latents["shift"] @ frequencies.T
    there = torch.polar(torch.ones_like(phase), phase)

    def seen(forward: ForwardModel, pose: Float[Tensor, "images 4"]) -> Complex[Tensor, "images kept"]:
        at_rest = {"pose": pose.float(), "amplitude": torch.zeros(len(pose), 1)}
        return forward.projections(at_rest, resolution)[:, 1:].to(torch.complex128)

    still = seen(hands[""], latents["pose"])
    return {
        "as_is": h * there * still,
        "inverted_contrast": -h * there * still,
        "shift_sign": h * there.conj() * still,
        "no_shifts": h * still,
        "transposed_rotation": h * there * seen(hands[""], quaternion_conjugate(latents["pose"])),
        "mirrored": h * there * seen(hands["mirrored"], latents["pose"]),
        "no_ctf": there * still,
    }


def _correlation(
    one: Complex[Tensor, "images kept"], other: Complex[Tensor, "images kept"]
) -> Float64[Tensor, "images"]:
    shared = (one.conj() * other).real.sum(1)
    return shared / (one.norm(dim=1) * other.norm(dim=1)).clamp(min=1e-300)


def _judged(
    score: Mapping[str, Float64[Tensor, "images"]],
    shared: Mapping[str, Float64[Tensor, "bands two"]],
    explained: Float64[Tensor, "two"],
    largest: _Compared,
) -> Consistency:
    n = len(score["as_is"])

    def significance(values: Float64[Tensor, "images"]) -> float:
        return (values.mean() / (values.std() / n**0.5).clamp(min=1e-12)).item()

    mean = {name: values.mean().item() for name, values in score.items()}
    difference = {name: significance(score[name] - score["as_is"]) for name in MISTAKES}
    best = max(mean, key=lambda name: mean[name])
    better = best != "as_is" and difference[best] > BETTER
    chosen = best if better else "as_is"
    coarse, fine = (shared[chosen][:, 0] / shared[chosen][:, 1].clamp(min=1e-300)).tolist()
    kept = fine / coarse if coarse > 0 else 0.0
    if significance(score[best]) < SIGNAL:
        verdict = "no_signal"
    elif kept < _KEPT:
        verdict = "wrong_molecule"
    else:
        verdict = chosen if better else "consistent"
    return Consistency(
        *(n, largest.box_size, largest.group.pixel_size, mean, difference),
        significance(score[best]),
        kept,
        (explained[0] / (explained[1] - explained[0]).clamp(min=1e-300)).item(),
        largest.group.sign * (-1 if mean["inverted_contrast"] > mean["as_is"] else 1),
        verdict,
    )
