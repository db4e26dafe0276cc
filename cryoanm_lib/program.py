"""The probabilistic program: the model p (Algorithm 1) and the guide q (Algorithm 2), side by side."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Complex, Float
from pydantic import Field
from pyro import poutine
from torch import Tensor, nn

from cryoanm_lib.distributions import ProjectedNormal, ProjectedNormalMixture, StratifiedMixture
from cryoanm_lib.encoders import Representation
from cryoanm_lib.errors import ConfigurationError, CryoANMError
from cryoanm_lib.forward import ForwardModel, Latents
from cryoanm_lib.fourier import coefficients_to_image, crop_coefficients, to_real
from cryoanm_lib.likelihood import cropped_noise, log_likelihood
from cryoanm_lib.rings import Rings
from cryoanm_lib.rotation import rotation_from_unit_vector
from cryoanm_lib.settings import Finite, Positive, Section

# Points at which images are predicted at a time: what they need should stay near the processor.
_CHUNK = 512

#: The latents of an image, in the order in which the guide draws them.
LATENTS = ("pose", "amplitude", "defocus")


class Prior(Section):
    """What is known before an image is seen."""

    amplitude_scale: Positive = Field(3.0, description="σ_α of each mode's amplitude, in Å over all atoms")
    pose_concentration: tuple[Finite, Finite] = Field((0.0, 0.0), description="μ_s; (0, 0) is uniform")
    defocus_mean: Finite = Field(50.0, description="mean of z in natural units (px²); its value where given")
    defocus_scale: Positive = Field(3.0, description="deviation of z where it is inferred, same unit")


#: The paper's.
PAPER_PRIOR = Prior()


@dataclass(frozen=True)
class Particles:
    """Images as Fourier coefficients at the highest resolution in use, with the latents that made them.

    Attributes
    ----------
    coefficients : Complex[Tensor, "images kept"]
        The half plane of each image.
    latents : mapping of str to Tensor
        "pose" (B, 2), a unit vector; "amplitude" (B, M); "defocus" (B,).
    """

    coefficients: Complex[Tensor, "images kept"]
    latents: Mapping[str, Float[Tensor, "images ..."]]

    def __len__(self) -> int:
        return len(self.coefficients)

    def __getitem__(self, index: Tensor | slice) -> "Particles":
        return Particles(self.coefficients[index], {name: v[index] for name, v in self.latents.items()})

    def to(self, device: torch.device | str) -> "Particles":
        """The same images on another device."""
        latents = {name: v.to(device) for name, v in self.latents.items()}
        return Particles(self.coefficients.to(device), latents)


class CryoProgram(nn.Module):
    """Model and guide of one experiment: which latents are inferred, and which are given, is an argument."""

    def __init__(
        self,
        forward_model: ForwardModel,
        prior: Prior = PAPER_PRIOR,
        noise: float = 0.1,
        inferred: tuple[str, ...] = LATENTS,
        components: int = 2,
        stratified: bool = True,
        upright: bool = True,
        representation: Representation | None = None,
    ) -> None:
        """Set up the program.

        Parameters
        ----------
        forward_model : ForwardModel
            Draws the image from its latents.
        prior : Prior
            Of every latent.
        noise : float
            σ_n of a pixel of the uncropped image.
        inferred : tuple of str
            Latents that the guide infers, of `LATENTS`; the others are given with each image.
        components : int
            Projected normals in the pose's mixture.
        stratified : bool
            Draw the pose once from every component, with a pathwise gradient, instead of once from the
            mixture, as in the paper, with a score-function gradient.
        upright : bool
            Let the networks of amplitude and defocus see the image turned back by the pose.
        representation : Rings or Pixels, optional
            How the networks see the image; by default rings of 32 pixels.

        Raises
        ------
        ConfigurationError
            For a latent that does not exist, or none at all.
        """
        super().__init__()
        unknown = [name for name in inferred if name not in LATENTS]
        if unknown or not inferred:
            raise ConfigurationError(
                f"inferred = {list(inferred)} is not usable: name one or more of {LATENTS}"
            )
        if components < 1:
            raise ConfigurationError(f"components = {components} is not usable: it must be 1 or more")
        cropped_noise(
            noise, forward_model.box_size, forward_model.box_size
        )  # refuses a noise that is not positive
        self.forward_model, self.prior, self.noise = forward_model, prior, noise
        self.inferred = tuple(name for name in LATENTS if name in inferred)
        self.components, self.stratified, self.upright = components, stratified, upright
        self.representation = Rings(32) if representation is None else representation
        build = {
            "pose": lambda: self.representation.pose_encoder(components),
            "amplitude": lambda: self.representation.encoder(2 * forward_model.n_modes),
            "defocus": lambda: self.representation.encoder(2),
        }
        self.encoders = nn.ModuleDict({name: build[name]() for name in self.inferred})

    # ---------------------------------------------------------------- p: how an image comes about

    def draw_latents(self) -> dict[str, Float[Tensor, "images ..."]]:
        """Sample every latent from its prior, inside a plate of images."""
        prior, like = self.prior, self.forward_model.reference
        amplitude_scale = like.new_full((self.forward_model.n_modes,), prior.amplitude_scale)
        return {
            # bend the molecule along its modes: α ~ N(0, σ_α)
            "amplitude": pyro.sample("amplitude", dist.Normal(0.0, amplitude_scale).to_event(1)),
            # turn it in the plane of the detector: θ ~ PN(μ_s)
            "pose": pyro.sample("pose", ProjectedNormal(like.new_tensor(prior.pose_concentration))),
            # set the microscope: z ~ N(50, 3)
            "defocus": pyro.sample(
                "defocus", dist.Normal(like.new_tensor(prior.defocus_mean), prior.defocus_scale)
            ),
        }

    def model(self, particles: Particles, resolution: int) -> None:
        """Algorithm 1: draw the latents that are not given, and score the images at resolution K."""
        observed = to_real(crop_coefficients(particles.coefficients, resolution), resolution)
        given = {name: particles.latents[name] for name in LATENTS if name not in self.inferred}
        with pyro.plate("images", len(particles)), poutine.condition(data=given):
            latents = self.draw_latents()
            # project, apply the contrast transfer, crop
            predicted = self.forward_model.coefficients(to_forward(latents), resolution)
            # white noise, σ_n K/N after the crop
            sigma = cropped_noise(self.noise, resolution, self.forward_model.box_size)
            pyro.sample("image", dist.Normal(to_real(predicted, resolution), sigma).to_event(1), obs=observed)

    def log_prior(self, latents: Mapping[str, Tensor]) -> Float[Tensor, "*batch"]:
        """Log-density in float64 of the latents that are inferred, before an image is seen."""
        prior, log_density = self.prior, {}
        like = self.forward_model.reference.double()
        if "pose" in self.inferred:
            pose = ProjectedNormal(like.new_tensor(prior.pose_concentration))
            log_density["pose"] = pose.log_prob(latents["pose"].double())
        if "amplitude" in self.inferred:
            amplitude = dist.Normal(like.new_tensor(0.0), prior.amplitude_scale)
            log_density["amplitude"] = amplitude.log_prob(latents["amplitude"]).sum(-1)
        if "defocus" in self.inferred:
            defocus = dist.Normal(like.new_tensor(prior.defocus_mean), prior.defocus_scale)
            log_density["defocus"] = defocus.log_prob(latents["defocus"])
        return sum(log_density.values())

    def log_joint(
        self, particles: Particles, latents: Mapping[str, Tensor], resolution: int
    ) -> Float[Tensor, "*draws images"]:
        """log p(image, latents) at resolution K, in float64; what is not inferred comes with the particles.

        Parameters
        ----------
        particles : Particles
            Images.
        latents : mapping of str to Tensor
            Those inferred, of each image, with any number of draws in front.
        resolution : int
            K.
        """
        n_images, model = len(particles), self.forward_model
        chosen = {name: latents[name] for name in self.inferred}
        draws = self.log_prior(chosen).shape[:-1]
        observed = crop_coefficients(particles.coefficients, resolution)
        flat = {name: value.flatten(0, len(draws)) for name, value in chosen.items()}
        parts = []
        for part in torch.arange(draws.numel() * n_images, device=observed.device).split(_CHUNK):
            image = part % n_images
            given = {name: value[image] for name, value in particles.latents.items()}
            here = {name: value[part] for name, value in flat.items()}
            predicted = model.coefficients(to_forward(given | here), resolution)
            scored = log_likelihood(observed[image], predicted, self.noise, resolution, model.box_size)
            parts.append(scored.double() + self.log_prior(here))
        return torch.cat(parts).view(*draws, n_images)

    # ---------------------------------------------------------------- q: how it is read backwards

    def guide(self, particles: Particles, resolution: int) -> None:
        """Algorithm 2: the networks look at each image and propose its latents."""
        seen = self.see(particles, resolution)
        with pyro.plate("images", len(particles)):
            pose = particles.latents["pose"]
            if "pose" in self.inferred:
                # where it may point: a mixture, because a wrong half-turn is nearly as good
                pose = pyro.sample("pose", self.pose_distribution(seen))
            if self.upright and self.inferred != ("pose",):
                # bend and focus are easier to see once the image is upright
                seen = self.representation.turn_back(seen, pose.detach())
            if "amplitude" in self.inferred:
                # how it is bent
                pyro.sample("amplitude", self.amplitude_distribution(seen))
            if "defocus" in self.inferred:
                # how far out of focus
                pyro.sample("defocus", self.defocus_distribution(seen))

    def see(self, particles: Particles, resolution: int) -> Tensor:
        """What the networks see: the crop at K, or at their own size where that is smaller, on their grid."""
        size = self.representation.size
        visible = crop_coefficients(particles.coefficients, min(resolution, size))
        return self.representation(coefficients_to_image(visible, size))

    def pose_distribution(self, seen: Tensor) -> ProjectedNormalMixture:
        """Mixture of projected normals that the pose network proposes."""
        logits, vectors = self.encoders["pose"](seen)
        # Linear near zero and quadratic far out, since the sharpest posteriors ask for |μ| of a thousand.
        concentrations = vectors * (1 + vectors.square().sum(-1, keepdim=True)).sqrt()
        mixture = StratifiedMixture if self.stratified else ProjectedNormalMixture
        return mixture(logits, concentrations)

    def amplitude_distribution(self, seen: Tensor) -> dist.TorchDistribution:
        """Normal for each mode's amplitude; it starts as the prior."""
        mean, log_scale = self.encoders["amplitude"](seen).chunk(2, dim=-1)
        scale = self.prior.amplitude_scale
        return dist.Normal(scale * mean, scale * log_scale.exp()).to_event(1)

    def defocus_distribution(self, seen: Tensor) -> dist.TorchDistribution:
        """Normal for the defocus; it starts as the prior."""
        mean, log_scale = self.encoders["defocus"](seen).unbind(-1)
        scale = self.prior.defocus_scale
        return dist.Normal(self.prior.defocus_mean + scale * mean, scale * log_scale.exp())

    # ---------------------------------------------------------------- data, and what the guide says of it

    @torch.no_grad()
    def simulate(self, n_images: int, resolution: int) -> Particles:
        """Draw images from the model, kept at a resolution K, together with the latents that made them.

        A defocus that is not inferred is that of the paper's microscope, the mean of the prior.
        """
        like, given = self.forward_model.reference, {}
        if "defocus" not in self.inferred:
            given["defocus"] = like.new_full((n_images,), self.prior.defocus_mean)
        with pyro.plate("images", n_images), poutine.condition(data=given):
            latents = self.draw_latents()
        images = self.forward_model.simulate(to_forward(latents), self.noise, resolution)
        return Particles(images, latents)

    @torch.no_grad()
    def sample_guide(
        self, particles: Particles, resolution: int, batch_size: int = 500
    ) -> dict[str, Float[Tensor, "images ..."]]:
        """One draw of every inferred latent for each image, and the pose's mixture.

        Returns the draws by the latent's name, and where the pose is inferred "pose_logits" (images,
        components) and "pose_concentrations" (images, components, 2).
        """
        return self._in_batches(self._sample_chunk, particles, resolution, batch_size)

    @torch.no_grad()
    def propose(
        self, particles: Particles, resolution: int, batch_size: int = 500
    ) -> dict[str, Float[Tensor, "images components ..."]]:
        """The middle of what the guide says of each inferred latent, for each component of its mixture."""
        return self._in_batches(self._propose_chunk, particles, resolution, batch_size)

    def _in_batches(
        self, answer: Callable, particles: Particles, resolution: int, batch_size: int
    ) -> dict[str, Float[Tensor, "images ..."]]:
        """What the guide answers, on the CPU."""
        with self._in_use():
            chunks = [
                answer(particles[start : start + batch_size], resolution)
                for start in range(0, len(particles), batch_size)
            ]
        return {name: torch.cat([chunk[name] for chunk in chunks]).cpu() for name in chunks[0]}

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """The networks set to be used and not trained, and afterwards as they were."""
        modes = {encoder: encoder.training for encoder in self.encoders.values()}
        self.encoders.eval()
        try:
            yield
        finally:
            for encoder, mode in modes.items():
                encoder.train(mode)

    def _propose_chunk(self, particles: Particles, resolution: int) -> dict[str, Tensor]:
        seen, poses = self.see(particles, resolution), particles.latents["pose"][:, None]
        if "pose" in self.inferred:
            poses = torch.nn.functional.normalize(self.pose_distribution(seen).concentrations, dim=-1)
        of_component = []
        for pose in poses.unbind(1):
            upright = self.representation.turn_back(seen, pose) if self.upright else seen
            middle = {"pose": pose}
            if "amplitude" in self.inferred:
                middle["amplitude"] = self.amplitude_distribution(upright).mean
            if "defocus" in self.inferred:
                middle["defocus"] = self.defocus_distribution(upright).mean
            of_component.append(middle)
        return {name: torch.stack([m[name] for m in of_component], dim=1) for name in self.inferred}

    def guide_log_density(
        self, particles: Particles, latents: Mapping[str, Tensor], resolution: int
    ) -> Float[Tensor, "images"]:
        """log q(latents | image) of one set of latents for each image."""
        chosen = {name: latents[name] for name in self.inferred}
        with self._in_use(), poutine.condition(data=chosen):
            trace = poutine.trace(self.guide).get_trace(particles, resolution)
        trace.compute_log_prob()
        return sum(trace.nodes[name]["log_prob"] for name in self.inferred)

    def _sample_chunk(self, particles: Particles, resolution: int) -> dict[str, Tensor]:
        sites = poutine.trace(self.guide).get_trace(particles, resolution).nodes
        draws = {name: sites[name]["value"] for name in self.inferred}
        if "pose" not in draws:
            return draws
        mixture: ProjectedNormalMixture = sites["pose"]["fn"]
        if self.stratified:
            # One draw came from every component: keep the draws of a component picked by its weight.
            component = dist.Categorical(logits=mixture.logits).sample()
            index = (component, torch.arange(len(particles), device=component.device))
            event_dims = {"pose": 1, "amplitude": 1, "defocus": 0}
            draws = {k: v[index] if v.ndim == 2 + event_dims[k] else v for k, v in draws.items()}
        return draws | {"pose_logits": mixture.logits, "pose_concentrations": mixture.concentrations}


def require_images(particles: Particles) -> None:
    """Refuse images of which no posterior can be computed.

    Raises
    ------
    CryoANMError
        If there is none, one is not finite, or they are on another device than the CPU.
    """
    device = particles.coefficients.device
    if device.type != "cpu":
        raise CryoANMError(
            f"the images are on {device}, and posteriors are computed on the CPU: use particles.to('cpu') "
            "and program.cpu()"
        )
    if not len(particles):
        raise CryoANMError("there are 0 images: give at least one")
    wrong = torch.nonzero(~particles.coefficients.isfinite().all(-1))[:, 0].tolist()
    if wrong:
        raise CryoANMError(f"images {wrong[:5]} hold NaN or infinite values: leave them out")


def to_forward(latents: Mapping[str, Tensor]) -> Latents:
    """The forward model's latents from the program's: a unit vector becomes a rotation, shifts are zero."""
    rotations, amplitudes = rotation_from_unit_vector(latents["pose"]), latents["amplitude"]
    shifts = rotations.new_zeros(*rotations.shape[:-2], 2)
    return Latents(amplitudes, rotations, latents["defocus"], shifts)
