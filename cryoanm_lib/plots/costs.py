"""What computing costs: growth curves, and where a training step spends its time."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from cryoanm_lib.costs import Growth
from cryoanm_lib.plots.style import COLOURS, GREY, new_figure

_MARKERS = "osD^v"


def plot_growth(panels: Mapping[str, Sequence[Growth]]) -> Figure:
    """Time against size on logarithmic scales, one panel for each kind of size.

    Parameters
    ----------
    panels : mapping of str to sequence of Growth
        The curves of each panel by what its sizes are.
    """
    figure, axes = new_figure(len(panels), height=2.7 * len(panels))
    for ax, (size, curves) in zip(axes[:, 0], panels.items(), strict=True):
        for curve, colour, marker in zip(curves, COLOURS, _MARKERS, strict=False):
            grows = "" if math.isnan(curve.exponent) else f", $\\sim$ size$^{{{curve.exponent:.1f}}}$"
            milliseconds = [1e3 * seconds for seconds in curve.seconds]
            ax.loglog(curve.sizes, milliseconds, marker + "-", color=colour, ms=4.5, label=curve.name + grows)
        ax.set(xlabel=size, ylabel="time (ms)")
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        ax.grid(color="0.9", lw=0.6)
    return figure


def plot_steps(recipes: Mapping[str, Mapping[str, float]]) -> Figure:
    """A bar for each recipe: milliseconds of a training step by kind of work.

    Parameters
    ----------
    recipes : mapping of str to mapping of str to float
        Of each recipe, what `step_shares` returns.
    """
    figure, axes = new_figure(height=1.3 + 0.75 * len(recipes))
    ax = axes[0, 0]
    kinds = list(next(iter(recipes.values())))
    colours = [*plt.get_cmap("tab20")(range(0, 2 * (len(kinds) - 1), 2)), GREY]
    left = [0.0] * len(recipes)
    for kind, colour in zip(kinds, colours, strict=True):
        widths = [shares[kind] for shares in recipes.values()]
        ax.barh(list(recipes), widths, left=left, color=colour, label=kind, height=0.62)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    ax.invert_yaxis()
    ax.set(xlabel="time of one step (ms)")
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
