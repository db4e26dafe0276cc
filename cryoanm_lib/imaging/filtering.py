"""Multiplying the spectra of images, forward and backward, on the way from pixels to pixels."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from cryoanm_lib.numerics.batching import pieces


def filtered(
    images: Float[Tensor, "images box box"], transfer: Float[Tensor, "images box half"]
) -> Float[Tensor, "images box box"]:
    """Images with every Fourier coefficient times a real number, which is the same at k and -k.

    The numbers stand in the order of `spectrum_frequencies`, and the origin of images is anywhere.
    Coefficients that the crop Π_N does not keep, the unpaired Nyquist row and column of an even box, become
    zero. There are first derivatives alone.

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
        for some in _image_pieces(images):
            spectrum = _spectrum(images[some]).mul_(transfer[some])
            torch.fft.irfft2(spectrum, s=images.shape[-2:], out=found[some])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Float[Tensor, "images box box"]) -> tuple[Tensor, Tensor | None]:
        images, transfer = ctx.saved_tensors
        by_image = torch.empty_like(images, memory_format=torch.contiguous_format)
        by_transfer = torch.empty_like(transfer) if ctx.needs_input_grad[1] else None
        # By Parseval: what is not at k_x = 0 has a twin in the half of the plane that is not stored.
        n_pixels = images.shape[-1] ** 2
        weight = transfer.new_full((transfer.shape[-1],), 2 / n_pixels)
        weight[0] = 1 / n_pixels
        for some in _image_pieces(images):
            leaning = _spectrum(slope[some])
            if by_transfer is not None:
                spectrum, product = _spectrum(images[some]), by_transfer[some]
                torch.mul(spectrum.real, leaning.real, out=product)
                product.addcmul_(spectrum.imag, leaning.imag).mul_(weight)
            torch.fft.irfft2(leaning.mul_(transfer[some]), s=images.shape[-2:], out=by_image[some])
        return by_image, by_transfer


def _spectrum(images: Float[Tensor, "images box box"]) -> Complex[Tensor, "images box half"]:
    """Coefficients without those of the unpaired Nyquist frequency."""
    spectrum, box_size = torch.fft.rfft2(images), images.shape[-1]
    if box_size % 2 == 0:
        spectrum[:, box_size // 2] = 0
        spectrum[:, :, box_size // 2] = 0
    return spectrum


def _image_pieces(images: Float[Tensor, "images box box"]) -> list[slice]:
    """Images whose spectra are in work together."""
    return pieces(len(images), 2 * images.element_size() * images.shape[-2] * images.shape[-1], images.device)
