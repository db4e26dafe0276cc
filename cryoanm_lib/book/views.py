"""What a view can tell: the limit of each mode by viewing direction, and the pose it is mistaken for."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoanm_lib.checks.residuals import pose_distance
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import AMPLITUDE
from cryoanm_lib.inference.fisher import fisher_information
from cryoanm_lib.inference.peak_finding import PeakFinder, Starts
from cryoanm_lib.inference.so3_search import SO3Search
from cryoanm_lib.numerics.rotation import rotation_from_quaternion, rotvec_between
from cryoanm_lib.particles.particles import Simulated
from cryoanm_lib.program.program import Model

#: A rival is at least this many degrees from the truth.
RIVAL_DEGREES = 40.0

# Half-turns within this many degrees of 180, about axes within the same angle of the view or of the detector.
_NEARLY = 30.0

#: The kinds of rivals, by the turn from the truth that they are.
KINDS = {
    "half-turn": "turned by half a turn about the view",
    "from behind": "seen from behind: a half-turn about an axis in the image",
    "other": "any other turn",
}


def directions(count: int) -> Float[Tensor, "count 3"]:
    """Unit vectors spread evenly over the sphere on a Fibonacci spiral.

    Examples
    --------
    >>> directions(100).mean(0).abs().max() < 0.02
    tensor(True)
    """
    number = torch.arange(count, dtype=torch.float64) + 0.5
    height, turn = 1 - 2 * number / count, math.pi * (1 + math.sqrt(5)) * number
    radius = (1 - height.square()).sqrt()
    return torch.stack([radius * turn.cos(), radius * turn.sin(), height], dim=-1)


def pose_along(direction: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4"]:
    """The shortest rotation that takes a direction of the molecule to z, from where it is seen."""
    x, y, z = direction.unbind(-1)
    # Half-way between q and the identity lies (1 + cos, axis sin); from below any axis does.
    quaternion = torch.stack([1 + z, y, -x, torch.zeros_like(z)], dim=-1)
    below = torch.zeros_like(quaternion)
    below[..., 1] = 1.0
    quaternion = torch.where((z < -1 + 1e-9)[..., None], below, quaternion)
    return torch.nn.functional.normalize(quaternion, dim=-1)


def seen_along(pose: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3"]:
    """The direction of the molecule from which a pose is seen: what its rotation takes to z."""
    return rotation_from_quaternion(pose)[..., 2, :]


@torch.no_grad()
def amplitude_limits(
    model: Model, seen_from: Float[Tensor, "views 3"], resolution: int
) -> Float[Tensor, "views modes"]:
    """Deviation of each amplitude under the exact posterior, in Å over all atoms, by viewing direction.

    It is (F⁻¹)^½ with everything that the model infers unknown, a pose in space and the amplitudes among it,
    for the molecule at rest. Directions of the molecule point at the viewer.
    """
    columns = model.unknowns.of(lambda latent: latent == AMPLITUDE)
    parts = []
    for some in seen_from.split(256):
        images = at_rest(model, some, resolution)
        fisher = fisher_information(model, images, images.truth, resolution)
        parts.append(torch.linalg.inv(fisher).diagonal(dim1=1, dim2=2)[:, columns].sqrt())
    return torch.cat(parts)


def at_rest(model: Model, seen_from: Float[Tensor, "views 3"], resolution: int) -> Simulated:
    """Noise-free images of the molecule at rest in the middle of the box, seen from some directions."""
    like, n_modes = model.forward_model.reference, model.forward_model.n_modes
    latents = {"pose": pose_along(seen_from).to(like)} | model.prior.means(len(seen_from), n_modes, like)
    given = {name: latents[name] for name in model.given}
    return Simulated(model.forward_model.coefficients(latents, resolution), given, model.noise, latents)


def in_plane_share(
    forward: ForwardModel, seen_from: Float[Tensor, "views 3"]
) -> Float[Tensor, "views modes"]:
    """Share of each mode's squared motion that is across the view; the rest is along it, and invisible."""
    along = torch.einsum("vc,mac->vma", seen_from.to(forward.modes), forward.modes)
    return 1 - along.square().sum(-1)


@dataclass(frozen=True, eq=False)
class Rivals:
    """The most probable pose far from the true one, for noise-free images from several directions.

    Attributes
    ----------
    seen_from : Float[Tensor, "views 3"]
        Where each image is seen from.
    turn : Float[Tensor, "views 3"]
        Rotation vector from the true pose to the rival, along the axes of the detector.
    loss : Float[Tensor, "views"]
        Nats by which the rival's log-posterior is below that of the truth.
    """

    seen_from: Float[Tensor, "views 3"]
    turn: Float[Tensor, "views 3"]
    loss: Float[Tensor, "views"]

    @property
    def kinds(self) -> dict[str, Bool[Tensor, "views"]]:
        """Which rivals are of which of `KINDS`."""
        angle = torch.rad2deg(self.turn.norm(dim=-1))
        tilt = torch.rad2deg((self.turn[:, 2].abs() / self.turn.norm(dim=-1)).clamp(max=1.0).acos())
        half = angle > 180 - _NEARLY
        found = {"half-turn": half & (tilt < _NEARLY), "from behind": half & (tilt > 90 - _NEARLY)}
        return found | {"other": ~(found["half-turn"] | found["from behind"])}


@torch.no_grad()
def find_rivals(model: Model, seen_from: Float[Tensor, "views 3"], resolution: int) -> Rivals:
    """Climb from the best template that is far from the truth, everything unknown, at one resolution.

    Model and directions as of `amplitude_limits`; the resolution is that of the templates too.
    """
    images, unknowns = at_rest(model, seen_from, resolution), model.unknowns
    search = SO3Search(model, resolution=resolution)
    true = images.truth["pose"].double()
    starts = []
    for some in torch.arange(len(images)).split(32):
        score, shift, _ = search.scores(images[some])
        near = pose_distance(search.poses, true[some][:, None]) < math.radians(RIVAL_DEGREES)
        best = score.masked_fill(near, -math.inf).argmax(1)
        rows = torch.arange(len(some))
        point = {name: images.truth[name][some].double() for name in unknowns.names}
        point |= {"pose": search.poses[best], "shift": search.shifts[shift[rows, best].long()].double()}
        starts.append(unknowns.points(point))
    begun = torch.cat(starts)
    finder, each = PeakFinder(model, images, resolution), torch.arange(len(images))
    truth = unknowns.points(images.truth).double()
    found = finder.find(Starts(each, begun))
    poses = [unknowns.values(points)["pose"] for points in (found.points, begun)]
    # One that climbs back to the truth is no peak of its own: it counts where it began.
    stays = pose_distance(poses[0], true) > math.radians(RIVAL_DEGREES)
    height = torch.where(stays, found.log_joint, finder.height(Starts(each, begun)))
    rival = torch.where(stays[:, None], *poses)
    return Rivals(seen_from, rotvec_between(true, rival), finder.height(Starts(each, truth)) - height)


def globe(rows: int) -> tuple[Float[Tensor, "columns"], Float[Tensor, "rows"], Float[Tensor, "cells 3"]]:
    """Longitudes and latitudes of a grid over the sphere in radians, and the directions of its cells.

    Examples
    --------
    >>> longitude, latitude, cells = globe(3)
    >>> len(longitude), len(latitude), cells.shape
    (6, 3, torch.Size([18, 3]))
    """
    latitude = ((torch.arange(rows, dtype=torch.float64) + 0.5) / rows - 0.5) * math.pi
    longitude = ((torch.arange(2 * rows, dtype=torch.float64) + 0.5) / rows - 1) * math.pi
    up, round_ = torch.meshgrid(latitude, longitude, indexing="ij")
    cells = torch.stack([up.cos() * round_.cos(), up.cos() * round_.sin(), up.sin()], dim=-1)
    return longitude, latitude, cells.flatten(0, 1)
