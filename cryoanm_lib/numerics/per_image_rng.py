"""Random numbers of each image's own: how many of them one image needs changes no other's draws."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class PerImageRNG:
    """A stream of random numbers an image.

    Whether an image needs another round of draws can hang on the last bit of a sum. With one stream for all,
    that bit would give every later image other draws.

    Parameters
    ----------
    generators : sequence of torch.Generator
        One an image; each goes on from where it was left.

    Examples
    --------
    >>> streams = PerImageRNG.of(3, torch.Generator().manual_seed(0))
    >>> streams[torch.tensor([True, False, True])].normal(4).shape
    torch.Size([2, 4])
    """

    def __init__(self, generators: Sequence[torch.Generator]):
        self._generators = tuple(generators)

    @classmethod
    def of(cls, n_images: int, generator: torch.Generator | None = None) -> "PerImageRNG":
        """Seeded from one generator, which gives one number an image, whatever the streams are used for."""
        # A generator of torch's for the CPU knows 32 bits of its seed.
        seeds = torch.randint(2**32, (n_images,), generator=generator)
        return cls([torch.Generator().manual_seed(seed) for seed in seeds.tolist()])

    def __len__(self) -> int:
        """Number of images."""
        return len(self._generators)

    def __getitem__(self, which: Tensor) -> "PerImageRNG":
        """The same streams, not copies, of some images."""
        return PerImageRNG([self._generators[image] for image in torch.arange(len(self))[which].tolist()])

    def uniform(self, *shape: int) -> Float[Tensor, "images ..."]:
        """Numbers from [0, 1), of this shape for each image."""
        return self._filled(shape, Tensor.uniform_)

    def normal(self, *shape: int) -> Float[Tensor, "images ..."]:
        """Standard normal numbers, of this shape for each image."""
        return self._filled(shape, Tensor.normal_)

    def _filled(self, shape: tuple[int, ...], fill: Callable[..., Tensor]) -> Float[Tensor, "images ..."]:
        numbers = torch.empty(len(self), *shape, dtype=torch.float64)
        for own, generator in zip(numbers, self._generators, strict=True):
            fill(own, generator=generator)
        return numbers
