"""Figures of the likelihood as a function of the latents."""

import math
from collections.abc import Mapping, Sequence

import seaborn as sns
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from cryoanm_lib.book.figures.style import COLOURS, TRUTH_COLOUR, new_figure, new_panels, rmsd_axis
from cryoanm_lib.book.landscapes import NEIGHBOURHOOD_DEGREES, blurred, relative_height
from cryoanm_lib.imaging.latents import LATENTS

#: Beyond so many standard deviations from the maximum the planes are of one colour.
MOST_DEVIATIONS = 30.0

# The bar of colours below all panels.
_BAR = {"location": "bottom", "aspect": 40, "shrink": 0.9}

Along = Mapping[str, Float[Tensor, "points"]]


def _in_plot_units(name: str, value: float) -> float:
    return math.degrees(value) if name == "pose" else value


def _draw_plane(
    ax: Axes, values: Float[Tensor, "up across"], along: Along, truth: Mapping[str, float], **style
) -> AxesImage:
    """Draw one plane, the first latent upwards and the second to the right, with the truth marked."""
    names = list(along)[::-1]
    ends = [[_in_plot_units(name, along[name][end].item()) for end in (0, -1)] for name in names]
    (left, right), (low, high) = ends
    style |= {"origin": "lower", "aspect": "auto"}
    image = ax.imshow(values.numpy(), extent=(left, right, low, high), **style)
    at = (_in_plot_units(name, truth[name]) for name in names)
    ax.plot(*at, "o", markersize=9, markerfacecolor="none", markeredgecolor="white", markeredgewidth=1.6)
    return image


def plot_landscapes(
    landscapes: Mapping[int, Float[Tensor, "amplitude pose"]],
    along: Along,
    truth: Mapping[str, float],
    n_atoms: int,
) -> Figure:
    """Log-likelihood of one image over amplitude and pose, at several resolutions, by K; see `landscape`.

    Counterpart of the paper's Fig. A3. Colour is the height between the median (0) and the maximum (1) of
    each panel, whose distance in nats stands above it; a ring marks the truth.

    Parameters
    ----------
    along : mapping of str to Float[Tensor, "points"]
        The values of "amplitude" (Å) and "pose" (rad), in this order.
    truth : mapping of str to float
        The latents that made the image.
    n_atoms : int
        Pseudo-atoms, for the RMSD.
    """
    figure, axes = new_panels(len(landscapes), 2, 0.9, 2.0, sharex=True, sharey=True)
    for ax, (resolution, values) in zip(axes.flat, landscapes.items(), strict=False):
        height = relative_height(values.flatten()).view_as(values)
        image = _draw_plane(ax, height, along, truth, vmin=0, vmax=1, cmap="viridis")
        depth = (values.max() - values.median()).item()
        ax.set_title(f"K = {resolution}, depth {depth:,.0f} nats", fontsize=10)
        ax.set_xticks([-90, 0, 90])
    for row in axes:
        row[0].set_ylabel(LATENTS["amplitude"].label)
        rmsd_axis(row[-1], n_atoms, along="y")
    for ax in axes[-1]:
        ax.set_xlabel(LATENTS["pose"].label)
    label = "log-likelihood, from its median (0) to its maximum (1)"
    figure.colorbar(image, ax=axes, extend="min", label=label, **_BAR)
    return figure


def plot_planes(
    planes: Sequence[tuple[Along, Mapping[int, Float[Tensor, "up across"]]]], truth: Mapping[str, float]
) -> Figure:
    """Close-ups of the log-likelihood around the truth: one row a pair of latents, one column a resolution.

    For each row are given the values of its two latents, and the landscape by K. Colour is √(2(ℓ_max - ℓ)),
    the distance from the maximum in standard deviations if the peak is Gaussian.
    """
    resolutions = list(planes[0][1])
    figure, axes = new_figure(len(planes), len(resolutions), height=0.9 + 2.1 * len(planes), sharey="row")
    for row, (along, landscapes) in zip(axes, planes, strict=True):
        up, across = along
        for ax, resolution in zip(row, resolutions, strict=True):
            values = landscapes[resolution]
            deviations = (2 * (values.max() - values)).sqrt()
            image = _draw_plane(ax, deviations, along, truth, vmin=0, vmax=MOST_DEVIATIONS, cmap="viridis_r")
            ax.set_xlabel(LATENTS[across].label)
        row[0].set_ylabel(LATENTS[up].label)
    for ax, resolution in zip(axes[0], resolutions, strict=True):
        ax.set_title(f"K = {resolution}")
    figure.colorbar(image, ax=axes, extend="max", label="standard deviations from the maximum", **_BAR)
    return figure


def plot_pose_profiles(
    offsets: Float[Tensor, "poses"], profiles: Mapping[int, Float[Tensor, "images poses"]]
) -> Figure:
    """Log-likelihood along the circle of poses, every image a line and their mean on top, one panel a K.

    Offsets are angles in radians from the true pose; see `pose_profiles`.
    """
    figure, axes = new_panels(len(profiles), 2, 0.8, 1.75, sharex=True, sharey=True)
    degrees = torch.rad2deg(offsets)
    for ax, (resolution, each) in zip(axes.flat, profiles.items(), strict=False):
        height = relative_height(each)
        for edge in (-180, 180):
            inner = edge - math.copysign(NEIGHBOURHOOD_DEGREES, edge)
            ax.axvspan(min(edge, inner), max(edge, inner), color=COLOURS[1], alpha=0.18, linewidth=0)
        # Older matplotlibs take one curve as a tensor, but not many.
        ax.plot(degrees.numpy(), height.T.numpy(), color="0.6", linewidth=0.5, alpha=0.5, rasterized=True)
        ax.plot(degrees, height.mean(dim=0), color=COLOURS[0], linewidth=1.6)
        ax.set_title(f"K = {resolution}", fontsize=10)
        ax.set(xlim=(-180, 180), ylim=(-0.65, 1.05), xticks=[-90, 0, 90])
    for ax in axes[-1]:
        ax.set_xlabel("angle from the true pose (°)")
    figure.supylabel("log-likelihood, from median (0) to maximum (1)", fontsize=11)
    return figure


def plot_blurred_profiles(
    offsets: Float[Tensor, "poses"], profiles: Mapping[int, Float[Tensor, "images poses"]], spread: float
) -> Figure:
    """What a guide that is unsure of the pose sees: the mean profile, blurred by its width in degrees.

    Heights are shares of the depth of the profile before it was blurred. Offsets and profiles as of
    `plot_pose_profiles`.
    """
    figure, ((ax,),) = new_figure(height=3.4)
    for colour, (resolution, each) in zip(_shades(len(profiles)), profiles.items(), strict=True):
        seen = blurred(relative_height(each), spread).mean(dim=0)
        ax.plot(torch.rad2deg(offsets), seen, color=colour, label=f"{resolution}")
    ax.set(xlabel="angle from the true pose (°)", ylabel=f"height seen by a guide of {spread:.0f}°")
    ax.set(xlim=(-180, 180), xticks=range(-180, 181, 60))
    figure.legend(title="K", loc="outside right center")
    return figure


def _shades(count: int) -> list[tuple[float, float, float]]:
    """Colours from light to dark for an ordered quantity."""
    return sns.color_palette("plasma_r", count + 1)[1:]


def plot_difficulty(measures: Mapping[str, Mapping[int, float]], limit: Mapping[int, float]) -> Figure:
    """What resolution costs and gives a climber: widths of the peak, basin, rivals and their odds, by K.

    Measures are "half_width" in degrees, "basin" in per cent of the circle, "maxima" a number, "gap" in nats;
    the limit is the residual in degrees that the exact posterior would leave.
    """
    figure, axes = new_figure(2, 2, height=4.9, sharex=True)
    resolutions = list(limit)
    panels = {
        "half_width": ("angle (°)", "peak and precision"),
        "basin": ("share of the circle (%)", "basin of the true pose"),
        "maxima": ("number", "local maxima"),
        "gap": ("nats", "second peak, below the first"),
    }
    for ax, (name, (unit, title)) in zip(axes.flat, panels.items(), strict=True):
        values = [measures[name][resolution] for resolution in resolutions]
        ax.plot(resolutions, values, "o-", color=COLOURS[0], markersize=5, label="half-width of the peak")
        ax.set(ylabel=unit, xscale="log")
        ax.set_title(title, fontsize=10)
        ax.set_xticks(resolutions, labels=[str(r) for r in resolutions])
        ax.minorticks_off()
    for ax in (axes[0, 1], axes[1, 0]):
        ax.set_ylim(bottom=0)
    first, look = axes[0, 0], {"color": TRUTH_COLOUR, "markersize": 5, "label": "information limit"}
    first.plot(resolutions, list(limit.values()), "s-", **look)
    first.set(yscale="log")
    first.legend(fontsize=9)
    axes[1, 1].set(yscale="log")
    for ax in axes[-1]:
        ax.set_xlabel("resolution K (pixels)")
    return figure
