"""Figures of what the guide has learned: predictions against the truth (Figs. 2 and 3), and the way there."""

import math
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cryoanm_lib.book.figures.style import (
    COLOURS,
    TRUTH_COLOUR,
    WIDTH,
    new_figure,
    new_panels,
    plain_log_ticks,
)
from cryoanm_lib.book.landscapes import pose_profiles
from cryoanm_lib.checks.residuals import residuals
from cryoanm_lib.experiments.datasets import draw_test_images
from cryoanm_lib.experiments.fit import Fit
from cryoanm_lib.imaging.latents import POSE, Latent, Values
from cryoanm_lib.numerics.rotation import angle_to_unit_vector, unit_vector_to_angle, wrap_angle
from cryoanm_lib.program.distributions import ProjectedNormal

# Contours enclose these proportions of the density.
PROPORTIONS = (0.2, 0.5, 0.8, 0.95)

# A component lighter than this says little about where the guide looks.
NOTICEABLE_WEIGHT = 0.05


def plot_pose_stages(fit: Fit) -> Figure:
    """Predicted against true pose after each stage of marching, with margins: the counterpart of Fig. 2."""
    count = len(fit.snapshots)
    columns = 2 if count in (2, 4) else min(3, count)
    figure, axes = new_panels(count, columns, 0, 1.1 * WIDTH / columns)
    for ax, label, snapshot in zip(axes.flat, _stage_labels(fit), fit.snapshots, strict=False):
        draw_joint(ax, POSE, snapshot, fit.truth, title=label)
        ax.set(xticks=[-180, 0, 180], yticks=[-180, 0, 180])
    figure.supxlabel("true " + POSE.label, fontsize=10)
    figure.supylabel("predicted " + POSE.label, fontsize=10)
    return figure


def plot_joint(fit: Fit) -> Figure:
    """Predicted against true value of each latent at the end, with margins: the counterpart of Fig. 3."""
    latents = fit.model.unknowns.latents
    figure, axes = new_figure(1, len(latents), height=1.2 * WIDTH / len(latents))
    for ax, latent in zip(axes[0], latents, strict=True):
        found = residuals(fit.snapshots[-1], fit.truth)[latent.name].mean().item()
        draw_joint(ax, latent, fit.snapshots[-1], fit.truth, f"mean residual {found:.2g}{latent.suffix}")
        ax.set_xlabel("true " + latent.label, fontsize=10)
        ax.set_ylabel("predicted" if latent == latents[0] else "", fontsize=10)
    return figure


def draw_joint(axes: Axes, latent: Latent, sampled: Values, truth: Values, title: str = "") -> None:
    """One posterior draw an image against the truth: points, iso-proportion contours and both margins."""
    x, y = (_as_numbers(latent, latents) for latents in (truth, sampled))
    low, high = (-180.0, 180.0) if latent.manifold.turns else _common_range(x, y)
    # The diagonal of perfect answers and, for a pose, the lines a half-turn away.
    for offset in (0.0, -180.0, 180.0) if latent.manifold.turns else (0.0,):
        style = {"color": TRUTH_COLOUR, "linewidth": 0.8, "linestyle": "--" if offset else "-"}
        axes.plot([low, high], [low + offset, high + offset], zorder=0, **style)
    axes.scatter(x, y, s=4, alpha=0.35, color=COLOURS[0], linewidths=0, rasterized=True)
    levels = [1 - proportion for proportion in reversed(PROPORTIONS)]
    sns.kdeplot(x=x, y=y, ax=axes, levels=levels, color="0.15", linewidths=0.7)
    top = axes.inset_axes((0, 1.02, 1, 0.18), sharex=axes)
    right = axes.inset_axes((1.02, 0, 0.18, 1), sharey=axes)
    bins = np.linspace(low, high, 25).tolist()
    top.hist(x, bins=bins, color=COLOURS[0], alpha=0.6)
    right.hist(y, bins=bins, color=COLOURS[0], alpha=0.6, orientation="horizontal")
    for margin in (top, right):
        margin.axis("off")
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="", ylabel="")
    if latent.manifold.turns:
        axes.set(xticks=[-180, -90, 0, 90, 180], yticks=[-180, -90, 0, 90, 180])
    axes.tick_params(labelsize=8)
    top.set_title(title, fontsize=10)


def plot_residuals(fit: Fit) -> Figure:
    """Mean residual of each latent against training time, stage by stage, with the information limit."""
    latents = fit.model.unknowns.latents
    figure, axes = new_figure(len(latents), 1, height=1.6 + 1.7 * len(latents), sharex=True)
    seconds = [record["seconds"] for record in fit.history]
    for ax, latent in zip(axes[:, 0], latents, strict=True):
        values = [record[f"{latent.name}_residual"] for record in fit.history]
        ax.semilogy(seconds, values, marker="o", markersize=3, label="test images")
        limit, name = fit.metrics[f"{latent.metric}_limit"], f"limit at K = {fit.metrics['resolution']}"
        ax.axhline(limit, color=TRUTH_COLOUR, linestyle="--", label=name)
        reported = fit.metrics.get(f"{latent.metric}_paper")
        if reported is not None:
            ax.axhline(reported, color=COLOURS[4], linestyle=":", label="paper")
        ax.set_ylabel(latent.residual_label)
        plain_log_ticks(ax, "y")
        ax.grid(axis="y", alpha=0.3)
    mark_stages(list(axes[:, 0]), fit, "seconds", _resolution_and_kind, height=1.02)
    axes[0, 0].annotate("K =", (-0.01, 1.07), xycoords="axes fraction", ha="right", fontsize=8)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    axes[-1, 0].set_xlabel("training time (s)")
    figure.suptitle("mean residual of a posterior draw")
    return figure


def _resolution_and_kind(record: Mapping) -> str:
    return f"{record['resolution']}\n{'sim.' if record['objective'] == 'forward_kl' else 'ELBO'}"


def mark_stages(
    axes: Sequence[Axes], fit: Fit, along: str, label: Callable[[Mapping], str], height: float, **style
) -> None:
    """Shade every second stage, and write into the first axes what its first record says of each.

    A second line of a label stands only where it differs from that of the stage before: stages may be narrow.
    """
    style = {"xycoords": ("data", "axes fraction"), "ha": "center", "fontsize": 8} | style
    start, said = 0.0, ""
    for index in range(len(fit.snapshots)):
        records = [record for record in fit.history if record["stage"] == index]
        end = records[-1][along]
        for ax in axes if index % 2 == 0 else ():
            ax.axvspan(start, end, color="0.93", zorder=0, linewidth=0)
        first, _, second = label(records[0]).partition("\n")
        text = f"{first}\n{second}" if second != said else f"{first}\n" if second else first
        axes[0].annotate(text, ((start + end) / 2, height), **style)
        start, said = end, second


def plot_components(fit: Fit) -> Figure:
    """How the mixture uses its components: the lighter one's weight, and the angle between the means.

    The experiment infers the pose with two components or more.
    """
    figure, axes = new_figure(1, 2, height=2.9)
    weights = [snapshot["pose_logits"].softmax(-1).sort(dim=-1).values[:, -2] for snapshot in fit.snapshots]
    labels = _stage_labels(fit)
    positions = range(len(labels))
    style = {"whis": (5, 95), "showfliers": False, "widths": 0.5}
    axes[0, 0].boxplot([w.numpy() for w in weights], positions=positions, **style)
    axes[0, 0].set(xlabel="K of the stage", ylabel="weight of second component", ylim=(-0.02, 0.52))
    objectives = {label.partition(", ")[2] for label in labels}
    shown = [label.partition(", ")[0] for label in labels] if len(objectives) == 1 else labels
    names = [label.replace(", ", "\n").removeprefix("K = ") for label in shown]
    axes[0, 0].set_xticks(positions, names, fontsize=8)
    for index, (snapshot, label) in enumerate(zip(fit.snapshots, labels, strict=True)):
        between = torch.rad2deg(_angle_between_leaders(snapshot))[weights[index] > NOTICEABLE_WEIGHT]
        if not len(between):
            continue
        shade = plt.get_cmap("viridis")(index / max(1, len(labels) - 1))
        style = {"histtype": "step", "color": shade, "label": f"{label} ({len(between)})"}
        axes[0, 1].hist(between.numpy(), bins=np.linspace(0, 180, 19), **style)
    axes[0, 1].set(xlabel="angle between the two means (°)", ylabel="images", xticks=[0, 45, 90, 135, 180])
    axes[0, 1].legend(fontsize=8)
    return figure


def _angle_between_leaders(snapshot: Mapping[str, Tensor]) -> Float[Tensor, "images"]:
    """Angle between the means of the two components of largest weight, in radians."""
    leaders = snapshot["pose_logits"].topk(2, dim=-1).indices[..., None].expand(-1, -1, 2)
    means = torch.nn.functional.normalize(snapshot["pose_concentrations"].gather(1, leaders), dim=-1)
    return (means[:, 0] * means[:, 1]).sum(-1).clamp(-1, 1).arccos()


def plot_residual_distributions(fit: Fit) -> Figure:
    """Cumulative distribution of each latent's residual over the test images, after every stage."""
    latents = fit.model.unknowns.latents
    figure, axes = new_figure(1, len(latents), height=2.9, sharey=True)
    for ax, latent in zip(axes[0], latents, strict=True):
        for index, snapshot in enumerate(fit.snapshots):
            values = residuals(snapshot, fit.truth)[latent.name].sort().values
            proportion = np.linspace(0, 1, len(values))
            shade = plt.get_cmap("viridis")(0.9 * index / max(1, len(fit.snapshots) - 1))
            ax.semilogx(values.clamp(min=1e-3), proportion, color=shade, label=_stage_labels(fit)[index])
        ax.axvline(fit.metrics[f"{latent.metric}_limit"], color=TRUTH_COLOUR, linestyle="--", linewidth=1)
        ax.set_xlabel(latent.residual_label)
        plain_log_ticks(ax, "x")
    axes[0, 0].set_ylabel("fraction of images below")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _stage_labels(fit: Fit) -> list[str]:
    """Each stage by its K, and by its objective where that is not the ELBO."""
    kinds = {"forward_kl": ", simulations"}
    return [f"K = {s.resolution}" + kinds.get(s.objective, "") for s in fit.run.stages]


def _as_numbers(latent: Latent, values: Values) -> np.ndarray:
    """The first number of each image: degrees for a pose in the plane, the first mode for amplitudes."""
    return latent.in_units(latent.manifold.point(latent.rows(values[latent.name]))[:, 0]).numpy()


def _common_range(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """A square that holds the truth, and all but the wildest one in two hundred of the predictions."""
    low, high = np.quantile(y, [0.0025, 0.9975])
    low, high = min(low, x.min()), max(high, x.max())
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def plot_offsets(fits: Sequence[Fit], resolution: int, count: int = 60) -> Figure:
    """How far each run's poses are off, with sign, below the landscape that the ELBO offers them.

    The landscape is the log-likelihood at an angle from the true pose, mean over the first `count` test
    images of the first run; all are of one structure and noise.
    """
    first = fits[0]
    images = draw_test_images(first.run)[:count]
    offsets = torch.arange(-180.0, 180.0, 0.5)
    profile = pose_profiles(first.model.forward_model, images, offsets.deg2rad(), resolution).mean(0)
    figure, axes = new_figure(2, 1, height=4.2, sharex=True, height_ratios=(2, 1))
    axes[0, 0].plot(offsets, (profile - profile.median()) / 1000, color="0.3", linewidth=1)
    axes[0, 0].set(ylabel="log-likelihood\n(1000 nats)", title=f"the landscape at K = {resolution}")
    bins = np.linspace(-180, 180, 181)
    for number, fit in enumerate(fits):
        found, true = (unit_vector_to_angle(latents["pose"]) for latents in (fit.snapshots[-1], fit.truth))
        errors = torch.rad2deg(wrap_angle(found - true))
        style = {"color": COLOURS[number], "alpha": 0.7, "label": f"seed {fit.run.seed}"}
        axes[1, 0].hist(errors.numpy(), bins=bins, weights=np.full(len(errors), 100 / len(errors)), **style)
    axes[1, 0].set(xlabel="predicted less true pose (°)", ylabel="images (%)", xlim=(-180, 180))
    axes[1, 0].set_xticks([-180, -90, 0, 90, 180])
    axes[1, 0].legend(loc="upper right", fontsize=9)
    return figure


def plot_projected_normal(concentrations: tuple[float, ...] = (0.0, 1.0, 3.0, 10.0)) -> Figure:
    """Density of a projected normal that points to 0°, for several lengths |μ| of its mean vector."""
    figure, axes = new_figure(1, 1, height=2.9)
    angles = torch.linspace(-math.pi, math.pi, 721)
    for concentration in concentrations:
        pointing = ProjectedNormal(torch.tensor([concentration, 0.0]))
        density = torch.deg2rad(pointing.log_prob(angle_to_unit_vector(angles)).exp())
        axes[0, 0].plot(torch.rad2deg(angles), density, label=f"|μ| = {concentration:g}")
    axes[0, 0].set(xlabel="direction (°)", ylabel="density (1/°)", xticks=[-180, -90, 0, 90, 180])
    axes[0, 0].legend()
    return figure
