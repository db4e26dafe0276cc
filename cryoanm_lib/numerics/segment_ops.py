"""Reductions over rows of which each belongs to an image, and images have as many as they need."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rows = Float[Tensor, "rows"]
Owners = Int[Tensor, "rows"]


def segment_max(values: Rows, image: Owners, n_images: int) -> Float[Tensor, "images"]:
    """The largest value of each image, minus infinity where it has none."""
    low = values.new_full((n_images,), -math.inf)
    return low.scatter_reduce(0, image, values, reduce="amax")


def segment_argmax(values: Rows, image: Owners, n_images: int) -> Int[Tensor, "images"]:
    """The row of the largest value of each image, the first of equals; every image needs a row."""
    best = torch.nonzero(values == segment_max(values, image, n_images)[image])[:, 0]
    none = image.new_zeros(n_images)
    return none.scatter_reduce(0, image[best], best, reduce="amin", include_self=False)


def segment_logsumexp(values: Rows, image: Owners, n_images: int) -> Float[Tensor, "images"]:
    """log Σ exp(value) of each image.

    Examples
    --------
    >>> values, image = torch.zeros(3), torch.tensor([0, 0, 1])
    >>> segment_logsumexp(values, image, 2).exp()
    tensor([2., 1.])
    """
    top = segment_max(values, image, n_images)
    total = values.new_zeros(n_images).index_add(0, image, (values - top[image]).exp())
    return top + total.log()
