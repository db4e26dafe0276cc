"""The latents of an image, and what is known of them before it is seen."""

from typing import Annotated, Literal

import pyro.distributions as dist
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from cryoanm_lib.errors import ConfigurationError
from cryoanm_lib.program.antipodal import AntipodalProjectedNormal
from cryoanm_lib.program.distributions import ProjectedNormal
from cryoanm_lib.settings import Finite, Positive, Section

#: The latents of an image, in the order in which the guide draws them.
LATENTS = ("pose", "shift", "amplitude", "defocus", "contrast")

#: Those of them that are vectors; the others are numbers.
VECTORS = ("pose", "shift", "amplitude")

#: Numbers in a pose: a unit vector in the plane, or a unit quaternion.
POSE_WIDTH = {"plane": 2, "space": 4}


class Prior(Section):
    """What is known before an image is seen."""

    pose: Literal["plane", "space"] = Field("plane", description="turned in plane, or in every way")
    pose_concentration: tuple[Finite, Finite] = Field(
        (0.0, 0.0), description="μ_s of a pose in the plane; (0, 0) is uniform, as in space"
    )
    shift_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="deviation of the shift along x and y, in pixels; 0 for none"
    )
    amplitude_scale: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        3.0, description="σ_α of each mode's amplitude, in Å over all atoms; one number, or one for each mode"
    )
    defocus_mean: Finite = Field(50.0, description="mean of z in natural units (px²); its value where given")
    defocus_scale: Positive = Field(3.0, description="deviation of z where it is inferred, same unit")
    # Up to a fifth: then a negative contrast is five deviations away.
    contrast_scale: Annotated[float, Field(ge=0, le=0.2)] = Field(
        0.0, description="deviation of the factor on the image from its mean 1; 0 for none"
    )

    @model_validator(mode="after")
    def _only_a_pose_in_the_plane_is_concentrated(self) -> "Prior":
        if self.pose == "space" and self.pose_concentration != (0.0, 0.0):
            raise ValueError(
                f"pose_concentration = {self.pose_concentration} is for a pose in the plane; one in space is "
                "uniform: leave it out"
            )
        return self

    @property
    def latents(self) -> tuple[str, ...]:
        """Latents that vary from image to image."""
        absent = {"shift": not self.shift_scale, "contrast": not self.contrast_scale}
        return tuple(name for name in LATENTS if not absent.get(name, False))

    def distribution(self, name: str, n_modes: int, like: Float[Tensor, "..."]) -> dist.Distribution:
        """The prior of one latent.

        Parameters
        ----------
        name : str
            One of `latents`.
        n_modes : int
            Modes that the amplitude is for.
        like : Tensor
            Has the dtype and device of the answer.
        """
        if name == "pose":
            if self.pose == "space":
                return AntipodalProjectedNormal(like.new_zeros(4))
            return ProjectedNormal(like.new_tensor(self.pose_concentration))
        mean, scale = self.moments(name, n_modes, like)
        if self.shape(name, n_modes):
            return dist.Normal(mean, scale).to_event(1)
        return dist.Normal(mean[0], scale[0])

    def moments(
        self, name: str, n_modes: int, like: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "width"], Float[Tensor, "width"]]:
        """Mean and deviation of every number of a latent that is not the pose."""
        mean, scale = {
            "shift": ((0.0,) * 2, (self.shift_scale,) * 2),
            "amplitude": ((0.0,) * n_modes, self.amplitude_scales(n_modes)),
            "defocus": ((self.defocus_mean,), (self.defocus_scale,)),
            "contrast": ((1.0,), (self.contrast_scale,)),
        }[name]
        return like.new_tensor(mean), like.new_tensor(scale)

    def means(self, count: int, n_modes: int, like: Float[Tensor, "..."]) -> dict[str, Float[Tensor, "..."]]:
        """The molecule at rest: the mean of every latent but the pose, for a number of images."""
        found = {}
        for name in self.latents:
            if name != "pose":
                mean = self.moments(name, n_modes, like)[0].expand(count, -1)
                found[name] = mean if self.shape(name, n_modes) else mean[:, 0]
        return found

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

    def shape(self, name: str, n_modes: int) -> tuple[int, ...]:
        """Shape of one latent of an image."""
        vectors = {"pose": (POSE_WIDTH[self.pose],), "shift": (2,), "amplitude": (n_modes,)}
        return vectors.get(name, ())


#: The paper's.
PAPER_PRIOR = Prior()
