"""Likelihoods over the latents of an image, and what one along the circle of poses offers to a climber.

A profile is a log-likelihood on a uniform grid of poses that goes once round the circle. Its depth is the
distance in nats from its median, where most poses are, to its maximum.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoanm_lib.errors import ForwardModelError
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import POSE
from cryoanm_lib.imaging.likelihood import log_likelihood
from cryoanm_lib.imaging.unknowns import Unknowns
from cryoanm_lib.numerics.fourier import crop_coefficients
from cryoanm_lib.particles.particles import Particles, Simulated

#: A second peak closer than this to the half-turn counts as the pseudo-symmetric one; closer to the maximum
#: than this it is a shoulder of the maximum.
NEIGHBOURHOOD_DEGREES = 30.0


def landscape(
    forward: ForwardModel,
    image: Particles,
    at: Mapping[str, float],
    along: Mapping[str, Float[Tensor, "points"]],
    resolution: int,
) -> Float[Tensor, "rows columns"]:
    """Log-likelihood of one image over a grid of any two numbers of its latents.

    Parameters
    ----------
    forward : ForwardModel
        The model that predicts; the pose is one in the plane.
    image : Particles
        One image, at `resolution` or higher.
    at : mapping of str to float
        The numbers that stay, e.g. ``{"amplitude": 1.5, "defocus": 50.0}``; one named in neither place is at
        rest, one named in both varies. Names are those of latents, the pose in radians; of several numbers
        "shift_x" and "shift_y", "amplitude" (first mode), "amplitude_2" …
    along : mapping of str to Float[Tensor, "points"]
        The two that vary and their values; the first runs along the rows.
    resolution : int
        K.

    Raises
    ------
    ForwardModelError
        If a name is unknown, or `along` does not name two.
    """
    unknowns = Unknowns(forward.latents, forward.n_modes)
    rest = _column_names(unknowns)
    unknown = [name for name in (*at, *along) if name not in rest]
    if unknown or len(along) != 2:
        raise ForwardModelError(
            f"a landscape varies two latents of {list(rest)}; got along = {list(along)}, at = {list(at)}"
        )
    grid = torch.meshgrid(*along.values(), indexing="ij")
    varied = dict(zip(along, grid, strict=True))
    fixed = {name: torch.full_like(grid[0], at.get(name, value)) for name, value in rest.items()}
    points = torch.stack([varied.get(name, fixed[name]) for name in rest], dim=-1)
    observed, rows = crop_coefficients(image.coefficients[0], resolution), []
    for row in points:  # one at a time: a fine grid of images would not fit into memory
        predicted = forward.coefficients(unknowns.values(row), resolution)
        rows.append(log_likelihood(observed, predicted, image.noise, resolution))
    return torch.stack(rows)


def _column_names(unknowns: Unknowns) -> dict[str, float]:
    """A name for each number of a point, and its value at rest."""
    found = {}
    for latent in unknowns.latents:
        count = unknowns.columns.count(latent.name)
        ends = ["", *(f"_{number}" for number in range(2, count + 1))]
        if latent.shape == (2,) and count == 2:
            ends = ["_x", "_y"]
        found |= {f"{latent.name}{end}": latent.rest for end in ends}
    return found


def pose_profiles(
    forward: ForwardModel, images: Simulated, offsets: Float[Tensor, "poses"], resolution: int
) -> Float[Tensor, "images poses"]:
    """Log-likelihood of each image at its true latents, but turned in the plane by each offset in radians.

    The images are kept at `resolution` or higher, and have poses in the plane.
    """
    rows, circle = [], POSE.manifold
    for number, observed in enumerate(crop_coefficients(images.coefficients, resolution)):
        at = {
            name: value[number].expand(len(offsets), *value[number].shape)
            for name, value in images.truth.items()
        }
        at["pose"] = circle.value(circle.moved(circle.point(at["pose"]), offsets[:, None]))
        predicted = forward.coefficients(at, resolution)
        rows.append(log_likelihood(observed, predicted, images.noise[number : number + 1], resolution))
    return torch.stack(rows)


def relative_height(profile: Float[Tensor, "*batch poses"]) -> Float[Tensor, "*batch poses"]:
    """Height above the median as a share of the depth: 0 at the median, 1 at the maximum.

    Examples
    --------
    >>> relative_height(torch.tensor([-9.0, -8.0, 0.0, -4.0, -8.0])).tolist()
    [-0.125, 0.0, 1.0, 0.5, 0.0]
    """
    median = profile.median(dim=-1, keepdim=True).values
    return (profile - median) / (profile.amax(dim=-1, keepdim=True) - median)


def is_local_maximum(profile: Float[Tensor, "*batch poses"]) -> Bool[Tensor, "*batch poses"]:
    """Mark every pose that is more likely than both of its neighbours on the circle.

    Examples
    --------
    >>> is_local_maximum(torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0])).nonzero().flatten().tolist()
    [0, 2]
    """
    return (profile > profile.roll(1, -1)) & (profile >= profile.roll(-1, -1))


def half_width(profile: Float[Tensor, "*batch poses"]) -> Float[Tensor, "*batch"]:
    """Half of the peak's full width at half depth, in degrees.

    Examples
    --------
    >>> angles = torch.linspace(-math.pi, math.pi, 361)[:-1]
    >>> print(f"{half_width((1 - 3 * angles.abs()).clamp(min=0)):.0f}")
    10
    """
    n_poses = profile.shape[-1]
    peak = profile.argmax(dim=-1, keepdim=True)
    steps = torch.arange(n_poses, device=profile.device)
    height = relative_height(profile)
    ahead, behind = (height.gather(-1, (peak + way * steps) % n_poses) for way in (1, -1))
    return (_steps_to_half(ahead) + _steps_to_half(behind)) * 180.0 / n_poses


def _steps_to_half(height: Float[Tensor, "*batch poses"]) -> Float[Tensor, "*batch"]:
    """Steps from the start, where the height is 1, to where it falls through 1/2, between two grid points."""
    after = (height < 0.5).float().argmax(dim=-1, keepdim=True)
    low, high = height.gather(-1, after), height.gather(-1, (after - 1).clamp(min=0))
    return (after - (0.5 - low) / (high - low))[..., 0]


def basin_of_attraction(profile: Float[Tensor, "*batch poses"]) -> Float[Tensor, "*batch"]:
    """Share of all poses from which walking uphill, step by step, leads to the maximum.

    Examples
    --------
    >>> angles = torch.linspace(-math.pi, math.pi, 361)[:-1]
    >>> one_peak, two_peaks = angles.cos(), (2 * angles).cos() + 0.1 * angles.cos()
    >>> [f"{share:.2f}" for share in basin_of_attraction(torch.stack([one_peak, two_peaks]))]
    ['1.00', '0.51']
    """
    n_poses = profile.shape[-1]
    steps = torch.arange(n_poses, device=profile.device)
    neighbours = torch.stack([profile.roll(1, -1), profile, profile.roll(-1, -1)], dim=-1)
    uphill = (steps + neighbours.argmax(dim=-1) - 1) % n_poses
    # Following the pointer of a pointer doubles the length of the walk.
    for _ in range(math.ceil(math.log2(n_poses))):
        uphill = uphill.gather(-1, uphill)
    return (uphill == profile.argmax(dim=-1, keepdim=True)).float().mean(dim=-1)


def second_peak(
    profile: Float[Tensor, "*batch poses"],
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """The highest local maximum more than 30° from the maximum.

    Returns
    -------
    offset : Float[Tensor, "*batch"]
        Its angle from the maximum in degrees, in [-180, 180].
    gap : Float[Tensor, "*batch"]
        How many nats it is below the maximum, so that its odds are exp(-gap). Infinite, at an angle that is
        not a number, if there is no second peak.

    Examples
    --------
    >>> angles = torch.linspace(-math.pi, math.pi, 361)[:-1]
    >>> offset, gap = second_peak(5 * (2 * angles).cos() + angles.cos())
    >>> print(f"{offset:.0f} {gap:.1f}")
    -180 2.0
    """
    n_poses = profile.shape[-1]
    peak = profile.argmax(dim=-1, keepdim=True)
    steps = torch.arange(n_poses, device=profile.device)
    offset = (steps - peak + n_poses // 2) % n_poses - n_poses // 2
    degrees = offset * 360.0 / n_poses
    candidate = is_local_maximum(profile) & (degrees.abs() > NEIGHBOURHOOD_DEGREES)
    height, index = profile.where(candidate, -math.inf).max(dim=-1)
    angle = degrees.gather(-1, index[..., None])[..., 0]
    return angle.where(height > -math.inf, math.nan), profile.amax(dim=-1) - height


def far_half_mass(profile: Float[Tensor, "*batch poses"]) -> Float[Tensor, "*batch"]:
    """Posterior probability, under a uniform prior, of the half circle that faces away from the maximum.

    Examples
    --------
    >>> angles = torch.linspace(-math.pi, math.pi, 361)[:-1]
    >>> masses = far_half_mass(torch.stack([20 * angles.cos(), 20 * (2 * angles).cos()]))
    >>> [f"{mass:.2f}" for mass in masses]
    ['0.00', '0.50']
    """
    n_poses = profile.shape[-1]
    steps = torch.arange(n_poses, device=profile.device)
    away = (steps - profile.argmax(dim=-1, keepdim=True)) % n_poses
    far = (away > n_poses / 4) & (away < 3 * n_poses / 4)
    return (profile.softmax(dim=-1) * far).sum(dim=-1)


def blurred(profile: Float[Tensor, "*batch poses"], spread: float) -> Float[Tensor, "*batch poses"]:
    """The profile as a guide of a given width sees it: its expectation under a pose spread about each pose.

    The spread is a von Mises density exp(κ cos θ), κ = 1/s², nearly a normal of deviation s, in degrees here.

    Examples
    --------
    >>> angles = torch.linspace(-math.pi, math.pi, 361)[:-1]
    >>> print(f"{blurred(angles.cos(), 30.0).max():.2f}")
    0.85
    """
    n_poses = profile.shape[-1]
    angles = torch.arange(n_poses, device=profile.device, dtype=profile.dtype) * (2 * math.pi / n_poses)
    kernel = ((angles.cos() - 1) / math.radians(spread) ** 2).exp()
    transfer = torch.fft.rfft(kernel / kernel.sum())
    return torch.fft.irfft(torch.fft.rfft(profile) * transfer, n=n_poses)


def peak_correlation(log_density: Float[Tensor, "rows columns"]) -> float:
    """Correlation of two latents under the Gaussian that fits the maximum of a landscape on a uniform grid.

    With f the second differences of the log-density there, ρ = f_ab / √(f_aa f_bb): 0 for an upright ellipse.

    Examples
    --------
    >>> a, b = torch.meshgrid(torch.linspace(-1, 1, 9), torch.linspace(-2, 2, 9), indexing="ij")
    >>> print(f"{peak_correlation(-(a**2 - a * b + b**2)):.2f}")
    0.50
    """
    n_rows, n_columns = log_density.shape
    row, column = divmod(int(log_density.argmax()), n_columns)
    # A maximum on the edge of the grid has no neighbours on one side: take those of the next point.
    row, column = min(max(row, 1), n_rows - 2), min(max(column, 1), n_columns - 2)
    f = log_density[row - 1 : row + 2, column - 1 : column + 2].double()
    along_rows = f[0, 1] - 2 * f[1, 1] + f[2, 1]
    along_columns = f[1, 0] - 2 * f[1, 1] + f[1, 2]
    mixed = (f[0, 0] + f[2, 2] - f[0, 2] - f[2, 0]) / 4
    return (mixed / (along_rows * along_columns).sqrt()).item()


def is_half_turn(degrees: Float[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
    """Whether an angle in degrees is within 30° of the half-turn.

    Examples
    --------
    >>> is_half_turn(torch.tensor([-170.0, 60.0, 200.0])).tolist()
    [True, False, True]
    """
    return (degrees.abs() - 180.0).abs() < NEIGHBOURHOOD_DEGREES
