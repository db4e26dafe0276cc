"""Figures of posteriors: how they sharpen, how far from the limit they are, and whether their errors hold."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from scipy import stats
from torch import Tensor

from cryoanm_lib.book.figures.style import (
    COLOURS,
    GREY,
    TRUTH_COLOUR,
    new_figure,
    new_panels,
    plain_log_ticks,
)
from cryoanm_lib.book.tables import two_digits
from cryoanm_lib.book.windows import Window, window
from cryoanm_lib.checks.calibration import coverage, coverage_band
from cryoanm_lib.experiments.assess import Assessment
from cryoanm_lib.imaging.latents import LATENTS
from cryoanm_lib.inference.exact_posterior import exact_posterior
from cryoanm_lib.inference.refinement import RefinedPosterior
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.program import Model

#: Colour and marker of each way to a posterior, wherever they are compared.
LOOKS = {
    "guide": {"color": COLOURS[0], "marker": "o", "label": "guide"},
    "refined": {"color": COLOURS[2], "marker": "D", "label": "refined"},
    "exact": {"color": "0.15", "marker": "x", "label": "exact"},
}


def plot_sharpening(model: Model, image: Particles, resolutions: Sequence[int]) -> Figure:
    """The posterior density of one image over pose and amplitude, zoomed to where it is, one panel a K."""
    figure, axes = new_panels(len(resolutions), 2 if len(resolutions) % 3 else 3, 0.4, 2.5)
    for ax, resolution in zip(axes.flat, resolutions, strict=False):
        shown = window(exact_posterior(model, image, resolution))
        draw_window(ax, shown, mark=11)
        pose, amplitude = torch.rad2deg(shown.deviation[0]), shown.deviation[1]
        ax.set_title(f"K = {resolution}: {pose:.2g}°, {amplitude:.2g} Å", fontsize=10)
        ax.tick_params(labelsize=8)
        ax.locator_params(nbins=3)
    figure.supxlabel(LATENTS["pose"].label, fontsize=11)
    figure.supylabel(LATENTS["amplitude"].label, fontsize=11)
    return figure


def draw_window(ax: Axes, shown: Window, mark: float) -> None:
    """The density in a window, pose in degrees, and the truth by a cross of so many points."""
    x, y = torch.rad2deg(shown.pose).numpy(), shown.amplitude.numpy()
    ax.pcolormesh(x, y, shown.density.T.numpy(), cmap="Blues", rasterized=True)
    at = torch.rad2deg(shown.truth[0]), shown.truth[1]
    ax.plot(*at, "+", color=TRUTH_COLOUR, markersize=mark, markeredgewidth=1.8)
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))


def plot_referees(
    samples: Mapping[str, Mapping[str, Tensor]], posterior: RefinedPosterior, image: int
) -> Figure:
    """Draws for one image by several methods over pose and amplitude, with the refined Gaussians' ellipses.

    `samples` holds latents (draws, …) of this image by the method's name. The heaviest component of the
    refined posterior of image number `image` is drawn at one and two deviations.
    """
    unknowns = posterior.mixture.unknowns
    component = int(posterior.mixture.log_weight[image].argmax())
    centre = posterior.mixture.centre[image, component]
    covariance = posterior.mixture.covariance[image, component, :2, :2]
    figure, axes = new_figure(1, len(samples), height=2.6, sharex=True, sharey=True)
    for ax, (name, latents) in zip(axes[0], samples.items(), strict=True):
        away = unknowns.offset(unknowns.points(latents).double(), centre)
        ax.scatter(torch.rad2deg(away[:, 0]), away[:, 1], s=5, alpha=0.4, linewidths=0, color=COLOURS[0])
        for deviations in (1, 2):
            ax.add_patch(_ellipse(covariance, deviations))
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("pose less the peak's (°)", fontsize=10)
        ax.tick_params(labelsize=8)
    axes[0, 0].set_ylabel("amplitude\nless the peak's (Å)", fontsize=10)
    return figure


def _ellipse(covariance: Tensor, deviations: float) -> Ellipse:
    """Of a Gaussian over pose in radians and amplitude, drawn with the pose in degrees."""
    scale = torch.tensor([180 / math.pi, 1.0], dtype=covariance.dtype)
    values, vectors = torch.linalg.eigh(scale[:, None] * covariance * scale)
    angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
    width, height = (2 * deviations * values.flip(0).sqrt()).tolist()
    return Ellipse((0, 0), width, height, angle=angle, fill=False, edgecolor=TRUTH_COLOUR, linewidth=1.2)


def plot_reach(found: Mapping[str, Mapping[str, float]]) -> Figure:
    """Mean residuals from the paper's down to the limit, one row a method, on one logarithmic axis a latent.

    `found` holds the residual of each latent by the method's name; "limit" is drawn as a line.
    """
    latents = [name for name in LATENTS if any(name in values for values in found.values())]
    rows = [name for name in found if name != "limit"]
    figure, axes = new_figure(1, len(latents), height=0.9 + 0.36 * len(rows), sharey=True)
    for ax, latent in zip(axes[0], latents, strict=True):
        ax.axvline(found["limit"][latent], color=TRUTH_COLOUR, linestyle="--", linewidth=1.2, label="limit")
        for row, name in enumerate(rows):
            if latent in found[name]:
                value = found[name][latent]
                ax.plot([found["limit"][latent], value], [row, row], color=GREY, linewidth=0.8, zorder=0)
                ax.plot(value, row, "o", color=COLOURS[0], markersize=6)
                beside = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
                ax.annotate(f"{value:.2g}", (value, row), fontsize=9, **beside)
        ax.set(xscale="log", xlabel=LATENTS[latent].residual_label, ylim=(len(rows) - 0.5, -0.5))
        ax.set_yticks(range(len(rows)), rows, fontsize=9)
        shown = [values[latent] for values in found.values() if latent in values]
        ax.set_xlim(min(shown) / 1.6, max(shown) * (max(shown) / min(shown)) ** 0.35)
        plain_log_ticks(ax, "x", most=4)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center")
    return figure


def plot_against_signal(assessments: Sequence[Mapping]) -> Figure:
    """Mean residual by guide, refinement and exact posterior against the signal-to-noise ratio.

    `assessments` are metrics of one task at several levels of noise.
    """
    ordered = sorted(assessments, key=lambda metrics: -metrics["snr"])
    latents = [name for name, latent in LATENTS.items() if latent.metric in ordered[0]]
    figure, axes = new_figure(1, len(latents), height=3.2)
    ratios = [metrics["snr"] for metrics in ordered]
    for ax, latent in zip(axes[0], latents, strict=True):
        key = LATENTS[latent].metric
        limit = [metrics[f"{key}_limit"] for metrics in ordered]
        ax.loglog(ratios, limit, color=TRUTH_COLOUR, linestyle="--", label="limit")
        for method, look in LOOKS.items():
            prefix = "" if method == "refined" else f"{method}_"
            values = [metrics.get(f"{prefix}{key}", math.nan) for metrics in ordered]
            size = 8 if method == "exact" else 5
            ax.loglog(ratios, values, linestyle="none", markersize=size, **look)
        ax.set(xlabel="signal-to-noise ratio", title=LATENTS[latent].residual_label)
        ax.invert_xaxis()
        plain_log_ticks(ax, "xy")
        ax.grid(axis="y", alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def plot_coverage(assessments: Mapping[str, Assessment]) -> Figure:
    """Share of truths inside credible regions against the regions' level, for guide, refined and exact.

    One panel an assessment, by its title. For each number of images that a curve is of, a band holds 95 % of
    what an honest posterior would give on as many.
    """
    figure, axes = new_figure(1, len(assessments), height=3.3, sharex=True, sharey=True)
    levels = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    for ax, (title, assessment) in zip(axes[0], assessments.items(), strict=True):
        n_draws = assessment.of.checks.draws
        counts = sorted({len(found["level"]) for found in assessment.tested.values()})
        for shade, n_images in zip(("0.9", "0.8", "0.7"), counts, strict=False):
            low, high = coverage_band(n_images, levels).T
            ax.fill_between(levels, low, high, color=shade, linewidth=0, label=f"honest, {n_images} images")
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        for method, found in assessment.tested.items():
            values = [coverage(found["level"], level.item(), n_draws) for level in levels]
            ax.plot(levels, values, markersize=4, linewidth=1.2, **LOOKS[method])
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="level of the region")
        ax.set_title(title, fontsize=10)
    axes[0, 0].set_ylabel("truths inside")
    handles = {label: h for ax in axes[0] for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    return figure


def plot_ranks(assessment: Assessment) -> Figure:
    """Simulation-based calibration: how far the ranks' distribution is from uniform, for each latent.

    One row a way to the posterior; at each rank, the band holds an honest one 95 % of the time.
    """
    found = assessment.tested
    latents = [name for name in LATENTS if f"rank.{name}" in found["refined"]]
    height, n_bins = 0.5 + 1.35 * len(found), 20
    figure, axes = new_figure(len(found), len(latents), height, sharex=True, sharey=True)
    bins = np.linspace(0, 1, n_bins + 1)
    for row, (method, tested) in enumerate(found.items()):
        for ax, latent in zip(axes[row], latents, strict=True):
            rank = tested[f"rank.{latent}"].flatten().numpy()
            share = np.histogram(rank, bins)[0] / len(rank) * n_bins
            ends = stats.binom.ppf([0.025, 0.975], len(rank), 1 / n_bins) / len(rank) * n_bins
            ax.axhspan(*ends, color="0.88", linewidth=0)
            ax.axhline(1, color=GREY, linewidth=0.8)
            ax.stairs(share, bins, color=LOOKS[method]["color"], linewidth=1.4)
            ax.set_xlim(0, 1)
            ax.set_ylim(bottom=0)
            if row == 0:
                ax.set_title(latent, fontsize=10)
        axes[row, 0].set_ylabel(f"{method}\n({len(rank)} images)", fontsize=9)
    figure.supxlabel("rank of the truth among the draws", fontsize=10)
    return figure


def plot_elbo_gap(assessments: Mapping[str, Assessment]) -> Figure:
    """What the guide's ELBO lacks to the exact log-evidence, over images, one named curve an assessment."""
    figure, axes = new_figure(1, 1, height=2.9)
    ax = axes[0, 0]
    for number, (name, assessment) in enumerate(assessments.items()):
        bound = assessment.tested["guide"]["elbo"]
        gap = (assessment.tested["exact"]["log_evidence"][: len(bound)] - bound).sort().values
        label = f"{name}: median {two_digits(gap.median().item())}"
        ax.plot(gap.clamp(min=1e-2), np.linspace(0, 1, len(gap)), color=COLOURS[number], label=label)
    ax.set(xlabel="log-evidence less ELBO (nats)", ylabel="fraction of images below")
    ax.set(xscale="log", ylim=(0, 1))
    plain_log_ticks(ax, "x")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", fontsize=9)
    return figure
