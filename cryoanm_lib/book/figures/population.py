"""Figures of a population: what is made of it from images, beside what it is, and what cannot be told."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float64
from matplotlib.figure import Figure
from torch import Tensor

from cryoanm_lib.book.figures.style import COLOURS, GREY, TRUTH_COLOUR, new_figure, plain_log_ticks

_Line = Float64[Tensor, "points"]


def plot_densities(
    at: _Line,
    truth: _Line,
    pile: _Line,
    found: Mapping[str, _Line],
    band: tuple[_Line, _Line],
    energy: bool = False,
) -> Figure:
    """Densities of an amplitude: the truth, a pile of posteriors, and estimates, the first with its band.

    Parameters
    ----------
    at, truth, pile : Float64[Tensor, "points"]
        Where, and the densities there.
    found : mapping of str to Float64[Tensor, "points"]
        Estimates by their labels.
    band : tuple of two Float64[Tensor, "points"]
        Between what the first is.
    energy : bool
        Draw -log p in kT beside them, from the lowest of each.
    """
    figure, axes = new_figure(1, 1 + energy, height=2.8)
    looks = ((TRUTH_COLOUR, ":"), (GREY, "-"), (COLOURS[0], "-"), (COLOURS[1], "--"))
    lines = {"truth": truth, "pile of posteriors": pile, **found}
    first = next(iter(found.values())).max()
    for number, ax in enumerate(axes[0]):
        ends = [(first / part).log() if number else part for part in band]
        ax.fill_between(
            at.numpy(), *(part.numpy() for part in ends), color=COLOURS[0], alpha=0.25, linewidth=0
        )
        for (label, density), (colour, style) in zip(lines.items(), looks, strict=False):
            values = (density.max() / density).log() if number else density
            ax.plot(at.numpy(), values.numpy(), style, color=colour, label=None if number else label)
        ax.set_xlabel("amplitude (Å)")
    axes[0, 0].set(ylabel="density (1/Å)", ylim=(0, None))
    if energy:
        axes[0, 1].set(ylabel="-log density (kT)", ylim=(-0.3, 6))
    figure.legend(loc="outside upper center", ncol=2, fontsize=9)
    return figure


def plot_told(
    particles: Sequence[float],
    separation: Mapping[str, Sequence[float]],
    share: Mapping[str, Sequence[float]],
) -> Figure:
    """The smallest separation of two equal states, and the smallest share of one, by number of particles."""
    figure, axes = new_figure(1, 2, height=2.8)
    for ax, lines in zip(axes[0], (separation, share), strict=True):
        for number, (label, values) in enumerate(lines.items()):
            ax.plot(particles, values, ".-", color=COLOURS[number], label=label if ax is axes[0, 0] else None)
        ax.set(xscale="log", yscale="log", xlabel="particles")
        plain_log_ticks(ax, "y")
    axes[0, 0].set_ylabel("smallest separation (Å)")
    axes[0, 1].set_ylabel("smallest share")
    figure.legend(loc="outside upper center", ncol=3, fontsize=9)
    return figure


def plot_moved(
    residues: Sequence[int],
    truth: Float64[Tensor, "atoms 3"],
    found: Float64[Tensor, "atoms 3"],
    error: Float64[Tensor, "atoms"],
) -> Figure:
    """How far a reference was off at each residue, how far it was moved, and what is left beside its error.

    Parameters
    ----------
    residues : sequence of int
        Number of each atom's residue.
    truth, found : Float64[Tensor, "atoms 3"]
        Displacements in Å.
    error : Float64[Tensor, "atoms"]
        What is claimed of the length of the difference, root mean square in Å.
    """
    figure, axes = new_figure(2, 1, height=4.0, sharex=True)
    above, below = axes[:, 0]
    above.plot(residues, found.norm(dim=1).numpy(), color=COLOURS[0], label="found")
    above.plot(residues, truth.norm(dim=1).numpy(), ":", color=TRUTH_COLOUR, label="truth")
    below.fill_between(residues, error.numpy(), color=COLOURS[0], alpha=0.25, linewidth=0, label="claimed")
    below.plot(residues, (found - truth).norm(dim=1).numpy(), color="0.3", label="left")
    for ax, label in ((above, "displacement (Å)"), (below, "error (Å)")):
        ax.set(ylabel=label, ylim=(0, None))
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    below.set_xlabel("residue number")
    figure.align_ylabels()
    return figure
