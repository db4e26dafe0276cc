"""Anisotropic network model: springs between neighbouring pseudo-atoms and their softest modes."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cryoanm_lib.errors import NetworkModelError
from cryoanm_lib.molecule.loose_ends import loose_ends, named
from cryoanm_lib.molecule.sparse_network import GUARDS, rigid_motions, softest_modes, sparse_hessian

DEFAULT_CUTOFF = 15.0  # Å
RIGID_BODY_MODES = 6
DENSE_ATOMS = 1000  # up to which the whole spectrum is computed, and beyond which the softest modes alone
ITERATED_TOLERANCE = 1e-9  # of an iterated eigenvalue, relative to the largest
FLAPPING = 1 / 3  # of the softest mode's motion in loose ends, from which on a warning says so


@dataclass(frozen=True, eq=False)
class NormalModes:
    """The softest internal modes of a network, softest first.

    Attributes
    ----------
    eigenvalues : Float64[Tensor, "modes"]
        Stiffness λ of each mode, in the unit of the spring constant (energy per Å²).
    vectors : Float64[Tensor, "modes atoms 3"]
        Each of unit norm over all 3n coordinates; its component of largest magnitude is positive.
    n_zero, cutoff : int, float
        Zero modes left out, the six rigid-body motions, and how near in Å pseudo-atoms were connected.
    """

    eigenvalues: Float64[Tensor, "modes"]
    vectors: Float64[Tensor, "modes atoms 3"]
    n_zero: int
    cutoff: float


def hessian(
    coordinates: Float[Tensor, "atoms 3"], cutoff: float = DEFAULT_CUTOFF, spring_constant: float = 1.0
) -> Float64[Tensor, "dof dof"]:
    """Second derivatives of the spring energy at the reference structure, differentiable in `coordinates`.

    H_ij = -γ r_ij r_ijᵀ / |r_ij|² for |r_ij| ≤ cutoff and H_ii = -Σ_j H_ij, the paper's Eq. 4, which lacks
    the minus sign of the off-diagonal blocks.

    It is symmetric and positive semi-definite, 3n by 3n, in energy per Å², with rows in the order x, y, z of
    atom 0, x, y, z of atom 1, and so on.

    Parameters
    ----------
    coordinates : Float[Tensor, "atoms 3"]
        Pseudo-atom positions in Å.
    cutoff, spring_constant : float
        Distance in Å up to which two pseudo-atoms share a spring, and γ in energy per Å².

    Raises
    ------
    NetworkModelError
        If coordinates have the wrong shape, are not finite or coincide, or a parameter is not positive.

    Examples
    --------
    >>> pair = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    >>> hessian(pair)[0].tolist()
    [1.0, 0.0, 0.0, -1.0, 0.0, 0.0]
    """
    require_positive(cutoff=cutoff, spring_constant=spring_constant)
    coordinates = checked(coordinates).to(torch.float64)
    separation = coordinates[:, None] - coordinates[None]
    squared_distance = separation.square().sum(dim=-1)
    themselves = torch.eye(len(coordinates), dtype=torch.bool, device=coordinates.device)
    if (coincident := (squared_distance == 0) & ~themselves).any():
        first, second = coincident.nonzero()[0].tolist()
        raise NetworkModelError(
            f"atoms {first} and {second} coincide, so no direction joins them: keep one of them"
        )
    connected = (squared_distance <= cutoff**2) & ~themselves
    # The division sees 1 instead of 0 where nothing is connected, which keeps gradients free of NaN.
    stiffness = torch.where(connected, spring_constant / squared_distance.where(connected, 1.0), 0.0)
    outer = separation[..., :, None] * separation[..., None, :]
    springs = stiffness[..., None, None] * outer
    diagonal = torch.where(themselves[..., None, None], springs.sum(dim=1)[:, None], 0.0)
    return (diagonal - springs).transpose(1, 2).flatten(2).flatten(0, 1)


def normal_modes(
    coordinates: Float[Tensor, "atoms 3"],
    n_modes: int = 1,
    cutoff: float = DEFAULT_CUTOFF,
    spring_constant: float = 1.0,
    residue_numbers: Sequence[int] | None = None,
) -> NormalModes:
    """The `n_modes` softest internal modes of the network of `coordinates`.

    Up to `DENSE_ATOMS` by the whole spectrum, in which the zero modes are counted; beyond, for some modes of
    coordinates that need no gradient, by iteration on the sparse Hessian with the rigid-body motions kept out
    (see `sparse_network`). A warning names the loose ends of a chain if they flap in the softest mode.

    Computed in float64, on the device of `coordinates`.

    Parameters
    ----------
    coordinates, cutoff, spring_constant
        As of `hessian`.
    n_modes : int
        How many modes to return, at most 3n - 6.
    residue_numbers : sequence of int, optional
        Of each pseudo-atom, by which messages name it; by default they count from 0.

    Raises
    ------
    NetworkModelError
        If the network does not have exactly six zero modes, has fewer than `n_modes` others, or is so large
        that they must be iterated, and they do not converge.

    Examples
    --------
    >>> from cryoanm_lib.molecule.structure import load_structure
    >>> modes = normal_modes(load_structure("adk_open").coordinates, n_modes=3)
    >>> modes.n_zero, tuple(modes.vectors.shape)
    (6, (3, 107, 3))
    >>> [f"{collectivity(vector):.3f}" for vector in modes.vectors]
    ['0.386', '0.359', '0.444']
    """
    # A block of modes that is a good part of them all, or a derivative, needs the whole spectrum.
    few = 5 * (n_modes + GUARDS) < 3 * len(coordinates)
    iterate = len(coordinates) > DENSE_ATOMS and few and not coordinates.requires_grad
    solve = _by_iteration if iterate else _by_the_whole_spectrum
    eigenvalues, vectors, n_zero = solve(coordinates, n_modes, cutoff, spring_constant)
    ends = loose_ends(coordinates.detach().cpu().double().numpy(), cutoff)
    firm = torch.from_numpy(~ends).to(coordinates.device)
    if n_zero != RIGID_BODY_MODES:
        at_fault = ends.any() and solve(coordinates[firm], 1, cutoff, spring_constant)[2] == RIGID_BODY_MODES
        cause = f"too few springs hold {named(ends, residue_numbers)}" if at_fault else ""
        raise not_rigid(n_zero, len(coordinates), cutoff, cause)
    _require_available(n_modes, len(coordinates))
    vectors = with_fixed_sign(vectors).unflatten(1, (-1, 3))
    flapping = vectors[0, ~firm].detach().square().sum().item()
    if flapping > FLAPPING:
        warnings.warn(
            f"{flapping:.0%} of the motion of the softest mode at a cutoff of {cutoff} Å is that of "
            f"{named(ends, residue_numbers)}",
            stacklevel=2,
        )
    return NormalModes(eigenvalues, vectors, RIGID_BODY_MODES, cutoff)


def _by_the_whole_spectrum(
    coordinates: Float[Tensor, "atoms 3"], n_modes: int, cutoff: float, spring_constant: float
) -> tuple[Float64[Tensor, "modes"], Float64[Tensor, "modes dof"], int]:
    eigenvalues, columns = torch.linalg.eigh(hessian(coordinates, cutoff, spring_constant))
    # What rounding leaves of a zero, and no more: a long rod is rigid, and its softest bend falls as 1 / n⁴.
    rounding = len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    n_zero = int((eigenvalues <= rounding * eigenvalues[-1]).sum())
    chosen = slice(n_zero, n_zero + n_modes)
    return eigenvalues[chosen], columns.T[chosen], n_zero


def _by_iteration(
    coordinates: Float[Tensor, "atoms 3"], n_modes: int, cutoff: float, spring_constant: float
) -> tuple[Float64[Tensor, "modes"], Float64[Tensor, "modes dof"], int]:
    require_positive(cutoff=cutoff, spring_constant=spring_constant)
    _require_available(n_modes, len(coordinates))
    atoms = checked(coordinates).detach().cpu().double().numpy()
    network = sparse_hessian(atoms, cutoff, spring_constant)
    lonely = int((network.diagonal() <= 0).sum())
    if lonely:
        return coordinates.new_empty(0), coordinates.new_empty(0, network.shape[0]), RIGID_BODY_MODES + lonely
    eigenvalues, vectors, largest = softest_modes(network, rigid_motions(atoms), n_modes)
    n_zero = RIGID_BODY_MODES + int((eigenvalues <= ITERATED_TOLERANCE * largest).sum())
    stiffness, modes = (
        torch.from_numpy(found.copy()).to(coordinates.device) for found in (eigenvalues, vectors)
    )
    return stiffness, modes, n_zero


def boltzmann_variances(eigenvalues: Float[Tensor, "modes"], thermal_energy: float) -> Float[Tensor, "modes"]:
    """Variance kT / λ in Å² of the amplitude of each mode in thermal equilibrium.

    Parameters
    ----------
    eigenvalues, thermal_energy : Float[Tensor, "modes"], float
        Stiffness λ of each mode in energy per Å², and kT in the same unit of energy.

    Raises
    ------
    NetworkModelError
        If the thermal energy or an eigenvalue is not positive.

    Examples
    --------
    >>> boltzmann_variances(torch.tensor([0.5, 2.0]), thermal_energy=1.0).tolist()
    [2.0, 0.5]
    """
    require_positive(thermal_energy=thermal_energy)
    if not (eigenvalues > 0).all():
        raise NetworkModelError(
            f"eigenvalues include {eigenvalues.min().item():.3g}; a variance needs positive ones: leave out "
            "the zero modes"
        )
    return thermal_energy / eigenvalues


def collectivity(mode: Float[Tensor, "atoms 3"]) -> float:
    """Fraction of the atoms that take part in a mode (Brüschweiler's κ), from 1/n to 1.

    κ = exp(-Σ_i u_i² log u_i²) / n, with u_i² the squared displacement of atom i, normalised to Σ_i u_i² = 1.

    Raises
    ------
    NetworkModelError
        If nothing moves.

    Examples
    --------
    >>> collectivity(torch.eye(3))
    1.0
    """
    squared = mode.square().sum(dim=-1)
    _require_motion("mode", squared.sum())
    return (torch.special.entr(squared / squared.sum()).sum().exp() / len(mode)).item()


def overlap(mode: Float[Tensor, "atoms 3"], displacement: Float[Tensor, "atoms 3"]) -> float:
    """Agreement |v·d| / (|v| |d|) of a mode with an observed displacement, from 0 to 1.

    Superpose the two structures before taking their difference; norms do not matter.

    Raises
    ------
    NetworkModelError
        If shapes differ, or nothing moves.

    Examples
    --------
    >>> from cryoanm_lib.molecule.structure import load_structure, superpose
    >>> opened, closed = (load_structure(name).coordinates for name in ("adk_open", "adk_closed"))
    >>> softest = normal_modes(opened).vectors[0]
    >>> print(f"{overlap(softest, superpose(closed, opened) - opened):.3f}")
    0.790
    """
    if mode.shape != displacement.shape:
        raise NetworkModelError(
            f"mode has shape {tuple(mode.shape)} and displacement {tuple(displacement.shape)}; both must be "
            "(atoms, 3) with the same atoms"
        )
    norms = mode.norm() * displacement.norm()
    _require_motion("mode or displacement", norms)
    return ((mode * displacement).sum().abs() / norms).item()


def with_fixed_sign(vectors: Float[Tensor, "modes dof"]) -> Float[Tensor, "modes dof"]:
    """Make the component of largest magnitude positive: the solver's choice of sign is arbitrary."""
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return vectors * largest.sign()


def checked(coordinates: Tensor) -> Tensor:
    """Coordinates as they are, refused if they are no finite (atoms, 3)."""
    if coordinates.ndim != 2 or coordinates.shape[1] != 3 or not len(coordinates):
        raise NetworkModelError(
            f"coordinates have shape {tuple(coordinates.shape)}; it must be (atoms, 3) with at least one atom"
        )
    if not coordinates.isfinite().all():
        atom = int((~coordinates.isfinite()).any(dim=1).nonzero()[0])
        raise NetworkModelError(
            f"coordinates of atom {atom} are {coordinates[atom].tolist()}; all must be finite: repair the "
            "structure or leave the atom out"
        )
    return coordinates


def require_positive(**parameters: float) -> None:
    """Refuse a parameter that is not greater than 0, by its name."""
    for name, value in parameters.items():
        if not value > 0:
            raise NetworkModelError(f"{name} is {value}; it must be positive")


def _require_motion(name: str, norm: Float[Tensor, ""]) -> None:
    if not norm > 0:
        raise NetworkModelError(f"{name} has norm {norm.item()}; at least one atom must move")


def _require_available(n_modes: int, n_atoms: int) -> None:
    available = 3 * n_atoms - RIGID_BODY_MODES
    if not 1 <= n_modes <= available:
        raise NetworkModelError(
            f"n_modes is {n_modes}; {n_atoms} pseudo-atoms have {available} internal modes: choose from 1 to "
            f"{available}"
        )


def not_rigid(n_zero: int, n_atoms: int, cutoff: float, cause: str) -> NetworkModelError:
    """The error that says why a network has not six zero modes, and what to do."""
    if n_zero < RIGID_BODY_MODES:
        return NetworkModelError(
            f"{n_atoms} pseudo-atoms have {n_zero} zero modes instead of {RIGID_BODY_MODES}: give at least "
            "three atoms that are not on a line"
        )
    reason = f"{cause}: leave it out, or" if cause else "it is disconnected or under-constrained:"
    return NetworkModelError(
        f"the network has {n_zero} zero modes at a cutoff of {cutoff} Å, a rigid one has {RIGID_BODY_MODES}: "
        f"{reason} choose a larger cutoff"
    )
