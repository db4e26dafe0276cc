"""Poses in space: the double cover, the images, and how far guide and refinement are from the limit."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from cryoanm_lib.book.figures.style import COLOURS, GREY, TRUTH_COLOUR, new_figure, plain_log_ticks
from cryoanm_lib.checks.residuals import residuals
from cryoanm_lib.experiments.assess import Assessment
from cryoanm_lib.imaging.latents import LATENTS
from cryoanm_lib.numerics.fourier import coefficients_to_image, crop_coefficients
from cryoanm_lib.numerics.rotation import quaternion_z
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.antipodal import AntipodalProjectedNormal


def plot_double_cover(concentration: float = 4.0) -> Figure:
    """The quaternion of a turn as it goes round twice, and a density that its sign does not matter to.

    The concentration is |μ| of an antipodal projected normal.
    """
    angle = torch.linspace(0, 4 * math.pi, 721, dtype=torch.float64)
    quaternion, degrees = quaternion_z(angle), torch.rad2deg(angle).numpy()
    mean = torch.tensor([concentration, 0.0, 0.0, 0.0], dtype=torch.float64)
    both = AntipodalProjectedNormal(mean).log_prob(quaternion).exp()
    figure, axes = new_figure(2, 1, height=4.2, sharex=True)
    for number, name in ((0, "w = cos φ/2"), (3, "z = sin φ/2")):
        axes[0, 0].plot(degrees, quaternion[:, number].numpy(), label=name, color=COLOURS[bool(number)])
    axes[0, 0].set_ylabel("quaternion")
    alone = _of_one_sign(mean, quaternion)
    axes[1, 0].plot(degrees, both.numpy(), color=COLOURS[2], linewidth=4, alpha=0.35, label="both signs")
    axes[1, 0].plot(degrees, alone.numpy(), "--", color="black", label="h alone")
    axes[1, 0].set(xlabel="turn φ (°)", ylabel="density (rad⁻³)", xticks=range(0, 721, 90))
    for ax in axes[:, 0]:
        ax.axvline(360, color=GREY, linewidth=0.8, zorder=0)
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _of_one_sign(mean: Float[Tensor, "4"], quaternion: Float[Tensor, "points 4"]) -> Float[Tensor, "points"]:
    """The density of a Gaussian's direction at h and not at -h, in the same unit."""
    along = quaternion @ mean
    across = (mean - along[:, None] * quaternion).square().sum(1)
    upper = torch.special.ndtr(along)
    ray = (-along.square() / 2).exp() * (along.square() + 2)
    ray += math.sqrt(2 * math.pi) * along * (along.square() + 3) * upper
    return ray * (-across / 2).exp() / (32 * math.pi**2)


def plot_particles(levels: Mapping[str, Particles], resolution: int, count: int = 6) -> Figure:
    """Images in the same poses, a row for each level of noise, all pixels of a row on one scale."""
    figure, axes = new_figure(len(levels), count, height=1.12 * len(levels))
    for row, (name, particles) in zip(axes, levels.items(), strict=True):
        images = coefficients_to_image(crop_coefficients(particles.coefficients, resolution), resolution)
        high = images[:count].abs().quantile(0.999).item()
        for ax, image in zip(row, images, strict=False):
            ax.imshow(image.numpy(), origin="lower", cmap="gray", vmin=-high, vmax=high)
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    return figure


def plot_beside_limit(assessment: Assessment) -> Figure:
    """How many images are within so many limits of the truth, for each latent, by guide and refined.

    The assessment is of a program that infers a pose in space.
    """
    latents = [name for name in LATENTS if name in assessment.limit]
    figure, axes = new_figure(2, 2, height=4.6, sharey=True)
    for ax, latent in zip(axes.flat, latents, strict=False):
        for method, colour in (("guide", COLOURS[1]), ("refined", COLOURS[0])):
            tested = assessment.tested[method]
            draw, n_images = tested[f"draw.{latent}"], len(tested["level"])
            truth = {latent: assessment.truth[latent][:n_images]}
            away = residuals({latent: draw}, truth)[latent] / assessment.limit[latent][:n_images]
            ordered = away.sort().values.clamp(min=1e-3)
            share = torch.arange(1, n_images + 1) / n_images
            ax.plot(ordered.numpy(), share.numpy(), color=colour, label=method)
        ax.axvline(1.0, color=TRUTH_COLOUR, linestyle="--", linewidth=1.2, label="limit, on average")
        ax.set(xscale="log", title=LATENTS[latent].residual_label, xlim=(0.05, None))
        ax.grid(alpha=0.3)
        plain_log_ticks(ax, "x", most=5)
    for ax in axes[-1]:
        ax.set_xlabel("residual / limit")
    for ax in axes[:, 0]:
        ax.set_ylabel("share of images")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def plot_ways_to_train(histories: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Residual of the pose against training time, a line for each way to train, from its history."""
    figure, axes = new_figure(height=3.2)
    ax = axes[0, 0]
    for (name, history), colour in zip(histories.items(), COLOURS, strict=False):
        seconds = [record["seconds"] for record in history]
        ax.plot(seconds, [record["pose_residual"] for record in history], color=colour, label=name)
    ax.set(yscale="log", xlabel="training time (s)", ylabel="pose residual (°)")
    ax.grid(alpha=0.3)
    plain_log_ticks(ax, "y")
    ax.legend()
    return figure
