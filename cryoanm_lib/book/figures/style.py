"""One look for all figures: readable on a phone, in colours that a colour-blind reader can tell apart."""

import sys

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from numpy import ndarray

#: Width of every figure in inches: 11 points here are 9 pixels on a screen 390 pixels wide.
WIDTH = 6.2

#: Colour-blind safe, in the order of use.
COLOURS = tuple(sns.color_palette("colorblind").as_hex())

#: Traces that serve as a reference.
GREY = "0.6"

#: The truth, wherever it is marked.
TRUTH_COLOUR = COLOURS[3]


def set_style() -> None:
    """Give Matplotlib the style of the book; every notebook calls it once."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette="colorblind",
        font="DejaVu Sans",
        rc={
            "figure.constrained_layout.use": True,
            "figure.dpi": 150,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "font.size": 11,
            "axes.labelsize": 11,
            "axes.titlesize": 11,
            "figure.titlesize": 11,
            "legend.fontsize": 10,
            "legend.title_fontsize": 10,
            "legend.frameon": False,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "lines.linewidth": 1.6,
            "axes.linewidth": 0.8,
            "xtick.major.width": 0.8,
            "ytick.major.width": 0.8,
            "svg.hashsalt": "cryoanm",  # equal figures are equal files
            "image.cmap": "gray",
            "image.interpolation": "nearest",
        },
    )
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        # Sharp at every size, and vector in print; what is dense is rasterised within, at `figure.dpi`.
        set_matplotlib_formats("svg")


def new_figure(rows: int = 1, columns: int = 1, height: float = 3.4, **options) -> tuple[Figure, ndarray]:
    """A figure of the common width that pyplot has already forgotten, and its axes as a 2-D array.

    A notebook then shows it where a cell returns it, and not a second time at the end of the cell.
    """
    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False, **options
    )
    plt.close(figure)
    return figure, axes


def new_panels(count: int, columns: int, extra: float, each: float, **options) -> tuple[Figure, ndarray]:
    """As `new_figure`, for so many panels, each some inches high and some for all; other places are empty."""
    rows = -(-count // columns)
    figure, axes = new_figure(rows, columns, height=extra + each * rows, **options)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, axes


def plain_log_ticks(axes: Axes, along: str, most: int = 5) -> None:
    """Numbers such as 0.1 and 20 on logarithmic axes, "x", "y" or "xy": a few, decades before others."""
    for axis in (getattr(axes, f"{name}axis") for name in along):
        low, high = sorted(axis.get_view_interval())
        for steps in ((1, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
            ticks = [step * 10.0**decade for decade in range(-6, 7) for step in steps]
            ticks = [tick for tick in ticks if low <= tick <= high]
            if len(ticks) <= most:
                break
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def rmsd_axis(axes: Axes, n_atoms: int, along: str) -> None:
    """A second scale beside an amplitude axis, "x" or "y", that says what RMSD α/√n it stands for."""
    scale = n_atoms**0.5
    convert = (lambda amplitude: amplitude / scale, lambda rmsd: rmsd * scale)
    name = r"RMSD $\alpha/\sqrt{n}$ (Å)"
    if along == "x":
        axes.secondary_xaxis("top", functions=convert).set_xlabel(name)
    else:
        axes.secondary_yaxis("right", functions=convert).set_ylabel(name)


def amplitude_label(amplitude: float, n_atoms: int) -> str:
    """An amplitude in Å with the RMSD that it means."""
    signed = f"{amplitude:+.3g}".replace("-", "−") if amplitude else "0"
    return f"α = {signed} Å\nRMSD {abs(amplitude) / n_atoms**0.5:.2f} Å"
