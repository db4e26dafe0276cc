"""The probabilistic program: the model p (Algorithm 1) and the guide q (Algorithm 2), side by side."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn

from cryoanm_lib.errors import ConfigurationError
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.likelihood import log_likelihood
from cryoanm_lib.imaging.noise import cropped_noise
from cryoanm_lib.numerics.fourier import coefficients_to_image, crop_coefficients, to_real
from cryoanm_lib.numerics.memory import in_parts
from cryoanm_lib.particles.particles import Particles, to_forward
from cryoanm_lib.program.distributions import ProjectedNormalMixture, StratifiedMixture
from cryoanm_lib.program.encoders import Representation, SharedEncoder
from cryoanm_lib.program.guides import Computed, Seen, SeparateNetworks, SharedNetwork
from cryoanm_lib.program.linearised import linearised_posterior
from cryoanm_lib.program.prior import LATENTS, PAPER_PRIOR, VECTORS, Prior
from cryoanm_lib.program.rings import Rings

# Points at which images are predicted at a time: what they need should stay near the processor.
_CHUNK = 512


class CryoProgram(nn.Module):
    """Model and guide of one experiment: which latents are inferred, and which are given, is an argument."""

    def __init__(
        self,
        forward_model: ForwardModel,
        prior: Prior = PAPER_PRIOR,
        noise: float | tuple[float, float] = 0.1,
        inferred: tuple[str, ...] = ("pose", "amplitude", "defocus"),
        components: int = 2,
        stratified: bool = True,
        upright: bool = True,
        others: Literal["independent", "learned", "computed"] = "computed",
        representation: Representation | SharedEncoder | None = None,
    ) -> None:
        """Set up the program.

        Parameters
        ----------
        forward_model : ForwardModel
            Draws the image from its latents.
        prior : Prior
            Of every latent.
        noise : float or tuple of float
            σ_n of a pixel of the uncropped image; or the ends of a range, of whose logarithm it is uniform.
            Then every image has its own, which a shared network is told.
        inferred : tuple of str
            Latents that the guide infers, of `LATENTS`; the others are given with each image.
        components : int
            Projected normals in the pose's mixture.
        stratified : bool
            Draw the pose once from every component, with a pathwise gradient, instead of once from the
            mixture, as in the paper, with a score-function gradient.
        upright : bool
            Let separate networks of amplitude, defocus and contrast see the image turned back by the pose.
        others : str
            How the latents beside the pose follow from it where a shared network reads the image: see
            `SharedNetwork`.
        representation : Rings, Pixels or SharedEncoder, optional
            How separate networks see the image, or what reads it for all latents; by default rings of 32
            pixels.

        Raises
        ------
        ConfigurationError
            For a latent that does not exist, does not vary, or none at all; for a pose in space that separate
            networks are to infer.
        ForwardModelError
            If the noise is not positive, or the molecule does not fit the box however it is turned.
        """
        super().__init__()
        unknown = [name for name in inferred if name not in prior.latents]
        if unknown or not inferred:
            raise ConfigurationError(
                f"inferred = {list(inferred)} is not usable: name one or more of {prior.latents}, which vary"
                + "".join(f"; {name}_scale is 0" for name in unknown if name in LATENTS)
            )
        if components < 1:
            raise ConfigurationError(f"components = {components} is not usable: it must be 1 or more")
        if isinstance(noise, tuple) and not noise[0] < noise[1]:
            raise ConfigurationError(f"noise = {noise} is no range: the first end must be the lower one")
        for end in noise if isinstance(noise, tuple) else (noise,):
            # refuses one that is not positive
            cropped_noise(end, forward_model.box_size, forward_model.box_size)
        # most images are shifted by less than two deviations
        forward_model.check_fit(3 if prior.pose == "space" else 2, margin=2 * prior.shift_scale)
        self.forward_model, self.prior, self.noise = forward_model, prior, noise
        self.inferred = tuple(name for name in LATENTS if name in inferred)
        self.components, self.stratified = components, stratified
        representation = Rings(32) if representation is None else representation
        settings = (representation, prior, forward_model.n_modes, self.inferred, components)
        if isinstance(representation, SharedEncoder):
            self.family = SharedNetwork(*settings, others=others)
        elif prior.pose == "space" and "pose" in self.inferred:
            raise ConfigurationError(
                "separate networks infer poses in the plane: give a SharedEncoder for a pose in space"
            )
        else:
            self.family = SeparateNetworks(*settings, upright=upright)

    @property
    def encoders(self) -> nn.ModuleDict:
        """The networks."""
        return self.family.encoders

    def noise_of(self, latents: Mapping[str, Tensor]) -> Float[Tensor, "*images"] | float:
        """σ_n of images: their own, or the one of all.

        Raises
        ------
        ConfigurationError
            If it differs from image to image and is not given.
        """
        if "noise" in latents:
            return latents["noise"]
        if isinstance(self.noise, tuple):
            raise ConfigurationError(
                f"the noise is anything from {self.noise[0]} to {self.noise[1]}: give that of each image as "
                "latents['noise']"
            )
        return self.noise

    def sigma_of(
        self, latents: Mapping[str, Tensor], resolution: int, like: Float[Tensor, "..."]
    ) -> Float[Tensor, "*images"]:
        """Deviation σ_n K/N of the values of the crop, of each image or of all, with the dtype of `like`."""
        noise = torch.as_tensor(self.noise_of(latents), dtype=like.dtype, device=like.device)
        return cropped_noise(noise, resolution, self.forward_model.box_size)

    # ---------------------------------------------------------------- p: how an image comes about

    def draw_latents(self) -> dict[str, Float[Tensor, "images ..."]]:
        """Sample every latent from its prior, inside a plate of images."""
        like, n_modes = self.forward_model.reference, self.forward_model.n_modes
        # bend the molecule along its modes: α ~ N(0, σ_α)
        # turn it, in the plane of the detector: θ ~ PN(μ_s), or in space, uniformly
        # set the microscope: z ~ N(50, 3)
        # and if wished shift it, and let the contrast vary
        order = ("amplitude", "pose", "defocus", "shift", "contrast")
        return {
            name: pyro.sample(name, self.prior.distribution(name, n_modes, like))
            for name in order
            if name in self.prior.latents
        }

    def model(self, particles: Particles, resolution: int) -> None:
        """Algorithm 1: draw the latents that are not given, and score the images at resolution K."""
        observed = to_real(crop_coefficients(particles.coefficients, resolution), resolution)
        given = {name: particles.latents[name] for name in self.prior.latents if name not in self.inferred}
        with pyro.plate("images", len(particles)), poutine.condition(data=given):
            known = {n: v for n, v in particles.latents.items() if n in LATENTS}
            latents = known | self.draw_latents()
            # project, apply the contrast transfer, crop
            predicted = self.forward_model.coefficients(to_forward(latents), resolution)
            # white noise, σ_n K/N after the crop
            sigma = self.sigma_of(particles.latents, resolution, observed)[..., None]
            pyro.sample("image", dist.Normal(to_real(predicted, resolution), sigma).to_event(1), obs=observed)

    def log_prior(self, latents: Mapping[str, Tensor]) -> Float[Tensor, "*batch"]:
        """Log-density in float64 of the latents that are inferred, before an image is seen."""
        like, n_modes = self.forward_model.reference.double(), self.forward_model.n_modes
        return sum(
            self.prior.distribution(name, n_modes, like).log_prob(latents[name].double())
            for name in self.inferred
        )

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
        every = torch.arange(draws.numel() * n_images, device=observed.device)

        def scored(rows: slice) -> Float[Tensor, "rows"]:
            part, image = every[rows], every[rows] % n_images
            given = {name: value[image] for name, value in particles.latents.items()}
            here = {name: value[part] for name, value in flat.items()}
            predicted = model.coefficients(to_forward(given | here), resolution)
            noise = self.noise_of(given)
            fit = log_likelihood(observed[image], predicted, noise, resolution, model.box_size)
            return fit.double() + self.log_prior(here)

        return torch.cat(in_parts(scored, len(every), _CHUNK)).view(*draws, n_images)

    # ---------------------------------------------------------------- q: how it is read backwards

    def guide(
        self,
        particles: Particles,
        resolution: int,
        only: tuple[str, ...] | None = None,
        seen: Seen | None = None,
    ) -> None:
        """Algorithm 2: the networks look at each image and propose its latents, or only some of them.

        Where they have looked before, `seen` is what `see` returned.
        """
        seen = self.see(particles, resolution) if seen is None else seen
        with pyro.plate("images", len(particles)):
            pose = particles.latents["pose"]
            if "pose" in self.inferred:
                # where it may point: a mixture, because a wrong pose can be nearly as good
                pose = pyro.sample("pose", self.pose_distribution(seen))
            # where it lies, how it is bent, how far out of focus, and how bright, if it points there
            wanted = [n for n in self.inferred if n != "pose" and (only is None or n in only)]
            if wanted:
                others, drawn = self.family.others(seen, pose, self._computed(particles, resolution)), {}
                for name in wanted:
                    drawn[name] = pyro.sample(name, others(name, drawn))

    def see(self, particles: Particles, resolution: int) -> Seen:
        """What the networks see: the crop at K, or at their own size where that is smaller."""
        size = self.family.size
        visible = crop_coefficients(particles.coefficients, min(resolution, size))
        noise = torch.as_tensor(self.noise_of(particles.latents), dtype=visible.real.dtype)
        noise = noise.to(visible.device).expand(len(particles))
        return Seen(self.family.see(coefficients_to_image(visible, size), noise))

    def _computed(self, particles: Particles, resolution: int) -> Computed:
        """What the model says of the other latents at any pose, at the resolution that the networks see."""
        seen_at = min(resolution, self.family.size)
        observed = crop_coefficients(particles.coefficients, seen_at)
        names = tuple(name for name in self.inferred if name != "pose")
        given = {n: v for n, v in particles.latents.items() if n not in (*self.inferred, "noise")}
        noise = torch.as_tensor(self.noise_of(particles.latents)).to(observed.real).expand(len(particles))

        def computed(pose: Float[Tensor, "*batch dim"]) -> tuple[Tensor, Tensor]:
            at = {**given, "pose": pose}
            return linearised_posterior(self.forward_model, self.prior, names, observed, at, noise, seen_at)

        return computed

    def pose_distribution(self, seen: Seen) -> ProjectedNormalMixture:
        """Mixture of projected normals that the networks propose for the pose."""
        logits, vectors = self.family.pose(seen)
        # Linear near zero and quadratic far out, since the sharpest posteriors ask for |μ| of a thousand.
        concentrations = vectors * (1 + vectors.square().sum(-1, keepdim=True)).sqrt()
        mixture = StratifiedMixture if self.stratified else ProjectedNormalMixture
        return mixture(logits, concentrations)

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
        if isinstance(self.noise, tuple):
            low, high = (math.log(end) for end in self.noise)
            latents["noise"] = (low + (high - low) * torch.rand(n_images).to(like)).exp()
        images = self.forward_model.simulate(to_forward(latents), self.noise_of(latents), resolution)
        return Particles(images, latents)

    @torch.no_grad()
    def sample_guide(
        self, particles: Particles, resolution: int, batch_size: int = 500, seen: Seen | None = None
    ) -> dict[str, Float[Tensor, "images ..."]]:
        """One draw of every inferred latent for each image, and the pose's mixture.

        Where the networks have looked at the images before, `seen` is what `see` returned of them all.

        Returns the draws by the latent's name, and where the pose is inferred "pose_logits" (images,
        components) and "pose_concentrations" (images, components, 2 or 4).
        """
        if seen is not None:
            batch_size = len(particles)
        return self._in_batches(partial(self._one_draw, seen=seen), particles, resolution, batch_size)

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
        with self.in_use():
            chunks = in_parts(lambda rows: answer(particles[rows], resolution), len(particles), batch_size)
        return {name: torch.cat([chunk[name] for chunk in chunks]).cpu() for name in chunks[0]}

    @contextmanager
    def in_use(self) -> Iterator[None]:
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
            middle = {"pose": pose}
            if self.inferred != ("pose",):
                others = self.family.others(seen, pose, self._computed(particles, resolution))
                for name in self.inferred:
                    if name != "pose":
                        middle[name] = others(name, middle).mean
            of_component.append(middle)
        return {name: torch.stack([m[name] for m in of_component], dim=1) for name in self.inferred}

    def guide_log_density(
        self,
        particles: Particles,
        latents: Mapping[str, Tensor],
        resolution: int,
        seen: Seen | None = None,
    ) -> Float[Tensor, "images"]:
        """log q(latents | image) of one set of latents for each image."""
        chosen = {name: latents[name] for name in self.inferred}
        with self.in_use(), poutine.condition(data=chosen):
            trace = poutine.trace(self.guide).get_trace(particles, resolution, seen=seen)
        trace.compute_log_prob()
        return sum(trace.nodes[name]["log_prob"] for name in self.inferred)

    def _one_draw(self, particles: Particles, resolution: int, seen: Seen | None = None) -> dict[str, Tensor]:
        sites = poutine.trace(self.guide).get_trace(particles, resolution, seen=seen).nodes
        draws = {name: sites[name]["value"] for name in self.inferred}
        if "pose" not in draws:
            return draws
        mixture: ProjectedNormalMixture = sites["pose"]["fn"]
        if self.stratified:
            # One draw came from every component: keep the draws of a component picked by its weight.
            component = dist.Categorical(logits=mixture.logits).sample()
            index = (component, torch.arange(len(particles), device=component.device))
            draws = {k: v[index] if v.ndim == 2 + (k in VECTORS) else v for k, v in draws.items()}
        return draws | {"pose_logits": mixture.logits, "pose_concentrations": mixture.concentrations}
