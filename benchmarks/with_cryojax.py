"""The forward model written with cryoJAX: the same atoms, Gaussians, contrast transfer and crop."""

import cryojax.simulator as cxs
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.numerics.fourier import half_plane_frequencies


class WithCryoJAX:
    """Images and log-likelihoods of a model by `GaussianMixtureProjection`, mapped over images and compiled.

    Parameters
    ----------
    model : ForwardModel
        What is to be imitated; its box is even.
    n_spread : int or None
        Pixels that each Gaussian is spread to, or none for all of them: `GaussianMixtureProjection`'s option.
    """

    def __init__(self, model: ForwardModel, n_spread: int | None) -> None:
        self.box_size = model.box_size
        self.width = model.atom_width * model.pixel_size
        self.reference, self.modes = jnp.asarray(model.reference.numpy()), jnp.asarray(model.modes.numpy())
        self.config = cxs.BasicImageConfig((model.box_size, model.box_size), model.pixel_size, 300.0)
        self.integrator = cxs.GaussianMixtureProjection(sampling_mode="point", n_spread=n_spread)
        frequency = np.fft.fftfreq(model.box_size)
        self.squared = jnp.asarray(frequency[:, None] ** 2 + frequency[None, : model.box_size // 2 + 1] ** 2)
        # The library leaves out the unpaired Nyquist frequency.
        kept = np.abs(frequency) < 0.5
        self.kept = jnp.asarray(kept[:, None] & kept[None, : model.box_size // 2 + 1])
        self.images = jax.jit(jax.vmap(self._image))
        self.weighted = jax.jit(jax.vmap(jax.grad(self._weighted, argnums=(0, 1, 2))))

    def _coefficients(self, pose, amplitude, defocus):
        """The real transform of one image."""
        bent = self.reference + jnp.tensordot(amplitude, self.modes, axes=1)
        cos, sin = jnp.cos(pose), jnp.sin(pose)
        turn = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
        at = jnp.concatenate([bent[:, :2] @ turn.T, bent[:, 2:]], axis=1)
        # Its Gaussians have an integral of 1, ours a peak of 1.
        volume = cxs.GaussianMixtureVolume(at, 2 * jnp.pi * self.width**2, self.width**2)
        projected = self.integrator.integrate(volume, self.config)
        return projected * jnp.sin(-defocus * self.squared) * self.kept

    def _image(self, pose, amplitude, defocus):
        return jnp.fft.irfftn(self._coefficients(pose, amplitude, defocus), s=(self.box_size, self.box_size))

    def _weighted(self, pose, amplitude, defocus, weights):
        return (self._image(pose, amplitude, defocus) * weights).sum()

    def log_likelihood_slopes(self, observed: Tensor, resolution: int):
        """A compiled function: log-likelihood of images at a crop, and its gradient; nothing is scattered.

        With it the observed coefficients as that function takes them.
        """
        frequencies = half_plane_frequencies(resolution).long()
        # A negative row is the same one counted from the end.
        rows, columns = (np.asarray(f) for f in (frequencies[:, 1], frequencies[:, 0]))
        n_values, grid = 2 * len(rows) - 1, self.squared.shape
        # Each coefficient counts for its twin at -k too, and those beyond the crop for nothing.
        count = np.zeros(grid, np.float32)
        count[rows, columns] = 2.0
        count[0, 0] = 1.0
        # The library's origin is the middle of the box, and so is that of these images.
        scale = (-1.0) ** np.add.outer(np.arange(grid[0]), np.arange(grid[1])) / self.box_size**2
        laid_out = np.zeros((len(observed), *grid), np.complex64)
        laid_out[:, rows, columns] = observed.numpy()
        count, scale = jnp.asarray(count), jnp.asarray(scale.astype(np.float32))

        def log_likelihood(pose, amplitude, defocus, seen, sigma):
            left = self._coefficients(pose, amplitude, defocus) * scale - seen
            squared = (count * (left.real**2 + left.imag**2)).sum()
            normalisation = n_values * jnp.log(jnp.sqrt(2 * jnp.pi) * sigma)
            return -0.5 * squared * (resolution / sigma) ** 2 - normalisation

        both = jax.value_and_grad(log_likelihood, argnums=(0, 1, 2))
        return jax.jit(jax.vmap(both, in_axes=(0, 0, 0, 0, None))), jnp.asarray(laid_out)


def to_jax(tensor: Tensor) -> jax.Array:
    """The same numbers."""
    return jnp.asarray(tensor.detach().numpy())


def to_torch(array: jax.Array) -> Tensor:
    """The same numbers."""
    return torch.from_numpy(np.array(array))
