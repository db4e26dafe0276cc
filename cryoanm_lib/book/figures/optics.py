"""Figures of a real microscope: what each part of its optics does to an image, and spectra of noise."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from cryoanm_lib.book.figures.style import COLOURS, TRUTH_COLOUR, new_figure, plain_log_ticks
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.imaging.noise_spectrum import Spectrum

_COLUMNS = 3


def plot_optics(cases: Mapping[str, tuple[ForwardModel, Values]]) -> Figure:
    """For each case, by its name, the middle of the image without noise, and the transfer of every frequency.

    The zero frequency is in the middle of a transfer, the edge of the box at its edge; colours end at ±1.
    """
    blocks = -(-len(cases) // _COLUMNS)
    figure, axes = new_figure(2 * blocks, _COLUMNS, height=0.2 + 4.1 * blocks)
    for ax in axes.flat:
        ax.set_axis_off()
    for number, (name, (model, latents)) in enumerate(cases.items()):
        block, column = divmod(number, _COLUMNS)
        image = model.images(latents)[0].numpy()
        line = (torch.arange(model.box_size) - model.box_size // 2).to(model.reference) / model.box_size
        frequencies = torch.cartesian_prod(line, line).flip(-1)
        transfer = model.transfer.values(latents, frequencies)[0].view(len(line), len(line))
        span, edge = abs(image).max(), model.box_size // 5
        axes[2 * block, column].imshow(image[edge:-edge, edge:-edge], vmin=-span, vmax=span, origin="lower")
        axes[2 * block, column].set_title(name, fontsize=10)
        axes[2 * block + 1, column].imshow(transfer.numpy(), vmin=-1, vmax=1, cmap="RdBu_r", origin="lower")
    return figure


def plot_noise_spectra(
    truth: Float[Tensor, "shells"], found: Mapping[str, Spectrum], size: float, highest: int
) -> Figure:
    """Power of noise against detail, and what estimates of it are off by, with two standard errors.

    Parameters
    ----------
    truth : Float[Tensor, "shells"]
        S at |k| = 0 … N//2.
    found : mapping of str to Spectrum
        Estimates by their names.
    size : float
        Of the box in Å.
    highest : int
        The last shell that is shown.
    """
    figure, axes = new_figure(2, 1, height=4.6, sharex=True)
    shells = torch.arange(1, highest + 1)
    at = (shells / size).numpy()
    axes[0, 0].semilogy(at, truth[shells].numpy(), color=TRUTH_COLOUR, label="truth")
    for number, (name, spectrum) in enumerate(found.items()):
        colour, ratio = COLOURS[number], spectrum.power[shells] / truth[shells]
        off, error = 100 * (ratio - 1), 200 * spectrum.error[shells] / truth[shells]
        axes[0, 0].semilogy(at, spectrum.power[shells].numpy(), color=colour, linestyle=":", label=name)
        axes[1, 0].plot(at, off.numpy(), color=colour, label=name)
        low, high = (off - error).numpy(), (off + error).numpy()
        axes[1, 0].fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
    axes[1, 0].axhline(0, color=TRUTH_COLOUR, linewidth=1)
    axes[0, 0].set_ylabel("power S")
    axes[1, 0].set(xlabel="spatial frequency (1/Å)", ylabel="off by (%)")
    plain_log_ticks(axes[0, 0], "y")
    axes[0, 0].legend()
    return figure
