"""The networks that read an image: the paper's CNN–MLP (Fig. A1)."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: Widths of the three double convolutions; the paper states none.
CHANNELS = (16, 32, 64)

#: Width of the two dense layers (the paper's).
HIDDEN = 512


class DoubleConvolution(nn.Sequential):
    """Twice: a 3 × 3 convolution, batch normalisation and a rectifier."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )


class Encoder(nn.Module):
    """Three double convolutions with pooling, then two dense layers of 512, then a linear head."""

    def __init__(self, image_size: int, n_outputs: int, channels: tuple[int, ...] = CHANNELS) -> None:
        """Build a network for square images.

        Parameters
        ----------
        image_size : int
            Pixels along an edge; it is halved by each double convolution.
        n_outputs : int
            Length of the parameter vector that the head returns.
        channels : tuple of int
            Output channels of each double convolution.
        """
        super().__init__()
        widths = (1, *channels)
        stages = [
            nn.Sequential(DoubleConvolution(before, after), nn.MaxPool2d(2))
            for before, after in itertools.pairwise(widths)
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
        self.head = nn.Linear(HIDDEN, n_outputs)
        # A head that starts near zero gives every image the same guide at first.
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        # Convolutions run two to three times faster on a CPU with the channels last in memory.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Float[Tensor, "batch size size"]) -> Float[Tensor, "batch outputs"]:
        """Parameters of the guide for each image."""
        return self.head(self.dense(self.convolutions(images.unsqueeze(1))))
