"""Figures of what happens when the model is wrong: residual images, and what the checks see of them."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from matplotlib.figure import Figure
from torch import Tensor

from cryoanm_lib.book.figures.style import COLOURS, GREY, TRUTH_COLOUR, new_figure, plain_log_ticks
from cryoanm_lib.checks.predictive import chi_square_rings
from cryoanm_lib.imaging.noise import WhiteNoise
from cryoanm_lib.numerics.fourier import coefficients_to_image, crop_coefficients, degrees_of_freedom
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.program import Model


def plot_explanations(
    model: Model,
    images: Mapping[str, Particles],
    answers: Mapping[str, Mapping[str, Tensor]],
    resolution: int,
) -> Figure:
    """Image, what the posterior's draw predicts, and what is left in units of the noise, one row a case.

    `images` holds one image for each case, by what it shows, and `answers` a posterior draw of each.
    """
    figure, axes = new_figure(len(images), 3, height=0.4 + 1.95 * len(images))
    # A pixel of an even crop, which lacks the Nyquist frequency, deviates a little less.
    share = degrees_of_freedom(resolution) ** 0.5 / resolution
    for row, (name, particles) in zip(axes, images.items(), strict=True):
        chosen = {latent: answers[name][latent] for latent in model.inferred}
        predicted = model.forward_model.coefficients({**particles.given, **chosen}, resolution)
        sigma = cast(WhiteNoise, particles.noise).cropped(resolution).item() * share
        observed = crop_coefficients(particles.coefficients, resolution)
        pictures = (observed, predicted, observed - predicted)
        shown = [coefficients_to_image(c, resolution)[0].numpy() for c in pictures]
        span = abs(shown[0]).max()
        for ax, picture in zip(row[:2], shown[:2], strict=True):
            ax.imshow(picture, vmin=-span, vmax=span)
        left = row[2].imshow(shown[2] / sigma, vmin=-5, vmax=5, cmap="RdBu_r")
        for ax in row:
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=10)
    for ax, title in zip(axes[0], ("image", "prediction", "what is left (σ)"), strict=True):
        ax.set_title(title, fontsize=10)
    figure.colorbar(left, ax=axes[:, 2], shrink=0.6, aspect=25)
    return figure


def plot_alarm(found: Sequence[Mapping[str, float]], labels: Mapping[float, str]) -> Figure:
    """Coverage and alarms along a path that leaves the model, one curve a level of noise, by its name.

    Of each case, "fraction", "noise", "coverage_80", "alarm_fraction" and "pooled_p" are given.
    """
    panels = {
        "coverage_80": "truths inside\nthe 80 % region",
        "alarm_fraction": "images that\nraise the alarm",
        "pooled_p": "p-value of\nall images together",
    }
    figure, axes = new_figure(len(panels), 1, height=5.6, sharex=True)
    for number, (noise, label) in enumerate(labels.items()):
        cases = sorted((f for f in found if f["noise"] == noise), key=lambda f: f["fraction"])
        at = [max(case["fraction"], _ORIGIN) for case in cases]
        for ax, key in zip(axes[:, 0], panels, strict=True):
            values = [max(case[key], _SMALLEST) if key == "pooled_p" else case[key] for case in cases]
            ax.plot(at, values, marker="o", markersize=4, color=COLOURS[number], label=label)
    for ax, (key, name) in zip(axes[:, 0], panels.items(), strict=True):
        ax.set_ylabel(name, fontsize=10)
        ax.set_xscale("log")
        ax.set(yscale="log" if key == "pooled_p" else "linear")
        ax.grid(axis="y", alpha=0.3)
    axes[0, 0].axhline(0.8, color=TRUTH_COLOUR, linestyle="--", linewidth=1)
    axes[0, 0].set_ylim(-0.03, 1)
    axes[1, 0].set_ylim(-0.03, 1.03)
    axes[-1, 0].set_xlabel("fraction of the way to the other structure")
    ticks = sorted({max(f["fraction"], _ORIGIN) for f in found})
    plain_log_ticks(axes[-1, 0], "x")
    axes[-1, 0].set_xticks(ticks, ["0" if tick == _ORIGIN else f"{tick:g}" for tick in ticks])
    axes[-1, 0].minorticks_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(labels))
    return figure


# Where a logarithmic axis puts 0, and the smallest p-value that is told from 0.
_ORIGIN, _SMALLEST = 0.005, 1e-20


def plot_ring_misfit(
    model: Model,
    images: Mapping[str, Particles],
    answers: Mapping[str, Mapping[str, Tensor]],
    resolution: int,
) -> Figure:
    """Mean squared residual in units of the noise against spatial frequency, from the first ring on.

    Parameters as of `plot_explanations`, of many images.
    """
    figure, axes = new_figure(1, 1, height=3.0)
    ax = axes[0, 0]
    ax.axhline(1, color=GREY, linewidth=0.8)
    for name, particles in images.items():
        squared, degrees = chi_square_rings(model, particles, answers[name], resolution)
        mean = (squared / degrees).mean(0)[1:]
        frequency = torch.arange(1, len(mean) + 1) / model.forward_model.box_size
        ax.semilogy(frequency.numpy(), mean.numpy(), marker="o", markersize=3, label=name)
    ax.set(xlabel="spatial frequency (1/px)", ylabel="mean squared residual (σ²)")
    plain_log_ticks(ax, "y")
    ax.legend(fontsize=9)
    return figure
