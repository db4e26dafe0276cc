"""What a view can tell: maps over the sphere, what the posterior knows of them, and rival poses."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from cryoanm_lib.book.figures.style import COLOURS, TRUTH_COLOUR, new_figure, plain_log_ticks
from cryoanm_lib.book.views import KINDS, Rivals, globe, in_plane_share, seen_along
from cryoanm_lib.imaging.forward_model import ForwardModel

#: Colours of the kinds of rivals.
KIND_COLOURS = dict(zip(KINDS, (COLOURS[0], COLOURS[1], "0.75"), strict=True))


def plot_view_maps(
    rows: int,
    values: Mapping[str, Float[Tensor, "cells modes"]],
    poses: Float[Tensor, "images 4"] | None = None,
    found: Float[Tensor, "images modes"] | None = None,
) -> Figure:
    """Maps over all viewing directions, one for each mode, and under each what was inferred of single images.

    Parameters
    ----------
    rows : int
        Of the globe that the values are for.
    values : mapping of str to Float[Tensor, "cells modes"]
        One quantity by its label.
    poses, found : Float[Tensor, "images 4"], Float[Tensor, "images modes"], optional
        Unit quaternions of images, and the same quantity of each.
    """
    ((label, limits),) = values.items()
    longitude, latitude, _ = globe(rows)
    n_modes, two = limits.shape[1], poses is not None and found is not None
    sphere = {"projection": "mollweide"}
    figure, axes = new_figure(n_modes, 1 + two, height=1.75 * n_modes, subplot_kw=sphere)
    for mode in range(n_modes):
        column = limits[:, mode]
        low, high = column.min().item(), column.max().item()
        look = {"cmap": "viridis", "vmin": low, "vmax": high, "rasterized": True}
        grid = column.view(rows, 2 * rows).numpy()
        mesh = axes[mode, 0].pcolormesh(longitude.numpy(), latitude.numpy(), grid, shading="nearest", **look)
        if poses is not None and found is not None:
            x, y, z = seen_along(poses.double()).unbind(-1)
            place = torch.atan2(y, x).numpy(), torch.asin(z.clamp(-1, 1)).numpy()
            axes[mode, 1].scatter(*place, c=found[:, mode].numpy(), s=5, **look)
        figure.colorbar(mesh, ax=list(axes[mode]), label=f"mode {mode + 1}\n{label}", shrink=0.9, aspect=12)
        for ax in axes[mode]:
            ax.set(xticks=[], yticks=[])
    axes[0, 0].set_title("limit")
    if two:
        axes[0, 1].set_title("inferred, image by image")
    return figure


def plot_in_plane(
    limits: Float[Tensor, "cells modes"], model: ForwardModel, seen_from: Float[Tensor, "cells 3"]
) -> Figure:
    """The limit of each mode, as of `amplitude_limits`, against the share of its motion across the view."""
    share = in_plane_share(model, seen_from)
    figure, axes = new_figure(1, limits.shape[1], height=2.6, sharey=True)
    for mode, ax in enumerate(axes[0]):
        ax.scatter(share[:, mode].numpy(), limits[:, mode].numpy(), s=3, color=COLOURS[mode], alpha=0.5)
        ax.set(title=f"mode {mode + 1}", xlabel="share in the image")
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("limit of the deviation (Å)")
    return figure


def plot_knows(
    claimed: Float[Tensor, "images modes"], error: Float[Tensor, "images modes"], bins: int = 6
) -> Figure:
    """What the posterior claims against what it errs by: root mean square in groups of equal size.

    Posterior deviations are claimed, errors are the posterior's mean less the truth; images are grouped in
    `bins` by what is claimed.
    """
    figure, axes = new_figure(height=3.6)
    ax = axes[0, 0]
    for mode in range(claimed.shape[1]):
        groups = claimed[:, mode].argsort().tensor_split(bins)
        x = [claimed[group, mode].square().mean().sqrt().item() for group in groups]
        y = [error[group, mode].square().mean().sqrt().item() for group in groups]
        # A deviation estimated from n errors is uncertain by 1/√2n of itself.
        spread = [2 * value / math.sqrt(2 * len(group)) for value, group in zip(y, groups, strict=True)]
        ax.errorbar(x, y, spread, fmt="o", markersize=4, color=COLOURS[mode], label=f"mode {mode + 1}")
    ends = [claimed.min().item(), claimed.max().item()]
    ax.plot(ends, ends, "--", color=TRUTH_COLOUR, linewidth=1.2, label="as claimed")
    ax.set(xlabel="deviation claimed (Å)", ylabel="error, root mean square (Å)")
    ax.set_aspect("equal")
    ax.grid(alpha=0.3)
    ax.legend()
    return figure


def plot_rivals(found: Mapping[str, Rivals]) -> Figure:
    """What the most probable wrong pose is, and how far below the true one, in a row for each resolution."""
    figure, axes = new_figure(1, 2, height=1.2 + 0.5 * len(found), sharey=True)
    for row, rivals in enumerate(found.values()):
        start = 0.0
        for kind, which in rivals.kinds.items():
            share = which.double().mean().item()
            look = {"color": KIND_COLOURS[kind], "height": 0.6, "label": None if row else kind}
            axes[0, 0].barh(row, share, left=start, **look)
            start += share
        quartiles = rivals.loss.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=rivals.loss.dtype)).tolist()
        low, middle, high = (max(value, 0.5) for value in quartiles)
        axes[0, 1].plot([low, high], [row, row], color="0.6", linewidth=2)
        axes[0, 1].plot(middle, row, "o", color="black", markersize=5)
    axes[0, 0].set(xlabel="share of views", xlim=(0, 1))
    axes[0, 0].set_yticks(range(len(found)), list(found))
    axes[0, 0].invert_yaxis()
    axes[0, 1].set(xscale="log", xlabel="nats below the truth")
    axes[0, 1].grid(axis="x", alpha=0.3)
    plain_log_ticks(axes[0, 1], "x", most=4)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
