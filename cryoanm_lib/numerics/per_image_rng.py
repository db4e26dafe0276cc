"""Random numbers of each image's own: how many of them one image needs changes no other's draws."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class PerImageRNG:
    """A stream of random numbers an image.

    Whether an image needs another round of draws can hang on the last bit of a sum. With one stream for all,
    that bit would give every later image other draws. Numbers are drawn on the CPU, whatever device they are
    for, so that an image has the same ones on each.

    Parameters
    ----------
    generators : sequence of torch.Generator
        One an image, of the CPU; each goes on from where it was left.
    device : torch.device
        Where the numbers are needed.

    Examples
    --------
    >>> streams = PerImageRNG.of(3, torch.Generator().manual_seed(0))
    >>> streams[torch.tensor([True, False, True])].normal(4).shape
    torch.Size([2, 4])
    """

    def __init__(self, generators: Sequence[torch.Generator], device: torch.device | str = "cpu") -> None:
        self._generators, self._device = tuple(generators), device

    @classmethod
    def of(
        cls,
        n_images: int,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> "PerImageRNG":
        """Seeded from one generator, which gives one number an image, whatever the streams are used for."""
        # A generator of torch's for the CPU knows 32 bits of its seed.
        seeds = torch.randint(2**32, (n_images,), generator=generator, device="cpu")
        return cls([torch.Generator().manual_seed(seed) for seed in seeds.tolist()], device)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._generators)

    def __getitem__(self, which: Tensor) -> "PerImageRNG":
        """The same streams, not copies, of some images."""
        chosen = torch.arange(len(self), device="cpu")[which.cpu()].tolist()
        return PerImageRNG([self._generators[image] for image in chosen], self._device)

    def uniform(self, *shape: int) -> Float[Tensor, "images ..."]:
        """Numbers from [0, 1), of this shape for each image."""
        return self._filled(shape, Tensor.uniform_)

    def normal(self, *shape: int) -> Float[Tensor, "images ..."]:
        """Standard normal numbers, of this shape for each image."""
        return self._filled(shape, Tensor.normal_)

    def _filled(self, shape: tuple[int, ...], fill: Callable[..., Tensor]) -> Float[Tensor, "images ..."]:
        numbers = torch.empty(len(self), *shape, dtype=torch.float64, device="cpu")
        for own, generator in zip(numbers, self._generators, strict=True):
            fill(own, generator=generator)
        return numbers.to(self._device)
