"""Projections made in space: the plain sum, and the paper's truncated patches. All lengths are in pixels."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

#: Half the edge of the paper's patch of 6 σ_a × 6 σ_a, in σ_a.
PAPER_REACH = 3.0


def separable_image(
    positions: Float[Tensor, "*batch atoms 2"], box_size: int, atom_width: float
) -> Float[Tensor, "*batch box box"]:
    """The exact image, as a product of one-dimensional Gaussians summed over the atoms.

    Parameters as of `fourier_coefficients`.

    Examples
    --------
    >>> image = separable_image(torch.tensor([[0.0, 0.0], [2.0, 1.0]]), box_size=8, atom_width=0.3)
    >>> image.round().nonzero().tolist()
    [[4, 4], [5, 6]]
    """
    pixels = torch.arange(box_size, device=positions.device, dtype=positions.dtype) - box_size // 2
    offsets = (positions.unsqueeze(-1) - pixels) / atom_width
    along_x, along_y = (-0.5 * offsets.square()).exp().unbind(dim=-2)
    return along_y.transpose(-2, -1) @ along_x


def sparse_image(
    positions: Float[Tensor, "*batch atoms 2"], box_size: int, atom_width: float, reach: float = PAPER_REACH
) -> Float[Tensor, "*batch box box"]:
    """The paper's image (§3.4, A.3.3): each atom in a truncated patch, summed by a sparse COO tensor.

    A patch holds the pixels within a reach of ρ σ_a along x and y, 5 × 5 of them for the paper's ρ = 3 and
    σ_a = 0.8. What lies beyond is less than exp(-ρ²/2) of an atom's peak, for the paper's 0.011. Pixels
    outside the box are dropped.

    Other parameters as of `fourier_coefficients`.
    """
    flat = positions[None].flatten(end_dim=-3)
    # the pixel nearest to an atom is half a pixel away at most
    radius = math.ceil(reach * atom_width - 0.5)
    steps = torch.arange(-radius, radius + 1, device=flat.device)
    nearest = flat.detach().round().long()[..., None] + steps
    along_x, along_y = (-0.5 * ((nearest - flat[..., None]) / atom_width).square()).exp().unbind(dim=-2)
    values = along_y[..., :, None] * along_x[..., None, :]
    columns, rows = (nearest + box_size // 2).unbind(dim=-2)
    batch = torch.arange(len(flat), device=flat.device)[:, None, None, None]
    batch, rows, columns = torch.broadcast_tensors(batch, rows[..., :, None], columns[..., None, :])
    inside = (rows >= 0) & (rows < box_size) & (columns >= 0) & (columns < box_size)
    indices = torch.stack([batch[inside], rows[inside], columns[inside]])
    image = torch.sparse_coo_tensor(
        indices, values[inside], (len(flat), box_size, box_size), check_invariants=False
    )
    return image.to_dense().reshape(*positions.shape[:-2], box_size, box_size)
