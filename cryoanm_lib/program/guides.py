"""What networks make of an image: the distributions that a guide draws its latents from."""

import math
from collections.abc import Callable, Mapping
from typing import Literal, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoanm_lib.particles.particles import pose_to_rotation
from cryoanm_lib.program.encoders import HIDDEN, Representation, SharedEncoder, small_head
from cryoanm_lib.program.gaussian_chain import GaussianChain
from cryoanm_lib.program.prior import POSE_WIDTH, Prior

#: Returns the distribution of a latent by its name, given the values of those drawn before it.
Others = Callable[[str, Mapping[str, Tensor]], dist.Distribution]

#: Returns mean and Cholesky factor of the others, side by side, at a pose: what the model says of them.
Computed = Callable[
    [Float[Tensor, "*batch dim"]],
    tuple[Float[Tensor, "*batch total"], Float[Tensor, "*batch total total"]],
]


class Seen:
    """A batch of images as the networks see it, and what each of them says of it, which is asked once.

    Parameters
    ----------
    features : Tensor
        Of `Family.see`.
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features
        self._said: dict[nn.Module, Tensor | tuple[Tensor, ...]] = {}

    def read_by(self, network: nn.Module) -> Tensor | tuple[Tensor, ...]:
        """What a network makes of the features."""
        if network not in self._said:
            self._said[network] = network(self.features)
        return self._said[network]


@runtime_checkable
class Family(Protocol):
    """A family of distributions q(latents | image), and the networks that choose among them."""

    #: Pixels along an edge of the images that are looked at.
    size: int
    #: The networks, by the latent that each is for, or by what it does for several.
    encoders: nn.ModuleDict
    #: Latents whose distributions networks choose.
    learned: tuple[str, ...]

    def see(self, images: Float[Tensor, "images size size"], noise: Float[Tensor, "images"]) -> Tensor:
        """What the networks see of images, and of σ_n."""

    def pose(
        self, seen: Seen
    ) -> tuple[Float[Tensor, "images components"], Float[Tensor, "images components dim"]]:
        """Logits and vectors of the components of the pose's mixture."""

    def others(self, seen: Seen, pose: Float[Tensor, "*batch dim"], computed: Computed) -> Others:
        """The distributions of the other latents, where the pose is what it is."""

    def networks_of(self, latents: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the networks that learn when these latents do."""


class SeparateNetworks(nn.Module):
    """The paper's family: a network for each latent, and given the pose all are independent normals.

    Parameters
    ----------
    representation : Rings or Pixels
        How the networks see the image.
    prior : Prior
        Where the normals start, and their units.
    n_modes : int
        Modes.
    inferred : tuple of str
        Latents, in order.
    components : int
        Projected normals in the pose's mixture.
    upright : bool
        Let the networks of all but the shift see the image turned back by the pose.
    """

    def __init__(
        self,
        representation: Representation,
        prior: Prior,
        n_modes: int,
        inferred: tuple[str, ...],
        components: int,
        upright: bool,
    ) -> None:
        super().__init__()
        self.representation, self.prior, self.n_modes, self.upright = representation, prior, n_modes, upright
        self.size, self.inferred, self.learned = representation.size, inferred, inferred
        self.encoders = nn.ModuleDict(
            {
                name: representation.pose_encoder(components)
                if name == "pose"
                else representation.encoder(2 * math.prod(prior.shape(name, n_modes)))
                for name in inferred
            }
        )

    def see(self, images: Float[Tensor, "images size size"], noise: Float[Tensor, "images"]) -> Tensor:
        """The representation of the images; the noise plays no part."""
        return self.representation(images)

    def pose(
        self, seen: Seen
    ) -> tuple[Float[Tensor, "images components"], Float[Tensor, "images components 2"]]:
        """Logits and vectors of the components of the pose's mixture."""
        return seen.read_by(self.encoders["pose"])

    def others(self, seen: Seen, pose: Float[Tensor, "*batch dim"], computed: Computed) -> Others:
        """Independent normals, which start as the prior."""
        turning = self.upright and any(name not in ("pose", "shift") for name in self.inferred)
        # A pose in space, which can only be given, is more than a turn of the image.
        turning &= self.prior.pose == "plane"
        # Bend and focus are easier to see once the image is upright.
        turned = Seen(self.representation.turn_back(seen.features, pose.detach())) if turning else seen

        def normal(name: str, drawn: Mapping[str, Tensor]) -> dist.Distribution:
            looked_at = seen if name == "shift" else turned
            middle, log_scale = looked_at.read_by(self.encoders[name]).chunk(2, dim=-1)
            mean, scale = self.prior.moments(name, self.n_modes, middle)
            loc, deviation = mean + scale * middle, scale * log_scale.exp()
            if self.prior.shape(name, self.n_modes):
                return dist.Normal(loc, deviation).to_event(1)
            return dist.Normal(loc[..., 0], deviation[..., 0])

        return normal

    def networks_of(self, latents: tuple[str, ...]) -> tuple[str, ...]:
        """A network has the name of its latent."""
        return latents


class SharedNetwork(nn.Module):
    """One network reads the image for all latents; those beside the pose follow from it in one of three ways.

    "independent": the mean field, normals that know nothing of the pose. "learned": one Gaussian, whose mean
    and full covariance a network draws from the image and the pose. "computed": the Gaussian that the model
    itself gives at that pose, see `linearised_posterior`; then only the pose is learned.

    Parameters
    ----------
    encoder : SharedEncoder
        Turns an image into features.
    prior : Prior
        Where learned Gaussians start, and their units.
    n_modes : int
        Modes.
    inferred : tuple of str
        Latents, in order.
    components : int
        Projected normals in the pose's mixture.
    others : str
        One of the three ways.
    """

    def __init__(
        self,
        encoder: SharedEncoder,
        prior: Prior,
        n_modes: int,
        inferred: tuple[str, ...],
        components: int,
        others: Literal["independent", "learned", "computed"] = "computed",
    ) -> None:
        super().__init__()
        self.prior, self.n_modes, self.components = prior, n_modes, components
        self.size, self.way, self.inferred = encoder.size, others, inferred
        self.shapes = {name: prior.shape(name, n_modes) for name in inferred if name != "pose"}
        self.total = sum(math.prod(shape) for shape in self.shapes.values())
        self.encoders = nn.ModuleDict({"image": encoder})
        if "pose" in inferred:
            self.encoders["pose"] = small_head(HIDDEN, components * (1 + POSE_WIDTH[prior.pose]))
        if self.shapes and others != "computed":
            n_spreads = self.total**2 if others == "learned" else self.total
            self.encoders["others"] = nn.Sequential(
                nn.Linear(HIDDEN + 9 * (others == "learned"), HIDDEN),
                nn.ReLU(inplace=True),
                small_head(HIDDEN, self.total + n_spreads),
            )

    @property
    def learned(self) -> tuple[str, ...]:
        """The pose alone, where the others are computed."""
        return tuple(n for n in self.inferred if n == "pose" or self.way != "computed")

    def see(
        self, images: Float[Tensor, "images size size"], noise: Float[Tensor, "images"]
    ) -> Float[Tensor, "images features"]:
        """Features of the images."""
        return self.encoders["image"](images, noise)

    def pose(
        self, seen: Seen
    ) -> tuple[Float[Tensor, "images components"], Float[Tensor, "images components dim"]]:
        """Logits and vectors of the components of the pose's mixture."""
        outputs = seen.read_by(self.encoders["pose"]).unflatten(-1, (self.components, -1))
        return outputs[..., 0], outputs[..., 1:]

    def others(self, seen: Seen, pose: Float[Tensor, "*batch dim"], computed: Computed) -> Others:
        """The conditionals of one Gaussian; what is learned starts as the prior."""
        if self.way == "computed":
            return GaussianChain(*computed(pose), self.shapes).conditional
        if self.way == "learned":
            turn = pose_to_rotation(pose).flatten(-2)
            seen = Seen(torch.cat([seen.features.expand(*turn.shape[:-1], -1), turn], dim=-1))
        middle, spread = seen.read_by(self.encoders["others"]).tensor_split([self.total], dim=-1)
        if self.way == "learned":
            square = spread.unflatten(-1, (self.total, self.total))
            factor = square.tril(-1) + torch.diag_embed(square.diagonal(dim1=-2, dim2=-1).exp())
        else:
            factor = torch.diag_embed(spread.exp())
        moments = [self.prior.moments(name, self.n_modes, middle) for name in self.shapes]
        mean, scale = (torch.cat(parts) for parts in zip(*moments, strict=True))
        return GaussianChain(mean + scale * middle, scale[:, None] * factor, self.shapes).conditional

    def networks_of(self, latents: tuple[str, ...]) -> tuple[str, ...]:
        """Heads of the latents, and what reads the image where the pose learns, or where there is none."""
        heads = ["pose"] if "pose" in latents else []
        heads += ["others"] if "others" in self.encoders and any(n in self.shapes for n in latents) else []
        reads = "pose" in latents or "pose" not in self.encoders
        return (*(["image"] if reads else []), *heads)
