"""Multiplying the spectra of images, forward and backward, on the way from pixels to pixels."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from cryoanm_lib.pieces import pieces


def filtered(
    images: Float[Tensor, "images box box"], transfer: Float[Tensor, "images box half"]
) -> Float[Tensor, "images box box"]:
    """Images with every Fourier coefficient times a real number, which is the same at k and -k.

    There are first derivatives alone.

    Parameters
    ----------
    images : Float[Tensor, "images box box"]
        With the origin anywhere.
    transfer : Float[Tensor, "images box half"]
        In the order of `spectrum_frequencies`.

    Examples
    --------
    >>> image = torch.rand(1, 5, 5)
    >>> mean_alone = torch.zeros(1, 5, 3).index_put((torch.tensor(0),) * 3, torch.tensor(1.0))
    >>> torch.allclose(filtered(image, mean_alone), image.mean())
    True
    """
    return _Filter.apply(images, transfer)


class _Filter(torch.autograd.Function):
    """What is linear, real and the same at k and -k is its own adjoint: backward filters the slope.

    Images are worked on so few at a time that their spectra stay near the processor.
    """

    @staticmethod
    def forward(ctx, images: Float[Tensor, "images box box"], transfer: Tensor) -> Tensor:
        ctx.save_for_backward(images, transfer)
        found = torch.empty_like(images, memory_format=torch.contiguous_format)
        for some in _some(images):
            spectrum = torch.fft.rfft2(images[some])
            found[some] = torch.fft.irfft2(spectrum.mul_(transfer[some]), s=images.shape[-2:])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Float[Tensor, "images box box"]) -> tuple[Tensor, Tensor | None]:
        images, transfer = ctx.saved_tensors
        by_image = torch.empty_like(images, memory_format=torch.contiguous_format)
        by_transfer = torch.empty_like(transfer) if ctx.needs_input_grad[1] else None
        # By Parseval, with the half that is not kept.
        n_pixels, half = images.shape[-1] ** 2, transfer.shape[-1]
        twice = torch.full((half,), 2 / n_pixels, dtype=images.dtype, device=images.device)
        twice[0] = 1 / n_pixels
        if images.shape[-1] % 2 == 0:
            twice[-1] = 1 / n_pixels
        for some in _some(images):
            leaning = torch.fft.rfft2(slope[some])
            if by_transfer is not None:
                spectrum = torch.fft.rfft2(images[some])
                product = torch.view_as_real(spectrum).mul_(torch.view_as_real(leaning)).sum(-1)
                torch.mul(product, twice, out=by_transfer[some])
            by_image[some] = torch.fft.irfft2(leaning.mul_(transfer[some]), s=images.shape[-2:])
        return by_image, by_transfer


def _some(images: Float[Tensor, "images box box"]) -> list[slice]:
    """Images whose spectra are in work together."""
    return pieces(len(images), 2 * images.element_size() * images[0].numel(), images.device)
