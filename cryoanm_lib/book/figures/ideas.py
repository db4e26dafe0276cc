"""Pictures that show an idea before its derivation."""

import math

import torch
from jaxtyping import Complex, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from cryoanm_lib.book.figures.images import draw_image
from cryoanm_lib.book.figures.style import COLOURS, GREY, new_figure
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import Values
from cryoanm_lib.numerics.fourier import coefficients_to_image, half_plane_frequencies
from cryoanm_lib.numerics.rotation import angle_to_unit_vector, unit_vector_to_angle


def plot_aliases(atom_width: float, slow: float = 0.15) -> Figure:
    """Two waves that no pixel tells apart, and what this does to the transform of a sampled Gaussian.

    The width σ_a of the Gaussian is in pixels, the frequency of the slower wave in cycles per pixel.
    """
    figure, ((left, right),) = new_figure(1, 2, height=3.2)
    x, pixels = torch.linspace(0, 7, 701), torch.arange(8.0)
    for frequency, colour in ((slow + 1, COLOURS[1]), (slow, COLOURS[0])):
        left.plot(x, (2 * math.pi * frequency * x).cos(), color=colour, label=f"{frequency:g} / px")
    left.plot(pixels, (2 * math.pi * slow * pixels).cos(), "ko", markersize=6, label="at a pixel")
    left.set(xlabel="x (px)", ylabel="height", xticks=range(8), yticks=[-1, 0, 1], ylim=(-1.15, 1.15))

    frequency = torch.linspace(-1.5, 1.5, 601)
    copies = {shift: _transform(frequency + shift, atom_width) for shift in (-2, -1, 0, 1, 2)}
    right.axvspan(-0.5, 0.5, color="0.92")
    for shift in (-1, 1):
        right.plot(frequency, copies[shift], color=COLOURS[1], label="copies" if shift == 1 else None)
    right.plot(frequency, copies[0], color=COLOURS[0], label="the atom's")
    right.plot(frequency, sum(copies.values()), "k--", linewidth=1.2, label="sampled")
    right.set(xlabel="frequency (1/px)", ylabel="transform (px)", ylim=(0, 1.05 * copies[0].max().item()))
    for ax in (left, right):
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, handlelength=1, columnspacing=0.9)
    return figure


def _transform(frequency: Float[Tensor, "frequencies"], width: float) -> Float[Tensor, "frequencies"]:
    """That of a Gaussian of height 1 at the origin."""
    return math.sqrt(2 * math.pi) * width * (-2 * (math.pi * width * frequency).square()).exp()


def plot_phase_contrast(phase: float = 0.25, turns: tuple[int, ...] = (0, 45, 90)) -> Figure:
    """The wave behind a specimen as a sum of two arrows, of which defocus turns the scattered one by χ.

    One panel a χ, in degrees. The phase φ of the specimen is in radians, and counts are to first order in it.
    """
    figure, axes = new_figure(1, len(turns), height=2.5, sharey=True)
    for ax, turn in zip(axes[0], turns, strict=True):
        chi = math.radians(turn)
        tip = (1 - phase * math.sin(chi), phase * math.cos(chi))
        ax.add_patch(Circle((0, 0), 1, fill=False, color="0.75", linestyle="--"))
        # A little apart, so that arrows along one line are both seen.
        _draw_arrow(ax, (0, -0.05), (1, -0.05), GREY, "straight through")
        _draw_arrow(ax, (1, 0), tip, COLOURS[0], "scattered")
        _draw_arrow(ax, (0, 0), tip, "black", "sum")
        ax.set_title(f"χ = {turn}°\ncount: {1 - 2 * phase * math.sin(chi):.2f}")
        ax.set(xlim=(-0.05, 1.15), ylim=(-0.3, 0.5), aspect="equal", xlabel="real part", xticks=[0, 0.5, 1])
    axes[0, 0].set(ylabel="imaginary part", yticks=[0, 0.4])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _draw_arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, label: str
) -> None:
    arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", end, start, arrowprops=arrow)
    ax.plot([], [], color=colour, label=label)


def plot_turned_ring(
    forward: ForwardModel, latents: Values, turn_in_degrees: float = 60.0, radius: float = 10.0
) -> Figure:
    """A clean image and the same turned, the values along one ring of each, and the strengths of their waves.

    The latents are of one image, without a batch dimension; the ring's radius is in pixels.
    """
    angle = unit_vector_to_angle(latents["pose"]) + math.radians(turn_in_degrees)
    turned = {**latents, "pose": angle_to_unit_vector(angle)}
    figure, axes = new_figure(2, 2, height=5.2, height_ratios=(1.25, 1))
    degrees = torch.arange(360.0)
    titles, looks = ("as it is", f"turned by {turn_in_degrees:g}°"), (("-", "o", 3), ("--", "o", 7))
    for i, (ax, at, title) in enumerate(zip(axes[0], (latents, turned), titles, strict=True)):
        coefficients = forward.coefficients(at, forward.box_size)
        draw_image(ax, coefficients_to_image(coefficients, forward.box_size), forward.box_size)
        ax.add_patch(Circle((0, 0), radius, fill=False, color=COLOURS[i], linewidth=1.6))
        ax.set(title=title, xlabel="x (px)", ylabel="y (px)", xlim=(-25, 25), ylim=(-25, 25))
        along = _values_along(coefficients, forward.box_size, radius, degrees.deg2rad())
        strength = torch.fft.rfft(along, norm="forward").abs()[: int(math.pi * radius) + 1]
        line, marker, size = looks[i]
        axes[1, 0].plot(degrees, along, line, color=COLOURS[i], label=title)
        face = COLOURS[i] if line == "-" else "none"
        axes[1, 1].plot(strength, marker, color=COLOURS[i], markersize=size, markerfacecolor=face)
    upright = axes[1, 0].lines[0].get_ydata()
    peak, top = upright.argmax(), 1.15 * upright.max()
    arrow = {"arrowstyle": "-|>", "color": "black", "shrinkA": 0, "shrinkB": 0}
    axes[1, 0].annotate("", (peak + turn_in_degrees, top), (peak, top), arrowprops=arrow)
    axes[1, 0].set(xlabel="φ along the ring (°)", ylabel="image", xticks=[0, 90, 180, 270, 360])
    axes[1, 0].set(ylim=(None, 1.15 * top))
    axes[1, 1].set(xlabel="m (waves along the ring)", ylabel=r"strength $|c_m|$", ylim=(0, None))
    return figure


def _values_along(
    coefficients: Complex[Tensor, "kept"], box_size: int, radius: float, angles: Float[Tensor, "angles"]
) -> Float[Tensor, "angles"]:
    """The Fourier series of an image on a ring: all waves of the half plane, twice but for the constant."""
    points = radius * torch.stack([angles.cos(), angles.sin()], dim=-1)
    phase = 2 * math.pi * points @ half_plane_frequencies(box_size).to(points).T / box_size
    waves = torch.polar(torch.ones_like(phase), phase) * coefficients
    return 2 * waves.real.sum(-1) - coefficients[0].real
