"""What is known of the latents of an image before it is seen."""

import math
from typing import Annotated, Any, Literal

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pydantic import Field, PrivateAttr, model_validator
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from cryoanm_lib.errors import ConfigurationError
from cryoanm_lib.imaging.latents import LATENTS, POSES, Latent, Values
from cryoanm_lib.numerics.constants import constant
from cryoanm_lib.program.antipodal import AntipodalProjectedNormal
from cryoanm_lib.program.distributions import ProjectedNormal
from cryoanm_lib.settings import Finite, NotNegative, Positive, Section

#: Key of the pose that was estimated of each image before, among the values that are given.
GIVEN_POSE = "pose_about"


class Prior(Section):
    """Independent distributions of the latents.

    Another prior is a subclass: `distribution` says what is known of a latent, and `latents` which vary.
    Everything else follows from these two.
    """

    pose: Literal["plane", "space"] = Field("plane", description="turned in plane, or in every way")
    pose_concentration: tuple[Finite, Finite] = Field(
        (0.0, 0.0), description="μ_s of a pose in the plane; (0, 0) is uniform, as in space"
    )
    shift_scale: NotNegative = Field(
        0.0, description="deviation of the shift along x and y, in pixels; 0 for none"
    )
    amplitude_scale: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        3.0, description="σ_α of each mode's amplitude, in Å over all atoms; one number, or one for each mode"
    )
    defocus_mean: Finite = Field(50.0, description="mean of z in natural units (px²); its value where given")
    defocus_scale: Positive = Field(3.0, description="deviation of z where it is inferred, same unit")
    contrast_mean: Finite = Field(1.0, description="mean of the factor on the image; 0 admits either sign")
    contrast_scale: NotNegative = Field(0.0, description="deviation of that factor; 0 for none")

    @model_validator(mode="after")
    def _only_a_pose_in_the_plane_is_concentrated(self) -> "Prior":
        if self.pose == "space" and self.pose_concentration != (0.0, 0.0):
            raise ValueError(
                f"pose_concentration = {self.pose_concentration} is for a pose in the plane; one in space is "
                "uniform: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _only_a_contrast_that_varies_has_a_mean(self) -> "Prior":
        if self.contrast_mean != 1.0 and not self.contrast_scale:
            raise ValueError(
                f"contrast_mean = {self.contrast_mean} is for a contrast that varies: give contrast_scale too"
            )
        return self

    @property
    def latents(self) -> tuple[Latent, ...]:
        """Those that vary from image to image, in the order in which a guide draws them."""
        # No scale, or one of 0, says that there is no such latent; a pose there always is.
        known = LATENTS | {"pose": POSES[self.pose]}
        return tuple(
            one for name, one in known.items() if name == "pose" or getattr(self, f"{name}_scale", 0)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the latents that vary."""
        return tuple(latent.name for latent in self.latents)

    def latent(self, name: str) -> Latent:
        """The record of one that varies."""
        return next(latent for latent in self.latents if latent.name == name)

    def distribution(self, name: str, n_modes: int, like: Float[Tensor, "..."]) -> TorchDistributionMixin:
        """The prior of one of `latents`, for so many modes, in the dtype and on the device of `like`."""
        if name == "pose" and self.pose == "space":
            return AntipodalProjectedNormal(like.new_zeros(4))
        if name == "pose":
            return ProjectedNormal(constant(self.pose_concentration, like))
        mean, scale = {
            "shift": ((0.0,) * 2, (self.shift_scale,) * 2),
            "amplitude": ((0.0,) * n_modes, self.amplitude_scales(n_modes)),
            "defocus": (self.defocus_mean, self.defocus_scale),
            "contrast": (self.contrast_mean, self.contrast_scale),
        }[name]
        normal = dist.Normal(constant(mean, like), constant(scale, like))
        return normal.to_event(len(normal.batch_shape))

    def about(self, given: Values) -> "Prior":
        """The prior of images of which something is given; here it is that of all."""
        return self

    def moments(
        self, name: str, n_modes: int, like: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "width"], Float[Tensor, "width"]]:
        """Mean and deviation of every number of a latent that is not the pose."""
        own: Any = self.distribution(name, n_modes, like)
        own = getattr(own, "base_dist", own)
        width = self.latent(name).width_for(n_modes)
        return own.mean.expand(width), own.stddev.expand(width)

    def all_moments(
        self, names: tuple[str, ...], n_modes: int, like: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "total"], Float[Tensor, "total"]]:
        """The same of several latents, side by side."""
        moments = [self.moments(name, n_modes, like) for name in names]
        mean, scale = zip(*moments, strict=True)
        return torch.cat(mean), torch.cat(scale)

    def means(self, count: int, n_modes: int, like: Float[Tensor, "..."]) -> dict[str, Float[Tensor, "..."]]:
        """The molecule at rest: the mean of every latent but the pose, for a number of images."""
        return {
            latent.name: latent.unrows(self.moments(latent.name, n_modes, like)[0].expand(count, -1))
            for latent in self.latents
            if latent.name != "pose"
        }

    def slopes(
        self, latent: Latent, values: Values, n_modes: int
    ) -> tuple[Float[Tensor, "images columns"], Float[Tensor, "images columns"]]:
        """Gradient of a latent's log-density by steps, and minus its second derivatives, 0 where negative."""
        value = latent.rows(values[latent.name])
        own = self.distribution(latent.name, n_modes, value)
        own = getattr(own, "base_dist", own)
        if type(own) is dist.Normal:
            return (own.mean - value) / own.scale**2, (own.scale**-2).expand_as(value)
        if isinstance(own, AntipodalProjectedNormal):
            slope, bends = own.slopes(value)
            return slope, (-bends).clamp(min=0.0)
        point = latent.manifold.point(value)
        step = point.new_zeros(len(point), latent.manifold.n_columns(value.shape[-1]))
        concentration = getattr(own, "concentration", None)
        if concentration is not None and not concentration.any():  # uniform
            return step, step
        with torch.enable_grad():
            step = step.requires_grad_()
            there = latent.unrows(latent.manifold.value(latent.manifold.moved(point, step)))
            log_density = self.distribution(latent.name, n_modes, value).log_prob(there).sum()
            (slope,) = torch.autograd.grad(log_density, step, create_graph=True)
            each = [torch.autograd.grad(c.sum(), step, retain_graph=True)[0] for c in slope.unbind(1)]
        bends = torch.stack([bend[:, column] for column, bend in enumerate(each)], dim=1)
        return slope.detach(), (-bends).clamp(min=0.0)

    def amplitude_scales(self, n_modes: int) -> tuple[float, ...]:
        """σ_α of each mode.

        Raises
        ------
        ConfigurationError
            If they are given for another number of modes.
        """
        if not isinstance(self.amplitude_scale, tuple):
            return (self.amplitude_scale,) * n_modes
        if len(self.amplitude_scale) != n_modes:
            raise ConfigurationError(
                f"amplitude_scale = {self.amplitude_scale} is for {len(self.amplitude_scale)} modes, but the "
                f"model has {n_modes}: give as many, or one number for all"
            )
        return self.amplitude_scale


class OpticsPrior(Prior):
    """For images that were looked at before: how far each is from what is given of it.

    The microscope is `ContrastTransfer`, in physical units, with `given_ctf` of each image. Where there is a
    `pose_width`, and "pose_about" among what is given, the pose is the projected normal about that one.
    """

    defocus_mean: Finite = Field(0.0, description="mean of Δf in Å, on top of what is given")
    defocus_scale: Positive = Field(300.0, description="deviation of Δf in Å")
    astigmatism_scale: NotNegative = Field(0.0, description="deviation of a₁ and a₂ in Å; 0 for none")
    phase_shift_scale: NotNegative = Field(0.0, description="deviation of φ in radians; 0 for none")
    b_factor_scale: NotNegative = Field(0.0, description="deviation of B in Å²; 0 for none")
    pose_width: NotNegative = Field(
        0.0, description="deviation in degrees, about each axis, of a pose from that given; 0 for uniform"
    )
    _centre: Tensor | None = PrivateAttr(None)

    def about(self, given: Values) -> "OpticsPrior":
        """With poses about those given, if there is a width."""
        if not self.pose_width or GIVEN_POSE not in given:
            return self
        bound = self.model_copy()
        bound._centre = given[GIVEN_POSE]
        return bound

    def distribution(self, name: str, n_modes: int, like: Float[Tensor, "..."]) -> TorchDistributionMixin:
        """The prior of one of `latents`: normal about what is given."""
        if name == "pose" and self._centre is not None:
            return AntipodalProjectedNormal(2 / math.radians(self.pose_width) * self._centre.to(like))
        if name not in ("astigmatism", "phase_shift", "b_factor"):
            return super().distribution(name, n_modes, like)
        shape = LATENTS[name].shape_for(n_modes)
        scale = constant(getattr(self, f"{name}_scale"), like).expand(shape)
        return dist.Normal(torch.zeros_like(scale), scale).to_event(len(shape))


#: The paper's.
PAPER_PRIOR = Prior()  # pyright: ignore[reportCallIssue]  # sees no default where pydantic does
