"""Figures of what the guide has learned: predictions against the truth (Figs. 2 and 3), and the way there."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from torch import Tensor

from cryoanm_lib.book.figures.style import COLOURS, TRUTH_COLOUR, WIDTH, new_figure
from cryoanm_lib.book.landscapes import pose_profiles
from cryoanm_lib.checks.residuals import RESIDUAL_KEYS, residuals
from cryoanm_lib.experiments.datasets import draw_test_images
from cryoanm_lib.experiments.fit import Fit
from cryoanm_lib.numerics.rotation import angle_to_unit_vector, unit_vector_to_angle, wrap_angle
from cryoanm_lib.particles.particles import to_forward
from cryoanm_lib.program.distributions import ProjectedNormal

# Contours enclose these proportions of the density.
PROPORTIONS = (0.2, 0.5, 0.8, 0.95)

# A component lighter than this says little about where the guide looks.
NOTICEABLE_WEIGHT = 0.05

LABELS = {
    "pose": "pose θ (°)",
    "shift": "shift (px)",
    "amplitude": "amplitude α (Å)",
    "defocus": "defocus z (px²)",
    "contrast": "contrast c",
}
UNITS = {"pose": "°", "shift": " px", "amplitude": " Å", "defocus": " px²", "contrast": ""}
RESIDUAL_LABELS = {
    name: label.replace(" θ", "").replace(" α", "").replace(" z", "") for name, label in LABELS.items()
}


def plot_pose_stages(fit: Fit) -> Figure:
    """Predicted against true pose after each stage of marching, with margins: the counterpart of Fig. 2.

    Parameters
    ----------
    fit : Fit
        An experiment that infers the pose.
    """
    count = len(fit.snapshots)
    columns = 2 if count in (2, 4) else min(3, count)
    rows = -(-count // columns)
    figure, axes = new_figure(rows, columns, height=rows * 1.1 * WIDTH / columns)
    for ax, label, snapshot in zip(axes.flat, _stage_labels(fit), fit.snapshots, strict=False):
        draw_joint(ax, "pose", snapshot, fit.truth, title=label)
        ax.set(xticks=[-180, 0, 180], yticks=[-180, 0, 180])
    for ax in axes.flat[count:]:
        ax.axis("off")
    figure.supxlabel("true " + LABELS["pose"], fontsize=10)
    figure.supylabel("predicted " + LABELS["pose"], fontsize=10)
    return figure


def plot_joint(fit: Fit) -> Figure:
    """Predicted against true value of each latent after the last stage, with margins: Fig. 3's counterpart.

    Parameters
    ----------
    fit : Fit
        A finished experiment.
    """
    latents = [name for name in LABELS if name in fit.program.inferred]
    figure, axes = new_figure(1, len(latents), height=1.2 * WIDTH / len(latents))
    for ax, latent in zip(axes[0], latents, strict=True):
        found = residuals(fit.snapshots[-1], fit.truth)[latent].mean().item()
        draw_joint(
            ax, latent, fit.snapshots[-1], fit.truth, title=f"mean residual {found:.2g}{UNITS[latent]}"
        )
        ax.set_xlabel("true " + LABELS[latent], fontsize=10)
        ax.set_ylabel("predicted" if latent == latents[0] else "", fontsize=10)
    return figure


def draw_joint(
    axes: Axes, latent: str, sampled: Mapping[str, Tensor], truth: Mapping[str, Tensor], title: str = ""
) -> None:
    """One posterior draw an image against the truth: points, iso-proportion contours and both margins."""
    x, y = (_as_numbers(latent, latents) for latents in (truth, sampled))
    low, high = (-180.0, 180.0) if latent == "pose" else _common_range(x, y)
    _reference_lines(axes, latent, low, high)
    axes.scatter(x, y, s=4, alpha=0.35, color=COLOURS[0], linewidths=0, rasterized=True)
    levels = [1 - proportion for proportion in reversed(PROPORTIONS)]
    sns.kdeplot(x=x, y=y, ax=axes, levels=levels, color="0.15", linewidths=0.7)
    top = axes.inset_axes((0, 1.02, 1, 0.18), sharex=axes)
    right = axes.inset_axes((1.02, 0, 0.18, 1), sharey=axes)
    bins = np.linspace(low, high, 25)
    top.hist(x, bins=bins, color=COLOURS[0], alpha=0.6)
    right.hist(y, bins=bins, color=COLOURS[0], alpha=0.6, orientation="horizontal")
    for margin in (top, right):
        margin.axis("off")
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="", ylabel="")
    if latent == "pose":
        axes.set(xticks=[-180, -90, 0, 90, 180], yticks=[-180, -90, 0, 90, 180])
    axes.tick_params(labelsize=8)
    top.set_title(title, fontsize=10)


def _reference_lines(axes: Axes, latent: str, low: float, high: float) -> None:
    """The diagonal of perfect answers and, for a pose, the lines a half-turn away."""
    axes.plot([low, high], [low, high], color=TRUTH_COLOUR, linewidth=0.8, zorder=0)
    if latent == "pose":
        for offset in (-180.0, 180.0):
            axes.plot(
                [low, high],
                [low + offset, high + offset],
                color=TRUTH_COLOUR,
                linewidth=0.8,
                linestyle="--",
                zorder=0,
            )


def plot_residuals(fit: Fit) -> Figure:
    """Mean residual of each latent against training time, stage by stage, with the information limit.

    Parameters
    ----------
    fit : Fit
        A finished experiment.
    """
    latents = [name for name in LABELS if name in fit.program.inferred]
    figure, axes = new_figure(len(latents), 1, height=1.6 + 1.7 * len(latents), sharex=True)
    seconds = [record["seconds"] for record in fit.history]
    for ax, latent in zip(axes[:, 0], latents, strict=True):
        values = [record[f"{latent}_residual"] for record in fit.history]
        ax.semilogy(seconds, values, marker="o", markersize=3, label="test images")
        limit = fit.metrics[f"{RESIDUAL_KEYS[latent]}_limit"]
        ax.axhline(
            limit, color=TRUTH_COLOUR, linestyle="--", label=f"limit at K = {fit.metrics['resolution']}"
        )
        reported = fit.metrics.get(f"{RESIDUAL_KEYS[latent]}_paper")
        if reported is not None:
            ax.axhline(reported, color=COLOURS[4], linestyle=":", label="paper")
        ax.set_ylabel(RESIDUAL_LABELS[latent])
        plain_log_ticks(ax, "y")
        ax.grid(axis="y", alpha=0.3)
    _mark_stages(axes, fit)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    axes[-1, 0].set_xlabel("training time (s)")
    figure.suptitle("mean residual of a posterior draw")
    return figure


def _mark_stages(axes: np.ndarray, fit: Fit) -> None:
    """Shade every second stage and write its K at the top."""
    for index in range(len(fit.snapshots)):
        times = [r["seconds"] for r in fit.history if r["stage"] == index]
        earlier = [r["seconds"] for r in fit.history if r["stage"] < index]
        start, end = (earlier[-1] if earlier else 0.0), times[-1]
        record = next(r for r in fit.history if r["stage"] == index)
        for ax in axes[:, 0]:
            if index % 2 == 0:
                ax.axvspan(start, end, color="0.93", zorder=0, linewidth=0)
        kind = "sim." if record["objective"] == "forward_kl" else "ELBO"
        axes[0, 0].annotate(
            f"{record['resolution']}\n{kind}",
            ((start + end) / 2, 1.02),
            xycoords=("data", "axes fraction"),
            ha="center",
            fontsize=8,
        )
    axes[0, 0].annotate("K =", (-0.01, 1.07), xycoords="axes fraction", ha="right", fontsize=8)


def plot_components(fit: Fit) -> Figure:
    """How the mixture uses its components: the lighter one's weight, and the angle between the means.

    Parameters
    ----------
    fit : Fit
        An experiment that infers the pose with two components or more.
    """
    figure, axes = new_figure(1, 2, height=2.9)
    weights = [snapshot["pose_logits"].softmax(-1).sort(dim=-1).values[:, -2] for snapshot in fit.snapshots]
    labels = _stage_labels(fit)
    positions = range(len(labels))
    axes[0, 0].boxplot(
        [w.numpy() for w in weights], positions=positions, whis=(5, 95), showfliers=False, widths=0.5
    )
    axes[0, 0].set(
        xlabel="K of the stage", ylabel="weight of second component", xticks=positions, ylim=(-0.02, 0.52)
    )
    objectives = {label.partition(", ")[2] for label in labels}
    shown = [label.partition(", ")[0] for label in labels] if len(objectives) == 1 else labels
    axes[0, 0].set_xticklabels(
        [label.replace(", ", "\n").removeprefix("K = ") for label in shown], fontsize=8
    )
    for index, (snapshot, label) in enumerate(zip(fit.snapshots, labels, strict=True)):
        between = torch.rad2deg(_angle_between_leaders(snapshot))[weights[index] > NOTICEABLE_WEIGHT]
        shade = plt.get_cmap("viridis")(index / max(1, len(labels) - 1))
        axes[0, 1].hist(
            between.numpy(),
            bins=np.linspace(0, 180, 19),
            histtype="step",
            color=shade,
            label=f"{label} ({len(between)})",
        )
    axes[0, 1].set(xlabel="angle between the two means (°)", ylabel="images", xticks=[0, 45, 90, 135, 180])
    axes[0, 1].legend(fontsize=8)
    return figure


def _angle_between_leaders(snapshot: Mapping[str, Tensor]) -> Float[Tensor, "images"]:
    """Angle between the means of the two components of largest weight, in radians."""
    leaders = snapshot["pose_logits"].topk(2, dim=-1).indices[..., None].expand(-1, -1, 2)
    means = torch.nn.functional.normalize(snapshot["pose_concentrations"].gather(1, leaders), dim=-1)
    return (means[:, 0] * means[:, 1]).sum(-1).clamp(-1, 1).arccos()


def plot_residual_distributions(fit: Fit) -> Figure:
    """Cumulative distribution of each latent's residual over the test images, after every stage.

    Parameters
    ----------
    fit : Fit
        A finished experiment.
    """
    latents = [name for name in LABELS if name in fit.program.inferred]
    figure, axes = new_figure(1, len(latents), height=2.9, sharey=True)
    for ax, latent in zip(axes[0], latents, strict=True):
        for index, snapshot in enumerate(fit.snapshots):
            values = residuals(snapshot, fit.truth)[latent].sort().values
            proportion = np.linspace(0, 1, len(values))
            shade = plt.get_cmap("viridis")(0.9 * index / max(1, len(fit.snapshots) - 1))
            ax.semilogx(values.clamp(min=1e-3), proportion, color=shade, label=_stage_labels(fit)[index])
        ax.axvline(
            fit.metrics[f"{RESIDUAL_KEYS[latent]}_limit"], color=TRUTH_COLOUR, linestyle="--", linewidth=1
        )
        ax.set_xlabel(RESIDUAL_LABELS[latent])
        plain_log_ticks(ax, "x")
    axes[0, 0].set_ylabel("fraction of images below")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _stage_labels(fit: Fit) -> list[str]:
    """Each stage by its K, and by its objective where that is not the ELBO."""
    stages = fit.profile.stages(fit.name)
    return [f"K = {s.resolution}" + (", simulations" if s.objective == "forward_kl" else "") for s in stages]


def plain_log_ticks(axes: Axes, along: str, most: int = 5) -> None:
    """Numbers such as 0.1 and 20 on a logarithmic axis: a few of them, decades before others."""
    axis, limits = (axes.xaxis, axes.get_xlim()) if along == "x" else (axes.yaxis, axes.get_ylim())
    low, high = sorted(limits)
    for steps in ((1, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in range(-6, 7) for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _as_numbers(latent: str, latents: Mapping[str, Tensor]) -> np.ndarray:
    """Degrees for a pose, the first mode for amplitudes, the value for a defocus."""
    if latent == "pose":
        return torch.rad2deg(unit_vector_to_angle(latents["pose"])).numpy()
    return (latents["amplitude"][:, 0] if latent == "amplitude" else latents["defocus"]).numpy()


def _common_range(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """A square that holds the truth, and all but the wildest one in two hundred of the predictions."""
    low, high = np.quantile(y, [0.0025, 0.9975])
    low, high = min(low, x.min()), max(high, x.max())
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def plot_offsets(fits: Sequence[Fit], resolution: int, count: int = 60) -> Figure:
    """How far each run's poses are off, with sign, below the landscape that the ELBO offers to such an error.

    Parameters
    ----------
    fits : sequence of Fit
        Runs that infer the pose, of one structure and noise.
    resolution : int
        K of the landscape: the log-likelihood at an angle from the true pose, mean over test images.
    count : int
        Test images for the mean.
    """
    first = fits[0]
    images = draw_test_images(first.profile, first.name)[:count]
    offsets = torch.arange(-180.0, 180.0, 0.5)
    model, noise = first.program.forward_model, first.profile.noise
    truth = to_forward(images.latents)
    profile = pose_profiles(model, images.coefficients, truth, offsets.deg2rad(), noise, resolution).mean(0)
    figure, axes = new_figure(2, 1, height=4.2, sharex=True, height_ratios=(2, 1))
    axes[0, 0].plot(offsets, (profile - profile.median()) / 1000, color="0.3", linewidth=1)
    axes[0, 0].set(ylabel="log-likelihood\n(1000 nats)", title=f"the landscape at K = {resolution}")
    bins = np.linspace(-180, 180, 181)
    for number, fit in enumerate(fits):
        found, true = (unit_vector_to_angle(latents["pose"]) for latents in (fit.snapshots[-1], fit.truth))
        errors = torch.rad2deg(wrap_angle(found - true))
        style = {"color": COLOURS[number], "alpha": 0.7, "label": f"seed {fit.profile.seed_of(fit.name)}"}
        axes[1, 0].hist(errors.numpy(), bins=bins, weights=np.full(len(errors), 100 / len(errors)), **style)
    axes[1, 0].set(xlabel="predicted less true pose (°)", ylabel="images (%)", xlim=(-180, 180))
    axes[1, 0].set_xticks([-180, -90, 0, 90, 180])
    axes[1, 0].legend(loc="upper right", fontsize=9)
    return figure


def plot_projected_normal(concentrations: tuple[float, ...] = (0.0, 1.0, 3.0, 10.0)) -> Figure:
    """Density of a projected normal that points to 0°, for several lengths of its mean vector.

    Parameters
    ----------
    concentrations : tuple of float
        Lengths |μ|.
    """
    figure, axes = new_figure(1, 1, height=2.9)
    angles = torch.linspace(-math.pi, math.pi, 721)
    for concentration in concentrations:
        density = (
            ProjectedNormal(torch.tensor([concentration, 0.0])).log_prob(angle_to_unit_vector(angles)).exp()
        )
        axes[0, 0].plot(torch.rad2deg(angles), torch.deg2rad(density), label=f"|μ| = {concentration:g}")
    axes[0, 0].set(xlabel="direction (°)", ylabel="density (1/°)", xticks=[-180, -90, 0, 90, 180])
    axes[0, 0].legend()
    return figure
