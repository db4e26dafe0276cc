"""A new source: a stack of images in a `.npz` file, with what is known of each."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cryoanm_lib import Model, Particles, Prior, WhiteNoise
from cryoanm_lib.numerics.fourier import coefficients_to_image, image_to_coefficients
from cryoanm_lib.particles.source import Source


@dataclass(frozen=True)
class Stack:
    """Images (n, N, N) as "images", σ_n as "noise", and every other array a latent that is given."""

    path: Path

    def __call__(self, resolution, step=0):
        with np.load(self.path) as file:
            found = {name: torch.from_numpy(file[name]) for name in file.files}
        images, noise = found.pop("images"), found.pop("noise")
        return Particles(
            image_to_coefficients(images, resolution), found, WhiteNoise(noise.item(), images.shape[-1])
        )


def test_images_from_a_file_are_refined_with_honest_error_bars(forward, all_the_way, tmp_path):
    model = Model(
        forward(box_size=72), Prior(shift_scale=1.0), noise=0.1, inferred=("pose", "shift", "amplitude")
    )
    torch.manual_seed(3)
    images = model.simulate(200, 72)
    given = {name: images.given[name].numpy() for name in model.given}
    pixels = coefficients_to_image(images.coefficients, 72).numpy()
    np.savez(tmp_path / "stack.npz", images=pixels, noise=0.1, **given)

    stack = Stack(tmp_path / "stack.npz")
    assert isinstance(stack, Source)
    all_the_way(model, images, stack(32))
