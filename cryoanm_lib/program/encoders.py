"""The networks that read an image pixel by pixel: the paper's CNN–MLP (Fig. A1)."""

import contextlib
import itertools
import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoanm_lib.numerics.fourier import coefficients_to_image, image_to_coefficients
from cryoanm_lib.numerics.rotation import rotation_from_unit_vector

#: Widths of the three double convolutions; the paper states none.
CHANNELS = (16, 32, 64)

#: Width of the two dense layers (the paper's).
HIDDEN = 512

#: Groups of channels that are normalised together, image by image. Statistics over a batch would make a
#: network less accurate in training than in use, and what it learns of its own errors too pessimistic.
GROUPS = 4


@runtime_checkable
class Representation(Protocol):
    """How the guide looks at an image, and the networks that read what it sees."""

    #: Pixels along an edge of the images that are looked at.
    size: int

    def __call__(self, images: Float[Tensor, "*batch size size"]) -> Tensor:
        """What is seen of images."""
        ...

    def turn_back(self, seen: Tensor, pose: Float[Tensor, "*batch 2"]) -> Tensor:
        """What would be seen at pose zero."""
        ...

    def pose_encoder(self, components: int) -> nn.Module:
        """A network that returns logits (*batch, components) and vectors (*batch, components, 2)."""
        ...

    def encoder(self, n_outputs: int) -> nn.Module:
        """A network that returns numbers (*batch, n_outputs)."""
        ...


class Pixels(nn.Module):
    """The paper's representation: the image itself, `size` pixels along an edge, read by convolutions.

    Parameters
    ----------
    size : int
        Pixels along an edge.
    channels : tuple of int
        Widths of the double convolutions.
    normalised : bool
        Normalise groups of channels after each convolution; the paper does not.
    """

    def __init__(self, size: int, channels: tuple[int, ...] = CHANNELS, normalised: bool = True) -> None:
        super().__init__()
        self.size, self.channels, self.normalised = size, channels, normalised

    def forward(self, images: Float[Tensor, "*batch size size"]) -> Float[Tensor, "*batch size size"]:
        """The images as they are."""
        return images

    def turn_back(
        self, seen: Float[Tensor, "images size size"], pose: Float[Tensor, "*batch images 2"]
    ) -> Float[Tensor, "*batch images size size"]:
        """Images as they would look at pose zero: at r stands what was at R(θ) r."""
        # Twice the pixels, because linear interpolation between the given ones would blur the detail.
        fine = coefficients_to_image(image_to_coefficients(seen, self.size), 2 * self.size)
        return turn_back(fine, pose, self.size)

    def pose_encoder(self, components: int) -> "ConvolutionalPoseEncoder":
        """Reads logits and vectors of a mixture."""
        return ConvolutionalPoseEncoder(self.size, components, self.channels, self.normalised)

    def encoder(self, n_outputs: int) -> "ConvolutionalEncoder":
        """Reads numbers."""
        return ConvolutionalEncoder(self.size, n_outputs, self.channels, self.normalised)


class Convolution(nn.Sequential):
    """A 3 × 3 convolution, normalisation of groups of channels if wished, and a rectifier."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1, normalised: bool = True) -> None:
        convolution = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=not normalised)
        norms = [nn.GroupNorm(math.gcd(GROUPS, channels_out), channels_out)] if normalised else []
        super().__init__(convolution, *norms, nn.ReLU(inplace=True))

    def forward(self, maps: Float[Tensor, "images before size size"]) -> Float[Tensor, "images after ..."]:
        """The maps, channels last in memory: with these a CPU convolves two to three times faster.

        The weights must stay as they are: Pyro trains a contiguous copy of any that are not.
        """
        return super().forward(maps.contiguous(memory_format=torch.channels_last))


class DoubleConvolution(nn.Sequential):
    """Two convolutions."""

    def __init__(self, channels_in: int, channels_out: int, normalised: bool = True) -> None:
        pairs = ((channels_in, channels_out), (channels_out, channels_out))
        super().__init__(*(Convolution(*pair, normalised=normalised) for pair in pairs))


class ConvolutionalEncoder(nn.Module):
    """Three double convolutions with pooling, then two dense layers of 512, then a linear head.

    Each double convolution makes so many channels, and halves the pixels along an edge.
    """

    def __init__(
        self,
        image_size: int,
        n_outputs: int,
        channels: tuple[int, ...] = CHANNELS,
        normalised: bool = True,
    ) -> None:
        super().__init__()
        stages = [
            nn.Sequential(DoubleConvolution(before, after, normalised), nn.MaxPool2d(2))
            for before, after in itertools.pairwise((1, *channels))
        ]
        self.image_size = image_size
        self.convolutions = nn.Sequential(*stages)
        self.dense = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels[-1] * (image_size // 2 ** len(channels)) ** 2, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(inplace=True),
        )
        self.head = small_head(HIDDEN, n_outputs)

    def forward(self, images: Float[Tensor, "*batch size size"]) -> Float[Tensor, "*batch outputs"]:
        """Parameters of the guide for each image."""
        stack = images.reshape(-1, 1, *images.shape[-2:])
        return self.head(self.dense(self.convolutions(stack))).unflatten(0, images.shape[:-2])


class ConvolutionalPoseEncoder(ConvolutionalEncoder):
    """The same network, its outputs read as the logits and mean vectors of a mixture."""

    def __init__(
        self,
        image_size: int,
        components: int,
        channels: tuple[int, ...] = CHANNELS,
        normalised: bool = True,
    ) -> None:
        super().__init__(image_size, 3 * components, channels, normalised)
        self.components = components

    def forward(
        self, images: Float[Tensor, "*batch size size"]
    ) -> tuple[Float[Tensor, "*batch components"], Float[Tensor, "*batch components 2"]]:
        """Logits and vectors of each component."""
        outputs = super().forward(images)
        vectors = outputs[..., self.components :].unflatten(-1, (self.components, 2))
        return outputs[..., : self.components], vectors


class SharedEncoder(nn.Module):
    """Features of an image for several heads: convolutions, all but the first with stride 2, then two dense
    layers of 512.

    Each image is divided by its standard deviation, so that one network serves every noise level. The
    logarithm of that deviation, and what is told of the noise, join the dense layers.

    Parameters
    ----------
    size : int
        Pixels along an edge; it is halved by each convolution but the first.
    channels : tuple of int
        Output channels of each convolution.
    half : bool
        Convolve in bfloat16 while training: on a CPU that computes with it, twice as fast.
    n_told : int
        Numbers that are told of the noise of an image, as `Noise.n_told`.
    """

    def __init__(self, size: int, channels: tuple[int, ...], half: bool = False, n_told: int = 1) -> None:
        super().__init__()
        self.size, self.in_half = size, half
        layers = [
            Convolution(before, after, stride=2 if number else 1)
            for number, (before, after) in enumerate(itertools.pairwise((1, *channels)))
        ]
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        smallest = -(-size // 2 ** (len(channels) - 1))
        self.dense = nn.Sequential(
            nn.Linear(channels[-1] * smallest**2 + 1 + n_told, HIDDEN, bias=False),
            nn.LayerNorm(HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN, bias=False),
            nn.LayerNorm(HIDDEN),
            nn.ReLU(),
        )

    def forward(
        self, images: Float[Tensor, "images size size"], told: Float[Tensor, "images told"]
    ) -> Float[Tensor, "images features"]:
        """Features of each image."""
        deviation = images.flatten(1).std(dim=1).clamp(min=1e-12)
        levels = torch.cat([deviation.log()[:, None], told], dim=-1)
        half = torch.autocast(images.device.type, torch.bfloat16) if self.in_half and self.training else None
        with half or contextlib.nullcontext():
            maps = self.convolutions((images / deviation[:, None, None])[:, None])
            return self.dense(torch.cat([maps, levels.to(maps.dtype)], dim=-1)).to(images.dtype)


def small_head(n_inputs: int, n_outputs: int) -> nn.Linear:
    """A last layer that starts near zero, so that every image has the same guide at first."""
    head = nn.Linear(n_inputs, n_outputs)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head


def turn_back(
    images: Float[Tensor, "images fine fine"], pose: Float[Tensor, "*batch images 2"], size: int
) -> Float[Tensor, "*batch images size size"]:
    """Images as they would look at pose zero, on a grid of `size` pixels: at r stands what was at R(θ) r."""
    fine = images.shape[-1]
    steps = (torch.arange(size, device=images.device, dtype=images.dtype) - size // 2) * (fine / size)
    pixels = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)
    turned = pixels @ rotation_from_unit_vector(pose)[..., None, :2, :2].transpose(-2, -1)
    where = 2 * (turned + fine // 2) / (fine - 1) - 1
    stack = images.expand(*pose.shape[:-1], fine, fine).reshape(-1, 1, fine, fine)
    upright = nn.functional.grid_sample(stack, where.flatten(end_dim=-4), align_corners=True)
    return upright.view(*pose.shape[:-1], size, size)
