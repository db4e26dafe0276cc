"""Figures of a molecule as it is: what coarse models draw of it, how it bends, and where a model is wrong."""

from collections.abc import Mapping

import torch
from jaxtyping import Complex, Float
from matplotlib.figure import Figure
from torch import Tensor

from cryoanm_lib.book.figures.style import COLOURS, GREY, TRUTH_COLOUR, new_figure
from cryoanm_lib.checks.difference_map import DifferenceMap
from cryoanm_lib.imaging.radial_noise import shell_hats
from cryoanm_lib.inference.luzzati import Luzzati
from cryoanm_lib.numerics.fourier import coefficients_to_image


def plot_coarse_images(images: Mapping[str, Complex[Tensor, "kept"]], resolution: int) -> Figure:
    """One molecule as each model draws it, and below what it draws less than the first, at the same greys."""
    figure, axes = new_figure(2, len(images), height=3.5)
    pictures = {name: coefficients_to_image(c[None], resolution)[0].numpy() for name, c in images.items()}
    first, edge = next(iter(pictures.values())), resolution // 6
    span = abs(first).max()
    for column, (name, picture) in enumerate(pictures.items()):
        for row, shown in enumerate((picture, first - picture)):
            axes[row, column].imshow(shown[edge:-edge, edge:-edge], vmin=-span, vmax=span)
            axes[row, column].set(xticks=[], yticks=[])
        axes[0, column].set_title(name, fontsize=10)
    axes[0, 0].set_ylabel("image", fontsize=10)
    axes[1, 0].set_ylabel("what is missing", fontsize=10)
    return figure


def plot_agreement(
    images: Mapping[str, Complex[Tensor, "images kept"]], resolution: int, size: float
) -> Figure:
    """Correlation of each model's images with those of the first, in rings of frequencies.

    The box is so many Å wide.
    """
    figure, axes = new_figure(1, 1, height=3.0)
    hats = shell_hats(resolution, resolution // 2 + 1)[:, 1:]
    shells = torch.arange(1, hats.shape[1] + 1) / size
    first, *others = images.values()
    for number, (name, made) in enumerate(zip(list(images)[1:], others, strict=True)):
        shared = (first.conj() * made).real.double().sum(0) @ hats
        powers = [each.abs().double().square().sum(0) @ hats for each in (first, made)]
        correlation = shared / (powers[0] * powers[1]).sqrt()
        axes[0, 0].plot(shells.numpy(), correlation.numpy(), color=COLOURS[number], label=name)
    axes[0, 0].set(xlabel="spatial frequency (1/Å)", ylabel="correlation with all atoms", ylim=(0, 1.03))
    axes[0, 0].legend()
    return figure


def plot_bonds(
    amplitudes: Float[Tensor, "steps"], lengths: Mapping[str, Float[Tensor, "steps bonds"]]
) -> Figure:
    """By how much bonds change as a molecule bends: the worst of them, and dotted the root mean square."""
    figure, axes = new_figure(1, 1, height=3.0)
    middle = len(amplitudes) // 2
    for number, (name, of) in enumerate(lengths.items()):
        change = (of - of[middle]).abs()
        colour, x = COLOURS[number], amplitudes.numpy()
        axes[0, 0].plot(x, change.amax(1).numpy(), color=colour, label=f"{name}, worst")
        axes[0, 0].plot(x, change.square().mean(1).sqrt().numpy(), color=colour, linestyle=":")
    axes[0, 0].set(xlabel="amplitude (Å)", ylabel="change of a bond (Å)")
    axes[0, 0].legend()
    return figure


def plot_luzzati(found: Mapping[str, Luzzati], size: float, highest: int) -> Figure:
    """D of some models against detail, with two standard errors; the box is so many Å wide."""
    figure, axes = new_figure(1, 1, height=3.0)
    shells = torch.arange(1, highest + 1)
    at = (shells / size).numpy()
    axes[0, 0].axhline(1, color=GREY, linewidth=0.8)
    for number, (name, each) in enumerate(found.items()):
        middle, error = each.factor[shells], 2 * each.error[shells]
        axes[0, 0].plot(at, middle.numpy(), color=COLOURS[number], label=name)
        low, high = (middle - error).numpy(), (middle + error).numpy()
        axes[0, 0].fill_between(at, low, high, color=COLOURS[number], alpha=0.2, linewidth=0)
    axes[0, 0].set(xlabel="spatial frequency (1/Å)", ylabel="D", ylim=(0, 1.3))
    axes[0, 0].legend()
    return figure


def plot_states(
    truth: Float[Tensor, "images"],
    found: Mapping[str, tuple[Float[Tensor, "images"], Float[Tensor, "images"]]],
) -> Figure:
    """How far images are found to be along a path, with two deviations, against where they are."""
    figure, axes = new_figure(1, len(found), height=3.2, sharey=True)
    for number, (ax, (name, (middle, deviation))) in enumerate(zip(axes[0], found.items(), strict=True)):
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        ax.errorbar(
            *(truth.numpy(), middle.numpy(), 2 * deviation.numpy()),
            **{"fmt": ".", "color": COLOURS[number], "elinewidth": 1.0},
        )
        ax.set_xlabel("state")
        ax.set_title(name, fontsize=10)
    axes[0, 0].set_ylabel("as found")
    return figure


def plot_difference(
    found: Mapping[str, DifferenceMap], atoms: Float[Tensor, "atoms 3"], side: Tensor, half: float
) -> Figure:
    """Difference maps in posterior deviations, the highest along the line of sight; dots are atoms.

    Parameters
    ----------
    found : mapping of str to DifferenceMap
        By the model's name.
    atoms, side : Float[Tensor, "atoms 3"], Bool[Tensor, "atoms"]
        Where atoms are, and which belong to side chains; those of the backbone are grey.
    half : float
        Å from the middle to the edge of what is shown.
    """
    figure, axes = new_figure(1, len(found), height=3.4, sharey=True)
    for ax, (name, each) in zip(axes[0], found.items(), strict=True):
        size = len(each.density)
        low = (-(size // 2) - 0.5) * each.pixel_size  # the middle of voxel size // 2 is the origin
        high = low + size * each.pixel_size
        highest = (each.density / each.error.min().clamp(min=1e-300)).amax(0).numpy()
        shown = ax.imshow(
            *(highest,), origin="lower", extent=(low, high, low, high), vmin=0, vmax=6, cmap="Blues"
        )
        for which, colour in ((~side, GREY), (side, TRUTH_COLOUR)):
            x, y, _ = atoms[which].T.numpy()
            ax.plot(x, y, ".", markersize=0.8, color=colour, rasterized=True)
        ax.set(xlim=(-half, half), ylim=(-half, half), xlabel="x (Å)")
        ax.set_title(name, fontsize=10)
    axes[0, 0].set_ylabel("y (Å)")
    figure.colorbar(shown, ax=axes, shrink=0.8, label="deviations")
    return figure
