"""The contrast transfer of a real microscope, in physical units; and the paper's natural ones, converted."""

import math
from collections.abc import Sequence

import scipy  # loads its constants where they are first used
import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.imaging.latents import ASTIGMATISM, B_FACTOR, PHASE_SHIFT, UNDERFOCUS, Latent, Values
from cryoanm_lib.imaging.transfer import Transfer

#: Key of what was estimated of each image before, among the values that are given: columns as of `given_ctf`.
GIVEN_CTF = "ctf"

#: What a number may be, its unit, and an example: a value in another unit is out of range, and refused.
_RANGES = {
    "voltage": (20.0, 3000.0, "kV", "300"),
    "spherical_aberration": (-20.0, 20.0, "mm", "2.7"),
    "amplitude_contrast": (0.0, 1.0, "a share", "0.1"),
    "b_factor": (0.0, 1e4, "Å²", "80"),
}
#: Å. Nobody works so near to focus, nor so far from it: the one is in µm, the other in nm or pm.
_DEFOCUS_RANGE = (30.0, 1.5e5)
#: How many different angles must all be small for that to be no chance: (π / 180)⁸ is 1e-14.
_ENOUGH_ANGLES = 8


class ContrastTransfer(Transfer):
    """Transfer of a microscope with aberration, astigmatism, a phase plate and an envelope.

        H(k) = ± exp(-B k²/4) sin χ(k),    |k| in cycles per Å,
        χ(k) = π λ_e Δf(k) k² - ½ π C_s λ_e³ k⁴ + arcsin w + φ,
        Δf(k) = Δf + a₁ cos 2ω + a₂ sin 2ω,

    where ω is the direction of k, counted from x towards y, and Δf is positive for underfocus: RELION's
    formula, signs and angle. Defocus, astigmatism, phase shift and B-factor are sums of what is given with
    each image (see `given_ctf`), if anything, and of a latent, if it varies: then the latent is the
    correction to the given value, and where nothing is given the value itself.

    Parameters
    ----------
    pixel_size : float
        Å per pixel of the uncropped image.
    voltage : float
        In kV.
    spherical_aberration : float
        C_s in mm.
    amplitude_contrast : float
        w, between 0 and 1.
    sign : int
        +1 where the molecule is bright at low frequencies, as RELION has it after inverting; -1 where it is
        dark, as on the detector and in the paper.
    varies : sequence of str
        Which of "defocus", "astigmatism", "phase_shift" and "b_factor" are latents.

    Raises
    ------
    ForwardModelError
        For a number that is none in the unit asked for, or a name that does not exist.

    Examples
    --------
    >>> microscope = ContrastTransfer(pixel_size=1.5)
    >>> k = torch.tensor([[0.0, 0.0], [0.0, 0.1]])
    >>> [f"{transfer:.3f}" for transfer in microscope.values({"defocus": torch.tensor(10_000.0)}, k)]
    ['0.100', '0.294']
    """

    pixel_size: float

    def __init__(
        self,
        pixel_size: float,
        voltage: float = 300.0,
        spherical_aberration: float = 2.7,
        amplitude_contrast: float = 0.1,
        sign: int = 1,
        varies: Sequence[str] = ("defocus",),
    ) -> None:
        _require_units(
            voltage=voltage, spherical_aberration=spherical_aberration, amplitude_contrast=amplitude_contrast
        )
        if sign not in (1, -1):
            raise ForwardModelError(
                f"sign = {sign} is not usable: 1 for a bright molecule, -1 for a dark one"
            )
        known = {latent.name: latent for latent in (UNDERFOCUS, ASTIGMATISM, PHASE_SHIFT, B_FACTOR)}
        if unknown := [name for name in varies if name not in known]:
            raise ForwardModelError(f"varies names {unknown}: choose from {', '.join(known)}")
        self.latents: tuple[Latent, ...] = tuple(known[name] for name in known if name in varies)
        self.pixel_size, self.sign = pixel_size, sign
        self.voltage, self.spherical_aberration = voltage, spherical_aberration
        self.amplitude_contrast = amplitude_contrast
        self.wavelength = electron_wavelength(voltage)

    def values(self, latents: Values, frequencies: Float[Tensor, "kept 2"]) -> Float[Tensor, "*batch kept"]:
        """H(k)."""
        phase, envelope = self._phase_and_envelope(latents, frequencies)
        return envelope * phase.sin()

    def slopes(
        self, latents: Values, frequencies: Float[Tensor, "kept 2"]
    ) -> dict[str, Float[Tensor, "*batch columns kept"]]:
        """± exp(-B k²/4) cos χ ∂χ, and -k²/4 H by the B-factor."""
        phase, envelope = self._phase_and_envelope(latents, frequencies)
        parts = self._parts(frequencies)
        by_phase = (envelope * phase.cos())[..., None, :]
        squared = (frequencies / self.pixel_size).square().sum(-1)
        of_each = {
            "defocus": by_phase * parts[:1],
            "astigmatism": by_phase * parts[1:3],
            "phase_shift": by_phase,
            "b_factor": (-0.25 * squared * envelope * phase.sin())[..., None, :],
        }
        return {latent.name: of_each[latent.name] for latent in self.latents}

    def check(self, latents: Values, box_size: int, resolution: int) -> None:
        """Refuse a defocus so high that the transfer turns by more than π from one frequency to the next.

        What has a frequency k is spread by λ_e Δf k - C_s λ_e³ k³ in Å: it then reaches beyond half the box
        and comes in again at the other side. Without anything that is given of the images, a defocus on both
        sides of focus is refused too: its prior is meant to be about a given value.

        Raises
        ------
        ForwardModelError
            Naming the box that would do, at this pixel size and up to this frequency, or what to give.
        """
        numbers, _ = self._numbers(latents, torch.zeros((), dtype=torch.float64, device="cpu"))
        lowest, highest = numbers[..., 0].min().item(), numbers[..., 0].max().item()
        if GIVEN_CTF not in latents and lowest <= 0 <= highest:
            raise ForwardModelError(
                f"no {GIVEN_CTF} of the images is given, so that their defocus is between {lowest:,.0f} and "
                f"{highest:,.0f} Å, about focus: give `{GIVEN_CTF}` by given_ctf, or the prior a defocus_mean"
            )
        half = numbers[..., 1:3].norm(dim=-1)
        extremes = torch.stack([(numbers[..., 0] - half).min(), (numbers[..., 0] + half).max()])
        finest = (resolution // 2) / (box_size * self.pixel_size)
        frequency = finest * torch.arange(1, 65, dtype=torch.float64, device="cpu") / 64
        aberration = self._aberration * self.wavelength**3 * frequency**3
        reach = (self.wavelength * extremes[:, None] * frequency - aberration).abs().amax(1)
        worst = extremes[reach.argmax()].item()
        needed = 2 * math.ceil(reach.max().item() / self.pixel_size)
        if needed > box_size:
            raise ForwardModelError(
                f"a defocus of {worst:,.0f} Å spreads details of {1 / finest:.1f} Å by {reach.max():.0f} Å, "
                f"beyond half a box of {box_size} pixels of {self.pixel_size:g} Å: use a box of at least "
                f"{needed} pixels, or a lower resolution than K = {resolution}"
            )

    def __str__(self) -> str:
        """In both units, for a micrometre of underfocus."""
        natural = natural_defocus(1e4, self.pixel_size, self.voltage)
        return (
            f"{self.voltage:g} kV, C_s {self.spherical_aberration:g} mm, amplitude contrast "
            f"{self.amplitude_contrast:g}; "
            f"at {self.pixel_size:g} Å a pixel 10,000 Å of defocus are z = {natural:.1f} px²"
        )

    @property
    def _aberration(self) -> float:
        """C_s in Å."""
        return 1e7 * self.spherical_aberration

    def _phase_and_envelope(
        self, latents: Values, frequencies: Float[Tensor, "kept 2"]
    ) -> tuple[Float[Tensor, "*batch kept"], Float[Tensor, "*batch kept"] | float]:
        """χ(k), and ± exp(-B k²/4)."""
        numbers, b_factor = self._numbers(latents, frequencies)
        squared = (frequencies / self.pixel_size).square().sum(-1)
        fixed = math.asin(self.amplitude_contrast) - (
            0.5 * math.pi * self._aberration * self.wavelength**3 * squared.square()
        )
        phase = numbers @ self._parts(frequencies) + fixed
        return phase, self.sign * (-0.25 * b_factor[..., None] * squared).exp()

    def _numbers(
        self, latents: Values, like: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "*batch 4"], Float[Tensor, "*batch"]]:
        """Δf, a₁, a₂ and φ of each image, and its B-factor: what is given and what varies together."""
        if GIVEN_CTF not in latents and UNDERFOCUS not in self.latents:
            raise ForwardModelError(
                f"no defocus: this microscope does not vary it, and no {GIVEN_CTF} is given: use given_ctf"
            )
        given = latents[GIVEN_CTF].to(like) if GIVEN_CTF in latents else like.new_zeros(5)
        for latent, columns in _COLUMNS.items():
            if latent in self.latents:
                value = latent.rows(latents[latent.name])
                given = given + torch.nn.functional.pad(value, (columns.start, 5 - columns.stop))
        return given[..., :4], given[..., 4]

    def _parts(self, frequencies: Float[Tensor, "kept 2"]) -> Float[Tensor, "4 kept"]:
        """What multiplies Δf, a₁, a₂ and φ in χ."""
        x, y = (frequencies / self.pixel_size).unbind(-1)
        of_defocus = torch.stack([x.square() + y.square(), x.square() - y.square(), 2 * x * y])
        return torch.cat([math.pi * self.wavelength * of_defocus, torch.ones_like(x)[None]])


#: Where each latent stands among the five numbers of `given_ctf`.
_COLUMNS = {
    UNDERFOCUS: slice(0, 1),
    ASTIGMATISM: slice(1, 3),
    PHASE_SHIFT: slice(3, 4),
    B_FACTOR: slice(4, 5),
}


def given_ctf(
    defocus_u: Float[Tensor, "images"],
    defocus_v: Float[Tensor, "images"] | None = None,
    defocus_angle: Float[Tensor, "images"] | None = None,
    phase_shift: Float[Tensor, "images"] | None = None,
    b_factor: Float[Tensor, "images"] | None = None,
) -> Float[Tensor, "images 5"]:
    """What star files say of the transfer of each image, as the numbers that `ContrastTransfer` is linear in.

    Parameters
    ----------
    defocus_u, defocus_v : Float[Tensor, "images"]
        Underfocus in Å along the angle and across it; without the second there is no astigmatism.
    defocus_angle : Float[Tensor, "images"]
        Degrees, from x towards y.
    phase_shift : Float[Tensor, "images"]
        Degrees, of a phase plate.
    b_factor : Float[Tensor, "images"]
        Å².

    Returns
    -------
    Float[Tensor, "images 5"]
        Mean defocus, a₁ and a₂ in Å, φ in radians, B in Å².

    Raises
    ------
    ForwardModelError
        If a number is missing, not finite, or none in the unit asked for.

    Examples
    --------
    >>> angle = torch.tensor([30.0])
    >>> given_ctf(torch.tensor([12_000.0]), torch.tensor([10_000.0]), angle).round(decimals=1)
    tensor([[11000.0000,   500.0000,   866.0000,     0.0000,     0.0000]])
    """
    if defocus_v is not None and defocus_angle is None:
        raise ForwardModelError("defocus_v needs a defocus_angle: give it in degrees, or leave out both")
    none = torch.zeros_like(defocus_u)
    v, angle, phase, b = (
        none if part is None else part for part in (defocus_v, defocus_angle, phase_shift, b_factor)
    )
    v = defocus_u if defocus_v is None else v
    for name, value in {"defocus_u": defocus_u, "defocus_v": v}.items():
        near, far = _DEFOCUS_RANGE
        wrong = ~((value == 0) | ((value.abs() >= near) & (value.abs() <= far)))
        if wrong.any():
            raise ForwardModelError(
                f"{name} = {value[wrong][0].item():g} of image {wrong.nonzero()[0].item()} is no usual "
                "defocus: give it in Å, such as 15000 for 1.5 µm"
            )
    _require_degrees("defocus_angle", angle[defocus_u != v])
    _require_degrees("phase_shift", phase)
    for extreme in (b.min(), b.max()):  # of which one is NaN where any is
        _require_units(b_factor=extreme.item())
    twice, half = torch.deg2rad(2 * angle), 0.5 * (defocus_u - v)
    columns = (0.5 * (defocus_u + v), half * twice.cos(), half * twice.sin(), torch.deg2rad(phase), b)
    return torch.stack(columns, dim=-1)


def _require_degrees(name: str, angle: Float[Tensor, "images"]) -> None:
    """Refuse angles that are not finite, beyond a full turn, or so small, all of them, as radians are."""
    if wrong := [value for value in angle.tolist() if not abs(value) <= 360]:
        raise ForwardModelError(f"{name} = {wrong[0]:g} is no angle: give degrees, at most 360")
    if len(angle[angle != 0].unique()) >= _ENOUGH_ANGLES and angle.abs().max() <= math.pi + 1e-3:
        raise ForwardModelError(
            f"{name} is between {angle.min().item():.2f} and {angle.max().item():.2f} for {len(angle)} "
            "images, which looks like radians: give degrees"
        )


def _require_units(**numbers: float) -> None:
    """Refuse a number that is none in the unit asked for."""
    for name, value in numbers.items():
        low, high, unit, example = _RANGES[name]
        if not low <= value <= high:
            raise ForwardModelError(
                f"{name} = {value:g} is not usable: give it as {unit}, between {low:g} and {high:g}, such as "
                f"{example}"
            )


def electron_wavelength(voltage: float) -> float:
    """Relativistic de Broglie wavelength λ_e in Å of an electron accelerated through a voltage in kV.

    Examples
    --------
    >>> f"{electron_wavelength(300):.6f}"
    '0.019687'
    """
    constants = scipy.constants
    energy = constants.e * 1e3 * voltage
    rest_energy = constants.m_e * constants.c**2
    momentum = math.sqrt(2 * constants.m_e * energy * (1 + energy / (2 * rest_energy)))
    return constants.h / momentum / constants.angstrom


def natural_defocus(defocus: float, pixel_size: float, voltage: float = 300.0) -> float:
    """The paper's natural defocus z = π λ_e Δf / Δx² in px² of a physical one.

    Δf is in Å and positive for underfocus, Δx is the pixel size in Å, and the voltage is in kV.

    Examples
    --------
    >>> print(f"{natural_defocus(10_000, pixel_size=3.5):.1f}")
    50.5
    """
    _require_units(voltage=voltage)
    return math.pi * electron_wavelength(voltage) * defocus / pixel_size**2


def physical_defocus(natural: float, pixel_size: float, voltage: float = 300.0) -> float:
    """The inverse of `natural_defocus`: Δf in Å of a natural z in px².

    Examples
    --------
    >>> print(f"{physical_defocus(50, pixel_size=3.5):,.0f} Å")
    9,903 Å
    """
    return natural / natural_defocus(1.0, pixel_size, voltage)
