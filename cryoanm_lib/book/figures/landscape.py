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

from cryoanm_lib.book.figures.style import COLOURS, TRUTH_COLOUR, new_figure, rmsd_axis
from cryoanm_lib.book.landscapes import NEIGHBOURHOOD_DEGREES, blurred, relative_height

LABELS = {"pose": "pose θ (°)", "amplitude": "amplitude α (Å)", "defocus": "defocus z (px²)"}

#: Beyond so many standard deviations from the maximum the planes are of one colour.
MOST_DEVIATIONS = 30.0

Along = Mapping[str, Float[Tensor, "points"]]


def _in_plot_units(name: str, value: float) -> float:
    return math.degrees(value) if name == "pose" else value


def _draw_plane(
    ax: Axes, values: Float[Tensor, "up across"], along: Along, truth: Mapping[str, float], **style
) -> AxesImage:
    """Draw one plane, the first latent upwards and the second to the right, with the truth marked."""
    names = list(along)[::-1]
    edges = [_in_plot_units(name, along[name][end].item()) for name in names for end in (0, -1)]
    image = ax.imshow(values.numpy(), origin="lower", extent=edges, aspect="auto", **style)
    ax.plot(
        *(_in_plot_units(name, truth[name]) for name in names),
        "o",
        markersize=9,
        markerfacecolor="none",
        markeredgecolor="white",
        markeredgewidth=1.6,
    )
    return image


def plot_landscapes(
    landscapes: Mapping[int, Float[Tensor, "amplitude pose"]],
    along: Along,
    truth: Mapping[str, float],
    n_atoms: int,
) -> Figure:
    """Log-likelihood of one image over amplitude and pose, at several resolutions.

    Counterpart of the paper's Fig. A3. Colour is the height between the median (0) and the maximum (1) of
    each panel, whose distance in nats stands above it; a ring marks the truth.

    Parameters
    ----------
    landscapes : mapping of int to Float[Tensor, "amplitude pose"]
        By K; see `cryoanm_lib.imaging.likelihood.landscape`.
    along : mapping of str to Float[Tensor, "points"]
        The values of "amplitude" (Å) and "pose" (rad), in this order.
    truth : mapping of str to float
        The latents that made the image.
    n_atoms : int
        Pseudo-atoms, for the RMSD.
    """
    rows = -(-len(landscapes) // 2)
    figure, axes = new_figure(rows, 2, height=0.9 + 2.0 * rows, sharex=True, sharey=True)
    for ax, (resolution, values) in zip(axes.flat, landscapes.items(), strict=False):
        height = relative_height(values.flatten()).view_as(values)
        image = _draw_plane(ax, height, along, truth, vmin=0, vmax=1, cmap="viridis")
        depth = (values.max() - values.median()).item()
        ax.set_title(f"K = {resolution}, depth {depth:,.0f} nats", fontsize=10)
        ax.set_xticks([-90, 0, 90])
    for row in axes:
        row[0].set_ylabel(LABELS["amplitude"])
        rmsd_axis(row[-1], n_atoms, along="y")
    for ax in axes[-1]:
        ax.set_xlabel(LABELS["pose"])
    figure.colorbar(
        image,
        ax=axes,
        location="bottom",
        extend="min",
        aspect=40,
        shrink=0.9,
        label="log-likelihood, from its median (0) to its maximum (1)",
    )
    for ax in axes.flat[len(landscapes) :]:
        ax.set_axis_off()
    return figure


def plot_planes(
    planes: Sequence[tuple[Along, Mapping[int, Float[Tensor, "up across"]]]], truth: Mapping[str, float]
) -> Figure:
    """Close-ups of the log-likelihood around the truth: one row a pair of latents, one column a resolution.

    Colour is √(2(ℓ_max - ℓ)), the distance from the maximum in standard deviations if the peak is Gaussian.

    Parameters
    ----------
    planes : sequence of (along, landscapes)
        For each row the values of its two latents, and the landscape by K.
    truth : mapping of str to float
        The latents that made the image.
    """
    resolutions = list(planes[0][1])
    figure, axes = new_figure(len(planes), len(resolutions), height=0.9 + 2.1 * len(planes), sharey="row")
    for row, (along, landscapes) in zip(axes, planes, strict=True):
        up, across = along
        for ax, resolution in zip(row, resolutions, strict=True):
            values = landscapes[resolution]
            deviations = (2 * (values.max() - values)).sqrt()
            image = _draw_plane(ax, deviations, along, truth, vmin=0, vmax=MOST_DEVIATIONS, cmap="viridis_r")
            ax.set_xlabel(LABELS[across])
        row[0].set_ylabel(LABELS[up])
    for ax, resolution in zip(axes[0], resolutions, strict=True):
        ax.set_title(f"K = {resolution}")
    figure.colorbar(
        image,
        ax=axes,
        location="bottom",
        extend="max",
        aspect=40,
        shrink=0.9,
        label="standard deviations from the maximum",
    )
    return figure


def plot_pose_profiles(
    offsets: Float[Tensor, "poses"], profiles: Mapping[int, Float[Tensor, "images poses"]]
) -> Figure:
    """Log-likelihood along the circle of poses, every image a line and their mean on top, one panel a K.

    Parameters
    ----------
    offsets : Float[Tensor, "poses"]
        Angles in radians from the true pose.
    profiles : mapping of int to Float[Tensor, "images poses"]
        By K; see `cryoanm_lib.book.landscapes.pose_profiles`.
    """
    rows = -(-len(profiles) // 2)
    figure, axes = new_figure(rows, 2, height=0.8 + 1.75 * rows, sharex=True, sharey=True)
    degrees = torch.rad2deg(offsets)
    for ax, (resolution, each) in zip(axes.flat, profiles.items(), strict=False):
        height = relative_height(each)
        for edge in (-180, 180):
            inner = edge - math.copysign(NEIGHBOURHOOD_DEGREES, edge)
            ax.axvspan(min(edge, inner), max(edge, inner), color=COLOURS[1], alpha=0.18, linewidth=0)
        ax.plot(degrees, height.T, color="0.6", linewidth=0.5, alpha=0.5)
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
    """What a guide that is unsure of the pose sees: the mean profile, blurred by the guide's width.

    Heights are shares of the depth of the profile before it was blurred.

    Parameters
    ----------
    offsets : Float[Tensor, "poses"]
        Angles in radians from the true pose.
    profiles : mapping of int to Float[Tensor, "images poses"]
        By K.
    spread : float
        Width of the guide in degrees.
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
    """What resolution costs and gives a climber: widths of the peak, basin, rivals and their odds.

    Parameters
    ----------
    measures : mapping of str to mapping of int to float
        By K: "half_width" in degrees, "basin" in per cent of the circle, "maxima" a number, "gap" in nats.
    limit : mapping of int to float
        By K, the residual in degrees that the exact posterior would leave.
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
    first = axes[0, 0]
    first.plot(
        resolutions, list(limit.values()), "s-", color=TRUTH_COLOUR, markersize=5, label="information limit"
    )
    first.set(yscale="log")
    first.legend(fontsize=9)
    axes[1, 1].set(yscale="log")
    for ax in axes[-1]:
        ax.set_xlabel("resolution K (pixels)")
    return figure
