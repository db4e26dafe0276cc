"""What a set of images has said of itself: all that their posteriors are computed with."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Float64
from torch import Tensor

from cryoanm_lib.analysis.molecule import Molecule
from cryoanm_lib.imaging.contrast_transfer import GIVEN_CTF
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.radial_noise import RadialNoise, shell_hats
from cryoanm_lib.inference.place_error import PlaceError
from cryoanm_lib.numerics.fourier import (
    crop_coefficients,
    half_plane_frequencies,
    image_to_coefficients,
    resolution_of,
)
from cryoanm_lib.particles.optics_group import OpticsGroup
from cryoanm_lib.particles.particle_set import ParticleSet
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.prior import GIVEN_POSE, OpticsPrior
from cryoanm_lib.program.program import Model

#: Values from which on they tell how noisy an image is; and cycles per pixel beyond which there is no signal
#: to speak of.
_TELLING, _HIGHEST = 250, 0.35


@dataclass(frozen=True, eq=False)
class Learned:
    """All that the posteriors of images through the same optics are computed with.

    Attributes
    ----------
    optics : OpticsGroup
        The microscope and its pixels.
    box_size, resolution : int
        N and K.
    scale : float
        Units of the images for one of the forward model, by which they are divided.
    power : Float64[Tensor, "shells"]
        The noise's spectrum, after that.
    level : float
        Deviation of the images' level, after that.
    luzzati : Float64[Tensor, "shells"]
        D.
    centre : Float64[Tensor, "3"]
        Å from the point about which particles turn to the centroid of the molecule.
    prior : OpticsPrior
        Of every latent.
    place : PlaceError
        How far atoms are off their places; a deviation of 0 where that is no more than chance.
    images : int
        From which all this was learned.
    """

    optics: OpticsGroup
    box_size: int
    resolution: int
    scale: float
    power: Float64[Tensor, "shells"]
    level: float
    luzzati: Float64[Tensor, "shells"]
    centre: Float64[Tensor, "3"]
    prior: OpticsPrior
    place: PlaceError
    images: int

    def model(self, molecule: Molecule) -> Model:
        """How images of a molecule come about."""
        molecule, prior = molecule.moved(self.centre), self.prior
        varies = tuple(
            name
            for name in ("defocus", "astigmatism", "phase_shift", "b_factor")
            if getattr(prior, f"{name}_scale")
        )
        forward = ForwardModel(
            *(molecule.coordinates.float(), molecule.directions.float(), self.box_size),
            pixel_size=self.optics.pixel_size,
            transfer=self.optics.transfer(varies=varies),
            scattering=molecule.scattering,
            luzzati=self.luzzati,
        )
        return Model(forward, prior, self.noise())

    def noise(self, scale: Float64[Tensor, "images"] | None = None) -> RadialNoise:
        """Of images of their own scales ν."""
        return RadialNoise(self.power, self.box_size, scale, self.level)

    def prepared(
        self, particles: ParticleSet, pixels: Float[Tensor, "images y x"]
    ) -> tuple[Particles, Float64[Tensor, "images 2"]]:
        """Images as a model takes them, moved back by the shifts of their table; and these, in pixels."""
        latents = particles.latents()
        coefficients = image_to_coefficients(pixels, self.box_size) / self.scale
        noise = self.noise(self._scales(coefficients))
        cropped = _moved_back(
            crop_coefficients(coefficients, self.resolution), latents["shift"], self.box_size
        )
        given = {GIVEN_CTF: latents[GIVEN_CTF].float(), GIVEN_POSE: latents["pose"].float()}
        return Particles(cropped, given, noise), latents["shift"]

    def _scales(self, coefficients: Complex[Tensor, "images kept"]) -> Float64[Tensor, "images"]:
        """ν of each image, from frequencies beyond those that are looked at, where nothing but noise is.

        Where all are looked at, or nearly, it is from the highest: there the noise is far above the signal.
        """
        hats = shell_hats(self.box_size, len(self.power))
        shell = hats @ torch.arange(len(self.power)).double()
        beyond = shell > min(self.resolution / 2, _HIGHEST * self.box_size)
        if int(beyond.sum()) < _TELLING:
            return torch.ones(len(coefficients), dtype=torch.float64)
        expected = (hats @ self.power)[beyond].sum() / self.box_size**2
        return (coefficients[:, beyond].abs().double().square().sum(1) / expected).sqrt()


def _moved_back(
    coefficients: Complex[Tensor, "images kept"], shift: Float64[Tensor, "images 2"], box_size: int
) -> Complex[Tensor, "images kept"]:
    """Images moved by minus so many pixels."""
    frequencies = half_plane_frequencies(resolution_of(coefficients)).double() / box_size
    phase = (2 * math.pi * shift @ frequencies.T).to(coefficients.real.dtype)
    return coefficients * torch.polar(torch.ones_like(phase), phase)
