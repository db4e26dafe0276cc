"""Figures of the structure and its elastic network."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cryoanm_lib.book.figures.style import COLOURS, GREY, amplitude_label, new_figure, rmsd_axis
from cryoanm_lib.molecule.anm import NormalModes
from cryoanm_lib.molecule.structure import Structure

# Which coordinates run to the right and up, and what one looks along.
VIEWS = ((0, 1, "along z"), (2, 1, "along x"))
AXIS_NAMES = ("x (Å)", "y (Å)", "z (Å)")


def draw_trace(
    axes: Axes, coordinates: Float[Tensor, "atoms 3"], view: tuple[int, int, str] = VIEWS[0], **style
) -> None:
    """Draw the chain of pseudo-atoms, seen along an axis, in ångström with equal aspect."""
    right, up, _ = view
    options = {"color": GREY, "linewidth": 1.2, "marker": "o", "markersize": 1.8} | style
    axes.plot(coordinates[:, right].numpy(), coordinates[:, up].numpy(), **options)
    axes.set_aspect("equal")


def _draw_arrows(
    axes: Axes,
    start: Float[Tensor, "atoms 3"],
    displacement: Float[Tensor, "atoms 3"],
    view: tuple[int, int, str],
    colour: str,
    width: float = 0.012,
) -> None:
    shown = list(view[:2])
    # An arrow is not part of the data limits, its end is.
    axes.plot(*(start + displacement)[:, shown].T.numpy(), linestyle="none")
    places = (*start[:, shown].T.numpy(), *displacement[:, shown].T.numpy())
    look = {"angles": "xy", "scale_units": "xy", "scale": 1, "headwidth": 3.5, "headlength": 4, "zorder": 3}
    axes.quiver(*places, width=width, color=colour, **look)


def plot_modes(structure: Structure, modes: NormalModes, amplitude: float = 30.0) -> Figure:
    """The reference with the displacement of every pseudo-atom along its three softest modes, from two sides.

    The amplitude in Å is the length of the displacement, exaggerated so that it can be seen.
    """
    shown = modes.vectors[:3]
    figure, axes = new_figure(len(VIEWS), len(shown), height=6.3, sharey=True, sharex="row")
    for row, view in zip(axes, VIEWS, strict=True):
        for mode, (ax, vector) in enumerate(zip(row, shown, strict=True)):
            draw_trace(ax, structure.coordinates, view)
            _draw_arrows(ax, structure.coordinates, amplitude * vector, view, COLOURS[mode])
            ax.set_xlabel(AXIS_NAMES[view[0]])
        row[0].set_ylabel(f"seen {view[2]}\n{AXIS_NAMES[view[1]]}")
    for mode, ax in enumerate(axes[0]):
        ax.set_title(f"mode {mode + 1}\nλ = {modes.eigenvalues[mode].item():.3g} γ")
    label = amplitude_label(amplitude, len(structure)).replace("+", "").replace("\n", ", ")
    figure.suptitle(f"arrows: {label}")
    return figure


def plot_swings(structure: Structure, modes: NormalModes, furthest: Float[Tensor, "modes"]) -> Figure:
    """The chain at both ends of a swing in Å along the three softest modes, and the reference between."""
    shown = modes.vectors[:3]
    figure, (row,) = new_figure(1, len(shown), height=3.2, sharex=True, sharey=True)
    view = VIEWS[1]
    for mode, (ax, vector) in enumerate(zip(row, shown, strict=True)):
        for sign, colour in ((-1, COLOURS[0]), (1, COLOURS[1])):
            end = structure.coordinates + sign * furthest[mode] * vector
            draw_trace(ax, end, view, color=colour, label="−α" if sign < 0 else "+α")
        draw_trace(ax, structure.coordinates, view, label="reference")
        ax.set(title=f"mode {mode + 1}\nα = {furthest[mode]:.0f} Å", xlabel=AXIS_NAMES[view[0]])
    row[0].set_ylabel(AXIS_NAMES[view[1]])
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def plot_spectrum(eigenvalues: Float64[Tensor, "dof"], n_zero: int) -> Figure:
    """All eigenvalues of a Hessian, ascending, on logarithmic axes: the zero modes and the gap above them.

    They are in units of the spring constant γ; those of zero modes may come out negative.
    """
    figure, ((ax,),) = new_figure(height=3.4)
    number = torch.arange(1, len(eigenvalues) + 1)
    # Rounding can give an exact zero, which has no place on a logarithmic axis.
    magnitude = eigenvalues.abs().clamp(min=torch.finfo(torch.float64).tiny)
    rigid, internal = slice(None, n_zero), slice(n_zero, None)
    ax.loglog(number[rigid], magnitude[rigid], "o", color=COLOURS[3], label=f"{n_zero} rigid-body motions")
    ax.loglog(number[internal], magnitude[internal], ".", color=COLOURS[0], label="internal modes")
    ax.set(xlabel="eigenvalue, in ascending order", ylabel="|λ| (γ)")
    ax.legend(loc="center right")
    return figure


def plot_spring_energy(
    amplitudes: Float[Tensor, "points"],
    exact: Float[Tensor, "modes points"],
    eigenvalues: Float[Tensor, "modes"],
    n_atoms: int,
) -> Figure:
    """Energy of all springs along each mode in γ Å², beside the parabola λα²/2 that replaces it.

    Amplitudes α are in Å, eigenvalues λ in γ; the number of pseudo-atoms is for the RMSD.
    """
    figure, ((ax,),) = new_figure(height=3.8)
    for mode, (energy, stiffness) in enumerate(zip(exact, eigenvalues, strict=True)):
        colour = COLOURS[mode]
        ax.plot(amplitudes, energy, color=colour, label=f"mode {mode + 1}")
        ax.plot(amplitudes, stiffness * amplitudes.square() / 2, "--", color=colour, linewidth=1.2)
    ax.plot([], [], "-", color="black", label="springs")
    ax.plot([], [], "--", color="black", linewidth=1.2, label="λα²/2")
    ax.set(xlabel="amplitude α (Å)", ylabel="energy (γ Å²)", ylim=(0, None))
    ax.legend(ncols=2, loc="upper center")
    rmsd_axis(ax, n_atoms, along="x")
    return figure


def plot_fluctuations(structure: Structure, modes: NormalModes) -> Figure:
    """Share of each residue in the squared displacement of the three softest modes, one panel a mode."""
    shares = modes.vectors[:3].square().sum(dim=-1)
    figure, axes = new_figure(len(shares), 1, height=1.2 + 1.25 * len(shares), sharex=True, sharey=True)
    for mode, (ax, share) in enumerate(zip(axes[:, 0], shares, strict=True)):
        ax.fill_between(structure.residue_numbers, 100 * share.numpy(), color=COLOURS[mode], alpha=0.35)
        ax.plot(structure.residue_numbers, 100 * share.numpy(), color=COLOURS[mode], label=f"mode {mode + 1}")
        ax.legend(loc="upper right", handlelength=1)
    axes[0, 0].set_ylim(0, 102 * shares.max().item())
    axes[-1, 0].set_xlabel("residue number")
    figure.supylabel("share of the squared displacement (%)", fontsize=11)
    return figure


def plot_transition(
    opened: Float[Tensor, "atoms 3"], closed: Float[Tensor, "atoms 3"], overlaps: Sequence[float]
) -> Figure:
    """A known motion between two structures in Å, superposed, and how much of it each mode holds.

    Overlaps are those of the modes of `opened` with the displacement, softest mode first.
    """
    figure, ((left, right),) = new_figure(1, 2, height=3.5, width_ratios=(1.2, 1))
    view = VIEWS[1]
    draw_trace(left, opened, view, label="open")
    draw_trace(left, closed, view, color=COLOURS[0], label="closed")
    _draw_arrows(left, opened, closed - opened, view, COLOURS[1], width=0.005)
    left.set(xlabel=AXIS_NAMES[view[0]], ylabel=AXIS_NAMES[view[1]])
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1, handlelength=1.5)
    numbers = list(range(1, len(overlaps) + 1))
    together = torch.tensor(overlaps).square().cumsum(0).sqrt()
    right.bar(numbers, overlaps, color=COLOURS[1], label="one mode")
    right.plot(numbers, together, "o-", color="black", markersize=4, label="all modes up to it")
    right.set(xlabel="mode", ylabel="overlap with the motion", ylim=(0, 1.05), xticks=numbers)
    right.legend(loc="upper right", bbox_to_anchor=(1, 0.74), handlelength=1.2)
    return figure
