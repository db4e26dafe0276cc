"""What each atom scatters: kinds of atoms, each a sum of Gaussians, and projections made of them."""

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.imaging.fourier_projection import Kinds, fourier_coefficients, fourier_slopes
from cryoanm_lib.molecule.atoms import Atoms
from cryoanm_lib.molecule.beads import Beads
from cryoanm_lib.molecule.pseudo_atoms import PseudoAtoms
from cryoanm_lib.numerics.fourier import half_plane_frequencies

# Any width will do: it is divided out again. In pixels, so that nothing is small within the box.
_WIDTH = 0.5
#: With this accuracy the projection knows no aliases: the transform is that of a Gaussian in free space.
_NO_ALIASES = 1.0


@dataclass(frozen=True, eq=False)
class Scattering:
    """Atoms of several kinds, each with a form factor f(k) = Σ_g a_g exp(-b_g k²/4), |k| in cycles per Å.

    Positions are summed within a kind, and the sums weighed by form factors: what an image costs grows with
    the atoms, a kind costs as much as some twenty of them, and the Gaussians of a form factor cost nothing.
    Coefficients are those of the potential in the plane of the detector, averaged over each pixel's area:
    c(k) = Σ_p f_p(k) exp(-2πi k·x_p) / (N Δx)².

    Attributes
    ----------
    kinds : Int[Tensor, "atoms"]
        The kind of each atom.
    amplitudes, widths : Float[Tensor, "kinds gaussians"]
        a_g in Å, and b_g in Å².
    """

    kinds: Int[Tensor, "atoms"]
    amplitudes: Float[Tensor, "kinds gaussians"]
    widths: Float[Tensor, "kinds gaussians"]

    @classmethod
    def of_elements(
        cls, elements: Sequence[str], b_factors: Float[Tensor, "atoms"] | float = 0.0, step: float = 10.0
    ) -> "Scattering":
        """Atoms with the electron form factors of their elements, five Gaussians each, and B-factors.

        The form factors are those of Peng, Ren, Dudarev and Whelan (1996), as gemmi tabulates them.

        Parameters
        ----------
        elements : sequence of str
            The symbol of each atom.
        b_factors : Float[Tensor, "atoms"] or float
            In Å², of each atom or of all. Those of one element share a kind if they are equal once they are
            rounded.
        step : float
            To multiples of so many Å².

        Raises
        ------
        ForwardModelError
            If an element does not exist, or a B-factor is negative or not finite.

        Examples
        --------
        >>> glycine = Scattering.of_elements(["N", "C", "C", "O"], b_factors=20.0)
        >>> f"{glycine.factors(torch.zeros(1, 2), pixel_size=1.0).sum():.2f} Å"
        '6.70 Å'
        """
        each = _usable(torch.as_tensor(b_factors, dtype=torch.float64).expand(len(elements)))
        rounded = _rounded(each, step) if each.unique().numel() > 1 else each.tolist()
        pairs = sorted(set(zip(elements, rounded, strict=True)))
        number = {pair: kind for kind, pair in enumerate(pairs)}
        kinds = torch.tensor([number[pair] for pair in zip(elements, rounded, strict=True)])
        return cls(kinds, *_table([{pair: 1.0} for pair in pairs]))

    @classmethod
    def of_beads(cls, atoms: Atoms, beads: Beads, step: float = 10.0) -> "Scattering":
        """Beads with the weight and the width of the atoms that they stand for.

        A bead scatters what its atoms do, averaged over all turns of them about it (Debye) and over all beads
        of its kind, f(k) = ⟨Σ_a f_a(k) sinc(2πk d_a)⟩, where an atom at a distance d_a from it is taken for
        one of a B-factor greater by 8π² d_a² / 3, which agrees to second order in k d_a.

        Parameters
        ----------
        atoms, beads : Atoms, Beads
            A molecule, and what stands for it.
        step : float
            In Å², to which B-factors are rounded, as of `of_elements`.

        Raises
        ------
        ForwardModelError
            As of `of_elements`.

        Examples
        --------
        >>> from cryoanm_lib.molecule.atoms import load_atoms
        >>> from cryoanm_lib.molecule.beads import beads_of
        >>> atoms = load_atoms("adk_open")
        >>> scattering = Scattering.of_beads(atoms, beads_of(atoms))
        >>> len(scattering), len(scattering.amplitudes)
        (214, 19)
        """
        away = (atoms.coordinates - beads.coordinates[beads.of_atom]).square().sum(dim=-1)
        spread = _rounded(_usable(atoms.b_factors) + 8 * math.pi**2 / 3 * away, step)
        names = list(dict.fromkeys(beads.kinds))
        mixtures: list[dict[tuple[str, float], float]] = [{} for _ in names]
        number = {name: kind for kind, name in enumerate(names)}
        kinds, counts = [number[kind] for kind in beads.kinds], Counter(beads.kinds)
        for element, b_factor, bead in zip(atoms.elements, spread, beads.of_atom.tolist(), strict=True):
            mixture = mixtures[kinds[bead]]
            mixture[element, b_factor] = mixture.get((element, b_factor), 0.0) + 1 / counts[beads.kinds[bead]]
        return cls(torch.tensor(kinds), *_table(mixtures))

    @classmethod
    def of_pseudo_atoms(cls, found: PseudoAtoms) -> "Scattering":
        """Pseudo-atoms of a map: w exp(-|x|²/2σ²) has the form factor (2πσ²)^(3/2) w exp(-2π²σ²k²).

        Examples
        --------
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> found = PseudoAtoms(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), one, 1.0, 1.0)
        >>> f"{Scattering.of_pseudo_atoms(found).factors(torch.zeros(1, 2), pixel_size=1.0).item():.2f}"
        '15.75'
        """
        square = torch.full_like(found.weights, found.width**2)[:, None]
        return cls(found.kinds, (math.tau * square) ** 1.5 * found.weights[:, None], 8 * math.pi**2 * square)

    def __len__(self) -> int:
        """Number of atoms."""
        return len(self.kinds)

    def factors(self, frequencies: Float[Tensor, "kept 2"], pixel_size: float) -> Float[Tensor, "kinds kept"]:
        """f(k) of each kind, at frequencies in cycles per pixel."""
        squared = (frequencies / pixel_size).square().sum(-1)
        exponent = -0.25 * self.widths.to(squared)[..., None] * squared
        return (self.amplitudes.to(squared)[..., None] * exponent.exp()).sum(1)

    def coefficients(
        self, positions: Float[Tensor, "*batch atoms 2"], box_size: int, pixel_size: float, resolution: int
    ) -> Complex[Tensor, "*batch kept"]:
        """Coefficients of the crop Π_K of the projection of atoms, at positions in pixels from the origin."""
        order, kinds = _sorted(self, box_size, pixel_size, resolution, positions.dtype, positions.device)
        sizes = (box_size, _WIDTH, resolution, _NO_ALIASES)
        return fourier_coefficients(positions[..., order, :], *sizes, kinds)

    def slopes(
        self,
        positions: Float[Tensor, "*batch atoms 2"],
        velocities: Float[Tensor, "*batch directions atoms 2"],
        box_size: int,
        pixel_size: float,
        resolution: int,
    ) -> tuple[Complex[Tensor, "*batch kept"], Complex[Tensor, "*batch directions kept"]]:
        """The same, and how fast they change as the atoms move."""
        order, kinds = _sorted(self, box_size, pixel_size, resolution, positions.dtype, positions.device)
        sizes = (box_size, _WIDTH, resolution, _NO_ALIASES)
        return fourier_slopes(positions[..., order, :], velocities[..., order, :], *sizes, kinds)


# A few thousand exponentials for each kind and Gaussian, where an image may cost less.
@functools.lru_cache(maxsize=64)
def _sorted(
    scattering: Scattering,
    box_size: int,
    pixel_size: float,
    resolution: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Int[Tensor, "atoms"], Kinds]:
    """Atoms kind by kind, and the form factor of each over the transform of what stands for it."""
    kept = half_plane_frequencies(resolution).double() / box_size
    angular = 2 * math.pi * kept
    stood_for = math.tau * _WIDTH**2 * (-0.5 * (_WIDTH * angular).square().sum(-1)).exp()
    weights = scattering.factors(kept, pixel_size) / (pixel_size**2 * stood_for)
    starts = (0, *torch.bincount(scattering.kinds, minlength=len(weights)).cumsum(0).tolist())
    return scattering.kinds.argsort(stable=True).to(device), Kinds(starts, weights.to(device, dtype))


def _usable(b_factors: Float[Tensor, "atoms"]) -> Float[Tensor, "atoms"]:
    if wrong := [b for b in b_factors.tolist() if not 0 <= b < math.inf]:
        raise ForwardModelError(f"b_factor = {wrong[0]:g} is not usable: it must be 0 Å² or greater")
    return b_factors


def _rounded(b_factors: Float[Tensor, "atoms"], step: float) -> list[float]:
    return [round(b / step) * step for b in b_factors.tolist()]


def _table(
    mixtures: Sequence[Mapping[tuple[str, float], float]],
) -> tuple[Float[Tensor, "kinds gaussians"], Float[Tensor, "kinds gaussians"]]:
    """Amplitudes and widths of kinds that are so many atoms of each element and B-factor."""
    import gemmi  # takes longer to load than most of what the library does

    rows = []
    for mixture in mixtures:
        row = []
        for (element, b_factor), count in mixture.items():
            known = gemmi.Element(element)
            if known.atomic_number == 0:
                raise ForwardModelError(f"element {element!r} does not exist: give a symbol, such as C")
            if known.c4322 is None:
                raise ForwardModelError(f"no form factor of {element!r} is known: leave such atoms out")
            amplitudes, widths = torch.tensor(known.c4322.get_coefs(), dtype=torch.float64).chunk(2)
            row.append(torch.stack([count * amplitudes, widths + b_factor]))
        rows.append(torch.cat(row, dim=1).T)
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return padded[..., 0], padded[..., 1]
