"""Numbers as tensors where the computing is done: made once, and not sent to a GPU at every step."""

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def constant(values: float | Sequence[float], like: Float[Tensor, "..."]) -> Float[Tensor, "*shape"]:
    """Numbers in the dtype and on the device of a tensor; not to be changed in place.

    Examples
    --------
    >>> constant((1.0, 2.0), torch.zeros(3, dtype=torch.float64))
    tensor([1., 2.], dtype=torch.float64)
    """
    return _constant(values if isinstance(values, (int, float)) else tuple(values), like.dtype, like.device)


@functools.lru_cache(maxsize=256)
def _constant(
    values: float | tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "*shape"]:
    return torch.tensor(values, dtype=dtype, device=device)
