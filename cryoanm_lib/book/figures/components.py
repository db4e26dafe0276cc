"""Figures of the pseudo-symmetry: what a second component of the pose's mixture is for."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cryoanm_lib.book.figures.style import COLOURS, TRUTH_COLOUR, WIDTH, new_figure
from cryoanm_lib.book.landscapes import far_half_mass, pose_profiles
from cryoanm_lib.checks.residuals import TWO_SIDED_WEIGHT, opposite_weight
from cryoanm_lib.experiments.fit import Fit
from cryoanm_lib.numerics.fourier import coefficients_to_image, crop_coefficients
from cryoanm_lib.numerics.rotation import angle_to_unit_vector, unit_vector_to_angle
from cryoanm_lib.particles.particles import Particles, to_forward
from cryoanm_lib.program.distributions import ProjectedNormalMixture


def plot_two_sidedness(exact: Mapping[int, Float[Tensor, "images"]], fits: Mapping[str, Fit]) -> Figure:
    """How two-sided the exact posterior of the pose is at each K, and how two-sided the guides made it.

    Parameters
    ----------
    exact : mapping of int to Float[Tensor, "images"]
        For each K the posterior mass of the half circle that faces away from the highest peak, for the first
        test images.
    fits : mapping of str to Fit
        Experiments that infer the pose in stages, by what to call them; the last stage at each K counts.
    """
    figure, axes = new_figure(1, 2, height=3.2)
    measures = (
        (axes[0, 0], lambda mass: mass.mean().item(), "mean mass of the far side"),
        (axes[0, 1], lambda mass: (mass >= TWO_SIDED_WEIGHT).double().mean().item(), "two-sided images"),
    )
    curves = {"exact posterior": dict(exact)}
    for label, fit in fits.items():
        stages = fit.profile.stages(fit.name)
        curves[label] = {
            stage.resolution: _far_mass_of_guide(snapshot, len(exact[stage.resolution]))
            for stage, snapshot in zip(stages, fit.snapshots, strict=True)
            if stage.resolution in exact
        }
    styles = [("s--", TRUTH_COLOUR), *(("o-", colour) for colour in COLOURS)]
    for ax, measure, title in measures:
        for (label, masses), (style, colour) in zip(curves.items(), styles, strict=False):
            found = [measure(mass) for mass in masses.values()]
            ax.plot(list(masses), found, style, color=colour, markersize=4, label=label)
        ax.set(xlabel="K", title=title, xticks=list(exact))
        ax.set_ylim(bottom=-0.02)
        ax.grid(axis="y", alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _far_mass_of_guide(snapshot: Mapping[str, Tensor], count: int) -> Float[Tensor, "images"]:
    """The same mass under the guide's mixture, for the first images."""
    angles = torch.arange(-180, 180, 1.0).deg2rad()
    guide = ProjectedNormalMixture(snapshot["pose_logits"][:count], snapshot["pose_concentrations"][:count])
    return far_half_mass(guide.log_prob(angle_to_unit_vector(angles)[:, None]).T)


def plot_sides(fits: Mapping[str, Fit]) -> Figure:
    """How the weight of opposite components and the share of flipped draws move during training.

    Parameters
    ----------
    fits : mapping of str to Fit
        Experiments that infer the pose, by what to call them.
    """
    figure, axes = new_figure(len(fits), 1, height=1.2 + 1.6 * len(fits))
    for ax, (label, fit) in zip(axes[:, 0], fits.items(), strict=True):
        steps = [record["total_steps"] for record in fit.history]
        opposite = [record["pose_opposite_weight"] for record in fit.history]
        flipped = [record["pose_flipped_fraction"] for record in fit.history]
        ax.plot(steps, opposite, marker="o", markersize=3, label="weight of opposite components")
        ax.plot(steps, flipped, marker="o", markersize=3, linestyle=":", label="flipped draws")
        start = 0
        for index, stage in enumerate(fit.profile.stages(fit.name)):
            end = max(record["total_steps"] for record in fit.history if record["stage"] == index)
            if index % 2 == 0:
                ax.axvspan(start, end, color="0.93", zorder=0, linewidth=0)
            place = ((start + end) / 2, 0.98)
            ax.annotate(
                str(stage.resolution),
                place,
                xycoords=("data", "axes fraction"),
                ha="center",
                va="top",
                fontsize=8,
            )
            start = end
        ax.set(title=label, ylabel="mean over images", ylim=(-0.03, 0.62))
    axes[-1, 0].set_xlabel("steps; K on top")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def plot_disagreements(particles: Particles, fits: Mapping[str, Fit], stage: int, count: int = 4) -> Figure:
    """The images at which the components of the first guide disagree most, and what each guide says of them.

    Parameters
    ----------
    particles : Particles
        The test images of the experiments.
    fits : mapping of str to Fit
        Experiments on these images, by what to call them; the first picks the images.
    stage : int
        The stage after which to look, with the same K in all.
    count : int
        Images to show.
    """
    first = next(iter(fits.values()))
    resolution = first.profile.stages(first.name)[stage].resolution
    chosen = opposite_weight(first.snapshots[stage]).topk(count).indices
    images = particles[chosen]
    offsets = torch.arange(-180, 180, 1.0).deg2rad()
    exact = pose_profiles(
        first.program.forward_model,
        images.coefficients,
        to_forward(images.latents),
        offsets,
        first.profile.noise,
        resolution,
    ).softmax(-1)
    densities = {
        label: _densities(fit.snapshots[stage], chosen, images, offsets) for label, fit in fits.items()
    }
    figure, axes = new_figure(3, count, height=1.35 * WIDTH * 2.6 / count, height_ratios=(1, 1, 1))
    box = first.program.forward_model.box_size
    for column in range(count):
        coefficients = images.coefficients[column]
        _show(axes[0, column], coefficients_to_image(coefficients, box))
        cropped = crop_coefficients(coefficients, resolution)
        _show(axes[1, column], coefficients_to_image(cropped, box))
        ax = axes[2, column]
        degrees = offsets.rad2deg()
        ax.fill_between(degrees, exact[column], color=TRUTH_COLOUR, alpha=0.3, linewidth=0, label="exact")
        for (label, density), colour in zip(densities.items(), COLOURS, strict=False):
            ax.plot(degrees, density[column], color=colour, linewidth=1.2, label=label)
        ax.set(xticks=[-180, 0, 180], yticks=[])
        ax.set_xlabel("off by (°)", fontsize=10)
    axes[0, 0].set_ylabel("image")
    axes[1, 0].set_ylabel(f"at K = {resolution}")
    axes[2, 0].set_ylabel("density")
    figure.legend(*axes[2, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _densities(
    snapshot: Mapping[str, Tensor], chosen: Tensor, images: Particles, offsets: Float[Tensor, "poses"]
) -> Float[Tensor, "images poses"]:
    """A guide's density, per grid step, at angles counted from the true pose."""
    angles = unit_vector_to_angle(images.latents["pose"])[None] + offsets[:, None]
    guide = ProjectedNormalMixture(snapshot["pose_logits"][chosen], snapshot["pose_concentrations"][chosen])
    density = guide.log_prob(angle_to_unit_vector(angles)).exp().T
    return density * (2 * math.pi / len(offsets))


def _show(axes: Axes, image: Float[Tensor, "rows columns"]) -> None:
    axes.imshow(np.asarray(image), origin="lower")
    axes.set(xticks=[], yticks=[])
