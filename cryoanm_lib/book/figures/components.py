"""Figures of the pseudo-symmetry: what a second component of the pose's mixture is for."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from cryoanm_lib.book.figures.posterior import mark_stages
from cryoanm_lib.book.figures.style import COLOURS, TRUTH_COLOUR, WIDTH, new_figure
from cryoanm_lib.book.landscapes import far_half_mass, pose_profiles
from cryoanm_lib.checks.residuals import TWO_SIDED_WEIGHT, opposite_weight
from cryoanm_lib.experiments.fit import Fit
from cryoanm_lib.numerics.fourier import coefficients_to_image, crop_coefficients
from cryoanm_lib.numerics.rotation import angle_to_unit_vector, unit_vector_to_angle
from cryoanm_lib.particles.particles import Simulated
from cryoanm_lib.program.distributions import ProjectedNormalMixture


def plot_two_sidedness(exact: Mapping[int, Float[Tensor, "images"]], fits: Mapping[str, Fit]) -> Figure:
    """How two-sided the exact posterior of the pose is at each K, and how two-sided the guides made it.

    `exact` holds for each K the posterior mass of the half circle that faces away from the highest peak, for
    the first test images; of each experiment, by what to call it, the last stage at each K counts.
    """
    figure, axes = new_figure(1, 2, height=3.2)
    measures = (
        (axes[0, 0], lambda mass: mass.mean().item(), "mean mass of the far side"),
        (axes[0, 1], lambda mass: (mass >= TWO_SIDED_WEIGHT).double().mean().item(), "two-sided images"),
    )
    curves = {"exact posterior": dict(exact)}
    for label, fit in fits.items():
        stages = fit.run.stages
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
    """How the weight of opposite components and the share of flipped draws move, one panel an experiment."""
    figure, axes = new_figure(len(fits), 1, height=1.2 + 1.6 * len(fits))
    for ax, (label, fit) in zip(axes[:, 0], fits.items(), strict=True):
        steps = [record["total_steps"] for record in fit.history]
        opposite = [record["pose_opposite_weight"] for record in fit.history]
        flipped = [record["pose_flipped_fraction"] for record in fit.history]
        ax.plot(steps, opposite, marker="o", markersize=3, label="weight of opposite components")
        ax.plot(steps, flipped, marker="o", markersize=3, linestyle=":", label="flipped draws")
        mark_stages([ax], fit, "total_steps", lambda record: str(record["resolution"]), height=0.98, va="top")
        ax.set(title=label, ylabel="mean over images", ylim=(-0.03, 0.62))
    axes[-1, 0].set_xlabel("steps; K on top")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def plot_disagreements(particles: Simulated, fits: Mapping[str, Fit], stage: int, count: int = 4) -> Figure:
    """The images at which the components of the first guide disagree most, and what each guide says of them.

    The particles are the test images of all experiments, the answers those after one stage, with the same K
    in all.
    """
    first = next(iter(fits.values()))
    resolution = first.run.stages[stage].resolution
    chosen = opposite_weight(first.snapshots[stage]).topk(count).indices
    images = particles[chosen]
    offsets = torch.arange(-180, 180, 1.0).deg2rad()
    exact = pose_profiles(first.model.forward_model, images, offsets, resolution).softmax(-1)
    densities = {
        label: _densities(fit.snapshots[stage], chosen, images, offsets) for label, fit in fits.items()
    }
    figure, axes = new_figure(3, count, height=1.35 * WIDTH * 2.6 / count, height_ratios=(1, 1, 1))
    box = first.model.forward_model.box_size
    for column, coefficients in enumerate(images.coefficients):
        for ax, shown in zip(axes, (coefficients, crop_coefficients(coefficients, resolution)), strict=False):
            ax[column].imshow(coefficients_to_image(shown, box).numpy(), origin="lower")
            ax[column].set(xticks=[], yticks=[])
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
    snapshot: Mapping[str, Tensor], chosen: Tensor, images: Simulated, offsets: Float[Tensor, "poses"]
) -> Float[Tensor, "images poses"]:
    """A guide's density, per grid step, at angles counted from the true pose."""
    angles = unit_vector_to_angle(images.truth["pose"])[None] + offsets[:, None]
    guide = ProjectedNormalMixture(snapshot["pose_logits"][chosen], snapshot["pose_concentrations"][chosen])
    density = guide.log_prob(angle_to_unit_vector(angles)).exp().T
    return density * (2 * math.pi / len(offsets))
