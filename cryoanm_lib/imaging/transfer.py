"""Contrast transfer function of the microscope."""

import math

import scipy  # loads its constants where they are first used
from jaxtyping import Float
from torch import Tensor


def ctf(
    defocus: Float[Tensor, "*batch"], frequencies: Float[Tensor, "kept 2"]
) -> Float[Tensor, "*batch kept"]:
    """Contrast transfer H_z(k) = sin(-z |k|²) of a weak-phase object.

    Parameters
    ----------
    defocus : Float[Tensor, "*batch"]
        z in natural units, px² (the paper's prior is 50 ± 3).
    frequencies : Float[Tensor, "kept 2"]
        k in cycles per pixel of the uncropped box.

    Examples
    --------
    >>> import torch
    >>> frequencies = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.1, 0.2]])
    >>> [f"{transfer:.3f}" for transfer in ctf(torch.tensor(50.0), frequencies)]
    ['-0.000', '-0.479', '-0.598']
    """
    return (-defocus[..., None] * frequencies.square().sum(-1)).sin()


def natural_defocus(defocus_in_angstroms: float, pixel_size: float, voltage_in_kv: float = 300.0) -> float:
    """The natural defocus z = π λ Δf / s² that belongs to a physical one, in px².

    Parameters
    ----------
    defocus_in_angstroms : float
        Δf, positive for underfocus.
    pixel_size : float
        s in Å.
    voltage_in_kv : float
        Acceleration voltage, which sets the relativistic electron wavelength λ.

    Examples
    --------
    >>> print(f"{natural_defocus(10_000, pixel_size=3.5):.1f}")
    50.5
    """
    return math.pi * _electron_wavelength(1e3 * voltage_in_kv) * defocus_in_angstroms / pixel_size**2


def _electron_wavelength(voltage: float) -> float:
    """Relativistic de Broglie wavelength in Å of an electron accelerated through a voltage in V."""
    constants = scipy.constants
    energy = constants.e * voltage
    rest_energy = constants.m_e * constants.c**2
    momentum = math.sqrt(2 * constants.m_e * energy * (1 + energy / (2 * rest_energy)))
    return constants.h / momentum / constants.angstrom
