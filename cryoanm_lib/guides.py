"""What networks make of an image: the distributions that a guide draws its latents from."""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from cryoanm_lib.chain import GaussianChain
from cryoanm_lib.encoders import HIDDEN, Representation, SharedEncoder, small_head
from cryoanm_lib.particles import pose_to_rotation
from cryoanm_lib.prior import POSE_WIDTH, Prior

#: Returns the distribution of a latent by its name, given the values of those drawn before it.
Others = Callable[[str, Mapping[str, Tensor]], TorchDistribution]


class Family(Protocol):
    """A family of distributions q(latents | image), and the networks that choose among them."""

    #: Pixels along an edge of the images that are looked at.
    size: int
    #: The networks, by the latent that each is for, or by what it does for several.
    encoders: nn.ModuleDict

    def see(self, images: Float[Tensor, "images size size"], noise: Float[Tensor, "images"]) -> Tensor:
        """What the networks see of images, and of σ_n."""

    def pose(
        self, seen: Tensor
    ) -> tuple[Float[Tensor, "images components"], Float[Tensor, "images components dim"]]:
        """Logits and vectors of the components of the pose's mixture."""

    def others(self, seen: Tensor, pose: Float[Tensor, "*batch dim"]) -> Others:
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
        self.size, self.inferred = representation.size, inferred
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
        self, seen: Tensor
    ) -> tuple[Float[Tensor, "images components"], Float[Tensor, "images components 2"]]:
        """Logits and vectors of the components of the pose's mixture."""
        return self.encoders["pose"](seen)

    def others(self, seen: Tensor, pose: Float[Tensor, "*batch 2"]) -> Others:
        """Independent normals, which start as the prior."""
        turning = self.upright and any(name not in ("pose", "shift") for name in self.inferred)
        # Bend and focus are easier to see once the image is upright.
        turned = self.representation.turn_back(seen, pose.detach()) if turning else seen

        def normal(name: str, drawn: Mapping[str, Tensor]) -> TorchDistribution:
            outputs = self.encoders[name](seen if name == "shift" else turned)
            middle, log_scale = outputs.chunk(2, dim=-1)
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
    """One network reads the image for all latents; the others are one Gaussian, given the pose.

    The Gaussian's mean and its full covariance depend on the image and on the pose that was drawn, so that
    nothing is independent of anything: what the pose leaves open, and what shift, amplitudes and defocus have
    in common.

    Parameters
    ----------
    encoder : SharedEncoder
        Turns an image into features.
    prior : Prior
        Where the Gaussian starts, and its units.
    n_modes : int
        Modes.
    inferred : tuple of str
        Latents, in order.
    components : int
        Projected normals in the pose's mixture.
    conditional : bool
        If not, the mean field: the Gaussian knows nothing of the pose and has no covariances.
    """

    def __init__(
        self,
        encoder: SharedEncoder,
        prior: Prior,
        n_modes: int,
        inferred: tuple[str, ...],
        components: int,
        conditional: bool = True,
    ) -> None:
        super().__init__()
        self.prior, self.n_modes, self.components = prior, n_modes, components
        self.size, self.conditional = encoder.size, conditional
        self.shapes = {name: prior.shape(name, n_modes) for name in inferred if name != "pose"}
        self.total = sum(math.prod(shape) for shape in self.shapes.values())
        self.encoders = nn.ModuleDict({"image": encoder})
        if "pose" in inferred:
            self.encoders["pose"] = small_head(HIDDEN, components * (1 + POSE_WIDTH[prior.pose]))
        if self.shapes:
            n_spreads = self.total**2 if conditional else self.total
            self.encoders["others"] = nn.Sequential(
                nn.Linear(HIDDEN + 9 * conditional, HIDDEN),
                nn.ReLU(inplace=True),
                small_head(HIDDEN, self.total + n_spreads),
            )

    def see(
        self, images: Float[Tensor, "images size size"], noise: Float[Tensor, "images"]
    ) -> Float[Tensor, "images features"]:
        """Features of the images."""
        return self.encoders["image"](images, noise)

    def pose(
        self, seen: Float[Tensor, "images features"]
    ) -> tuple[Float[Tensor, "images components"], Float[Tensor, "images components dim"]]:
        """Logits and vectors of the components of the pose's mixture."""
        outputs = self.encoders["pose"](seen).unflatten(-1, (self.components, -1))
        return outputs[..., 0], outputs[..., 1:]

    def others(self, seen: Float[Tensor, "images features"], pose: Float[Tensor, "*batch dim"]) -> Others:
        """The conditionals of one Gaussian, which starts as the prior."""
        if not self.shapes:
            return GaussianChain(seen, seen, {}).conditional
        if self.conditional:
            turn = pose_to_rotation(pose).flatten(-2)
            seen = torch.cat([seen.expand(*turn.shape[:-1], -1), turn], dim=-1)
        middle, spread = self.encoders["others"](seen).tensor_split([self.total], dim=-1)
        if self.conditional:
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
        heads += ["others"] if any(name in self.shapes for name in latents) else []
        reads = "pose" in latents or "pose" not in self.encoders
        return (*(["image"] if reads else []), *heads)
