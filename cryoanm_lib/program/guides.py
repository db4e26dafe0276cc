"""What networks make of an image: the distributions that a guide draws its latents from."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoanm_lib.imaging.latents import pose_to_rotation
from cryoanm_lib.imaging.unknowns import Unknowns
from cryoanm_lib.program.encoders import HIDDEN, Representation, SharedEncoder, small_head
from cryoanm_lib.program.gaussian_chain import Gaussian, GaussianChain
from cryoanm_lib.program.prior import Prior

#: Logits and vectors of the components of the pose's mixture.
Components = tuple[Float[Tensor, "images components"], Float[Tensor, "images components dim"]]

#: Returns the distribution of a latent by its name, given the values of those drawn before it.
Others = Callable[[str, Mapping[str, Tensor]], Gaussian]

#: Returns mean and Cholesky factor of the others, side by side, at a pose: what the model says of them.
Computed = Callable[
    [Float[Tensor, "*batch dim"]],
    tuple[Float[Tensor, "*batch total"], Float[Tensor, "*batch total total"]],
]


class Seen:
    """The features of `Family.see`, and what each network says of them, which is asked once."""

    def __init__(self, features: Tensor) -> None:
        self.features = features
        self._said: dict[nn.Module, Any] = {}

    def read_by(self, network: nn.Module) -> Any:
        """What a network makes of the features: numbers, or logits and vectors."""
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

    def see(self, images: Float[Tensor, "images size size"], told: Float[Tensor, "images told"]) -> Tensor:
        """What the networks see of images, and what they are told of the noise."""
        ...

    def pose(self, seen: Seen) -> Components:
        """Logits and vectors of the components of the pose's mixture."""
        ...

    def others(self, seen: Seen, pose: Float[Tensor, "*batch dim"], computed: Computed) -> Others:
        """The distributions of the other latents, where the pose is what it is."""
        ...

    def networks_of(self, latents: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the networks that learn when these latents do."""
        ...


class SeparateNetworks(nn.Module):
    """The paper's family: a network for each latent, and given the pose all are independent normals.

    Parameters
    ----------
    representation : Rings or Pixels
        How the networks see the image.
    prior : Prior
        Where the normals start, and their units.
    unknowns : Unknowns
        What is inferred.
    components : int
        Projected normals in the pose's mixture.
    upright : bool
        Let the networks of what is of the molecule see the image turned back by the pose.
    """

    def __init__(
        self,
        representation: Representation,
        prior: Prior,
        unknowns: Unknowns,
        components: int,
        upright: bool,
    ) -> None:
        super().__init__()
        self.representation, self.prior, self.upright = representation, prior, upright
        self.size, self.learned, self.n_modes = representation.size, unknowns.names, unknowns.n_modes
        self.latents = {latent.name: latent for latent in unknowns.latents}
        self.encoders = nn.ModuleDict(
            {
                name: representation.pose_encoder(components)
                if name == "pose"
                else representation.encoder(2 * latent.width_for(self.n_modes))
                for name, latent in self.latents.items()
            }
        )

    def see(self, images: Float[Tensor, "images size size"], told: Float[Tensor, "images told"]) -> Tensor:
        """The representation of the images; the noise plays no part."""
        return self.representation(images)

    def pose(self, seen: Seen) -> Components:
        """Logits and vectors of the components of the pose's mixture."""
        return seen.read_by(self.encoders["pose"])

    def others(self, seen: Seen, pose: Float[Tensor, "*batch dim"], computed: Computed) -> Others:
        """Independent normals, which start as the prior."""
        others = [latent for name, latent in self.latents.items() if name != "pose"]
        turning = self.upright and any(latent.frame == "molecule" for latent in others)
        # A pose in space, which can only be given, is more than a turn of the image.
        turning &= self.prior.pose == "plane"
        turned = Seen(self.representation.turn_back(seen.features, pose.detach())) if turning else seen

        def normal(name: str, drawn: Mapping[str, Tensor]) -> Gaussian:
            latent = self.latents[name]
            view = turned if latent.frame == "molecule" else seen
            middle, log_scale = view.read_by(self.encoders[name]).chunk(2, dim=-1)
            mean, scale = self.prior.moments(name, self.n_modes, middle)
            mean, scale = (latent.unrows(rows) for rows in (mean + scale * middle, scale * log_scale.exp()))
            return dist.Normal(mean, scale).to_event(len(latent.shape))

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
    prior, unknowns, components
        As of `SeparateNetworks`.
    others : str
        One of the three ways.
    """

    def __init__(
        self,
        encoder: SharedEncoder,
        prior: Prior,
        unknowns: Unknowns,
        components: int,
        others: Literal["independent", "learned", "computed"] = "computed",
    ) -> None:
        super().__init__()
        self.prior, self.n_modes, self.components = prior, unknowns.n_modes, components
        self.size, self.way = encoder.size, others
        # The pose alone, where the others are computed.
        self.learned = tuple(name for name in unknowns.names if name == "pose" or others != "computed")
        shapes = {latent.name: latent.shape_for(self.n_modes) for latent in unknowns.latents}
        self.shapes = {name: shape for name, shape in shapes.items() if name != "pose"}
        self.total = sum(math.prod(shape) for shape in self.shapes.values())
        self.encoders = nn.ModuleDict({"image": encoder})
        if "pose" in shapes:
            self.encoders["pose"] = small_head(HIDDEN, components * (1 + math.prod(shapes["pose"])))
        if self.shapes and others != "computed":
            n_spreads = self.total**2 if others == "learned" else self.total
            self.encoders["others"] = nn.Sequential(
                nn.Linear(HIDDEN + 9 * (others == "learned"), HIDDEN),
                nn.ReLU(inplace=True),
                small_head(HIDDEN, self.total + n_spreads),
            )

    def see(
        self, images: Float[Tensor, "images size size"], told: Float[Tensor, "images told"]
    ) -> Float[Tensor, "images features"]:
        """Features of the images."""
        return self.encoders["image"](images, told)

    def pose(self, seen: Seen) -> Components:
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
        mean, scale = self.prior.all_moments(tuple(self.shapes), self.n_modes, middle)
        return GaussianChain(mean + scale * middle, scale[:, None] * factor, self.shapes).conditional

    def networks_of(self, latents: tuple[str, ...]) -> tuple[str, ...]:
        """Heads of the latents, and what reads the image where the pose learns, or where there is none."""
        heads = ["pose"] if "pose" in latents else []
        heads += ["others"] if "others" in self.encoders and any(n in self.shapes for n in latents) else []
        reads = "pose" in latents or "pose" not in self.encoders
        return (*(["image"] if reads else []), *heads)
