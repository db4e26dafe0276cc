"""The probabilistic program: the model p (Algorithm 1) and the guide q (Algorithm 2), side by side."""

from collections.abc import Callable
from typing import Literal

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn

from cryoanm_lib.errors import ConfigurationError, CryoANMError
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import LATENTS, Values
from cryoanm_lib.imaging.likelihood import GaussianImage
from cryoanm_lib.imaging.noise import Noise, white_noise
from cryoanm_lib.imaging.unknowns import Unknowns
from cryoanm_lib.numerics.fourier import coefficients_to_image, crop_coefficients
from cryoanm_lib.particles.particles import Particles, Simulated
from cryoanm_lib.program.distributions import ProjectedNormalMixture, StratifiedMixture
from cryoanm_lib.program.encoders import Representation, SharedEncoder
from cryoanm_lib.program.guides import Family, Others, Seen, SeparateNetworks, SharedNetwork
from cryoanm_lib.program.linearised import ComputedOthers
from cryoanm_lib.program.prior import PAPER_PRIOR, Prior
from cryoanm_lib.program.rings import Rings


class Model(nn.Module):
    """How images come about: which latents are inferred, and which are given, is an argument.

    Parameters
    ----------
    forward_model : ForwardModel
        Draws the image from its latents.
    prior : Prior
        Of every latent.
    noise : float, tuple of float or Noise
        White noise of deviation σ_n a pixel; or of a range, of whose logarithm it is uniform, so that every
        image has its own; or any other.
    inferred : tuple of str, optional
        Latents to be inferred, default all that vary; the others are given with each image.

    Raises
    ------
    ConfigurationError
        For a latent that does not exist, does not vary, or none at all.
    ForwardModelError
        If the noise is not positive, or the molecule does not fit the box however it is turned.
    """

    def __init__(
        self,
        forward_model: ForwardModel,
        prior: Prior = PAPER_PRIOR,
        noise: float | tuple[float, float] | Noise = 0.1,
        inferred: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        inferred = prior.names if inferred is None else inferred
        unknown = [name for name in inferred if name not in prior.names]
        if unknown or not inferred:
            raise ConfigurationError(
                f"inferred = {list(inferred)} is not usable: name one or more of {prior.names}, which vary"
                + "".join(f"; {name}_scale is 0" for name in unknown if name in LATENTS)
            )
        missing = [one.name for one in forward_model.transfer.latents if one.name not in prior.names]
        if missing:
            raise ConfigurationError(
                f"the microscope depends on {missing}, and this prior is of {prior.names}: add to it"
            )
        every = [one.name for one in forward_model.latents]
        if idle := [name for name in prior.names if name not in every]:
            raise ConfigurationError(
                f"the prior lets {idle} vary, and no image of this model depends on it: it knows {every}"
            )
        # most images are shifted by less than two deviations
        forward_model.check_fit(3 if prior.pose == "space" else 2, margin=2 * prior.shift_scale)
        self.forward_model, self.prior = forward_model, prior
        self.noise = noise if isinstance(noise, Noise) else white_noise(noise, forward_model.box_size)
        own = {one.name: one for one in forward_model.transfer.latents}  # in its own units
        chosen = tuple(own.get(one.name, one) for one in prior.latents if one.name in inferred)
        self.unknowns = Unknowns(chosen, forward_model.n_modes)
        self.inferred = self.unknowns.names
        self.given = tuple(name for name in prior.names if name not in inferred)
        self._checked: set[int] = set()  # resolutions at which the transfer is known to fit the box

    @property
    def device(self) -> torch.device:
        """Where the model computes: `to` moves it, and images must be there too."""
        return self.forward_model.reference.device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Model":
        """What `to` and its like do to every tensor; the noise goes along."""
        super()._apply(fn, recurse)
        self.noise = self.noise.to(self.device)
        return self

    def log_prior(self, latents: Values, given: Values | None = None) -> Float[Tensor, "*batch"]:
        """Log-density in float64 of the latents that are inferred, before an image is seen."""
        like, n_modes = self.forward_model.reference.double(), self.forward_model.n_modes
        prior = self.prior.about(given or {})
        distributions = ((name, prior.distribution(name, n_modes, like)) for name in self.inferred)
        each = (own.log_prob(latents[name].double()) for name, own in distributions)
        return sum(each, like.new_zeros(()))

    def check_given(self, given: Values, resolution: int) -> None:
        """Refuse images of which something is missing, or whose microscope this box cannot hold.

        Raises
        ------
        CryoANMError
            If a latent that is not inferred is not given.
        ForwardModelError
            As `check_transfer`.
        """
        if missing := [name for name in self.given if name not in given]:
            raise CryoANMError(
                f"{missing} vary and are not inferred, and of the images only {sorted(given)} are given: "
                "give them with the images, or infer them"
            )
        self.check_transfer(given, resolution)

    def check_transfer(self, given: Values, resolution: int) -> None:
        """Refuse a microscope too far out of focus for the box: as given, 3 deviations of the prior away.

        Raises
        ------
        ForwardModelError
            Naming the box that would do; or if nothing tells one in physical units from one in focus.
        """
        # Looked at here, wherever the images are: a GPU would be asked for each number.
        like, forward = torch.zeros(1, dtype=torch.float64, device="cpu"), self.forward_model
        values = {}
        for latent in forward.transfer.latents:
            mean, scale = self.prior.moments(latent.name, forward.n_modes, like)
            values[latent.name] = latent.unrows(torch.stack([mean - 3 * scale, mean + 3 * scale])[:, None])
        known = {name: value.cpu() for name, value in given.items()}
        forward.transfer.check({**values, **known}, forward.box_size, resolution)

    @torch.no_grad()
    def simulate(self, n_images: int, resolution: int, given: Values | None = None) -> Simulated:
        """Draw images, kept at a resolution K, together with the latents that made them.

        Parameters
        ----------
        n_images, resolution : int, int
            How many, and K.
        given : mapping of str to Tensor, optional
            What is known of each image, such as its "ctf"; latents among it are not drawn. What the
            microscope depends on, and is neither given nor inferred, is that of the prior's mean.

        Raises
        ------
        ForwardModelError
            If K is not usable with the box, the microscope is too far out of focus for it, or nothing says
            how far it is out of focus.
        """
        given = {} if given is None else given
        if given or resolution not in self._checked:
            self.check_transfer(given, resolution)
        if not given:
            self._checked.add(resolution)
        like, n_modes = self.forward_model.reference, self.forward_model.n_modes
        means = self.prior.means(n_images, n_modes, like)
        microscope = {one.name for one in self.forward_model.transfer.latents}
        known = {name: means[name] for name in self.given if name in microscope}
        known |= {name: value.to(like) for name, value in given.items() if name in self.prior.names}
        with pyro.plate("images", n_images), poutine.condition(data=known):
            latents = self.draw(given)
        noise = self.noise.drawn(n_images, like)
        clean = self.forward_model.coefficients({**given, **latents}, resolution)
        known = {**given, **{name: latents[name] for name in self.given}}
        seen = {name: value for name, value in known.items() if name not in self.inferred}
        return Simulated(noise.sample(clean), seen, noise, latents)

    def draw(self, given: Values | None = None) -> dict[str, Float[Tensor, "images ..."]]:
        """Sample every latent from its prior, inside a plate of images."""
        like, n_modes = self.forward_model.reference, self.forward_model.n_modes
        # bend the molecule along its modes: α ~ N(0, σ_α); turn it: θ ~ PN(μ_s), or in space, uniformly;
        # set the microscope: z ~ N(50, 3); and if wished shift it, and let the contrast vary
        first = ("amplitude", "pose", *(one.name for one in self.forward_model.transfer.latents))
        order = dict.fromkeys((*first, *self.prior.names))
        prior = self.prior.about(given or {})
        distributions = {n: prior.distribution(n, n_modes, like) for n in order if n in prior.names}
        return {name: pyro.sample(name, own) for name, own in distributions.items()}

    def model(self, particles: Particles, resolution: int) -> None:
        """Algorithm 1: draw the latents that are not given, and score the images at resolution K."""
        observed = crop_coefficients(particles.coefficients, resolution)
        known = {name: particles.given[name] for name in self.given}
        with pyro.plate("images", len(particles)), poutine.condition(data=known):
            latents = {**particles.given, **self.draw(particles.given)}
            # project, apply the contrast transfer, crop
            predicted = self.forward_model.coefficients(latents, resolution)
            # and drown it in noise
            pyro.sample("image", GaussianImage(predicted, particles.noise, resolution), obs=observed)


class Guide(nn.Module):
    """How images are read backwards: networks, and the family of distributions that they choose from."""

    # Before what sets it up, so that it stands beside the model.
    def guide(
        self,
        particles: Particles,
        resolution: int,
        only: tuple[str, ...] | None = None,
    ) -> None:
        """Algorithm 2: the networks look at each image and propose its latents, or only some of them."""
        seen = self.see(particles, resolution)
        with pyro.plate("images", len(particles)):
            if "pose" in self.model.inferred:
                # where it may point: a mixture, because a wrong pose can be nearly as good
                pose = pyro.sample("pose", self.pose_distribution(seen))
            else:
                pose = particles.given["pose"]
            # where it lies, how it is bent, how far out of focus, and how bright, if it points there
            wanted = [n for n in self.model.inferred if n != "pose" and (only is None or n in only)]
            if wanted:
                others, drawn = self.others(seen, particles, pose, resolution), {}
                for name in wanted:
                    drawn[name] = pyro.sample(name, others(name, drawn))

    def __init__(
        self,
        model: Model,
        components: int = 2,
        stratified: bool = True,
        upright: bool = True,
        whole: bool = False,
        others: Literal["independent", "learned", "computed"] = "computed",
        representation: Representation | SharedEncoder | None = None,
    ) -> None:
        """Choose the family and the networks.

        Parameters
        ----------
        model : Model
            What it is the guide of.
        components : int
            Projected normals in the pose's mixture.
        stratified : bool
            Draw the pose once from every component, with a pathwise gradient, instead of once from the
            mixture, with a score-function gradient, as Algorithm 2 reads.
        upright : bool
            Let separate networks see the image turned back by the pose for what is of the molecule.
        whole : bool
            Let the networks see the image at its full resolution, as in the paper, whatever the K of the
            likelihood; they see the crop at K otherwise.
        others : str
            How the latents beside the pose follow from it where a shared network reads the image: see
            `SharedNetwork`.
        representation : Rings, Pixels or SharedEncoder, optional
            How separate networks see the image, or what reads it for all latents; by default rings of 32
            pixels.

        Raises
        ------
        ConfigurationError
            For no component, or a pose in space that separate networks are to infer.
        """
        super().__init__()
        if components < 1:
            raise ConfigurationError(f"components = {components} is not usable: it must be 1 or more")
        self.model, self.components, self.stratified, self.whole = model, components, stratified, whole
        representation = Rings(32) if representation is None else representation
        settings = (model.prior, model.unknowns, components)
        if isinstance(representation, SharedEncoder):
            self.family: Family = SharedNetwork(representation, *settings, others)
        elif model.prior.pose == "space" and "pose" in model.inferred:
            raise ConfigurationError(
                "separate networks infer poses in the plane: give a SharedEncoder for a pose in space"
            )
        else:
            self.family = SeparateNetworks(representation, *settings, upright)

    def resolution_seen(self, resolution: int) -> int:
        """K of what the networks see, where that of the likelihood is K."""
        return self.family.size if self.whole else min(resolution, self.family.size)

    def see(self, particles: Particles, resolution: int) -> Seen:
        """What the networks see of images that hold at least `resolution_seen`."""
        visible = crop_coefficients(particles.coefficients, self.resolution_seen(resolution))
        visible = particles.noise.flat(visible)
        images = coefficients_to_image(visible, self.family.size)
        return Seen(self.family.see(images, particles.noise.summary(len(images), images)))

    def pose_distribution(self, seen: Seen) -> ProjectedNormalMixture:
        """Mixture of projected normals that the networks propose for the pose."""
        logits, vectors = self.family.pose(seen)
        # Linear near zero and quadratic far out, since the sharpest posteriors ask for |μ| of a thousand.
        concentrations = vectors * (1 + vectors.square().sum(-1, keepdim=True)).sqrt()
        mixture = StratifiedMixture if self.stratified else ProjectedNormalMixture
        return mixture(logits, concentrations)

    def others(
        self, seen: Seen, particles: Particles, pose: Float[Tensor, "*batch dim"], resolution: int
    ) -> Others:
        """Distributions of the other latents, given those drawn before, where the pose is what it is."""
        computed = ComputedOthers(self.model, particles, min(resolution, self.family.size))
        return self.family.others(seen, pose, computed)

    @property
    def encoders(self) -> nn.ModuleDict:
        """The networks."""
        return self.family.encoders
