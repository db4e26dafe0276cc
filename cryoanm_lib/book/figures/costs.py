"""What computing costs: growth curves, and where a training step spends its time."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cryoanm_lib.book.costs import Growth
from cryoanm_lib.book.figures.style import COLOURS, GREY, new_figure

_MARKERS = "osD^vPX*<>"  # as many as there are colours


def plot_growth(panels: Mapping[str, Sequence[Growth]]) -> Figure:
    """Time against size on logarithmic scales, one panel for each kind of size, by what its sizes are."""
    figure, axes = new_figure(len(panels), height=2.6 * len(panels))
    for ax, (size, curves) in zip(axes[:, 0], panels.items(), strict=True):
        for curve, colour, marker in zip(curves, COLOURS, _MARKERS, strict=False):
            exponent = "" if math.isnan(curve.exponent) else f"  {curve.exponent:.1f}"
            milliseconds = [1e3 * seconds for seconds in curve.seconds]
            look = {"color": colour, "markersize": 4.5, "label": curve.name + exponent}
            ax.loglog(curve.sizes, milliseconds, marker + "-", **look)
        sizes = sorted({size for curve in curves for size in curve.sizes})
        ax.xaxis.set_major_locator(FixedLocator(sizes))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.tick_params(axis="x", rotation=30 if sizes[-1] > 1000 else 0)
        ax.set(xlabel=size, ylabel="time (ms)")
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="exponent", alignment="left")
        ax.grid(color="0.9", lw=0.6)
        ax.set_axisbelow(True)
    return figure


def plot_steps(recipes: Mapping[str, Mapping[str, float]]) -> Figure:
    """A bar for each recipe: the shares of kinds of work in the time of a training step.

    Of each recipe, what `step_shares` returns; the last kind is grey.
    """
    figure, axes = new_figure(height=1.5 + 0.75 * len(recipes))
    ax = axes[0, 0]
    totals = [sum(shares.values()) for shares in recipes.values()]
    labels = [f"{name}\n{total:,.0f} ms" for name, total in zip(recipes, totals, strict=True)]
    kinds = list(next(iter(recipes.values())))
    own = [colour for colour in COLOURS if colour != COLOURS[7]]  # the palette's grey is for the rest
    colours = [*own[: len(kinds) - 1], GREY]
    left = [0.0] * len(recipes)
    for kind, colour in zip(kinds, colours, strict=True):
        widths = [100 * shares[kind] / total for shares, total in zip(recipes.values(), totals, strict=True)]
        ax.barh(labels, widths, left=left, color=colour, label=kind, height=0.62)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    ax.invert_yaxis()
    ax.set(xlabel="share of a step (%)", xlim=(0, 100))
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
