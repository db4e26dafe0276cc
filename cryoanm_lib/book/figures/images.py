"""Figures of how an image comes about."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Complex, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cryoanm_lib.book.figures.structure import AXIS_NAMES, draw_trace
from cryoanm_lib.book.figures.style import COLOURS, amplitude_label, new_figure, new_panels
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import Values, pose_to_rotation
from cryoanm_lib.imaging.noise import WhiteNoise
from cryoanm_lib.imaging.projection import PROJECTORS
from cryoanm_lib.imaging.transfer import Transfer
from cryoanm_lib.numerics.fourier import (
    coefficients_to_image,
    crop_coefficients,
    half_plane_frequencies,
    image_to_coefficients,
    to_real,
)


def draw_image(axes: Axes, image: Float[Tensor, "K K"], box_in_angstrom: float, **style) -> None:
    """Draw an image in greyscale on axes in ångström, its origin pixel at zero, y upwards."""
    size = len(image)
    pixel = box_in_angstrom / size
    first = -(size // 2) - 0.5
    low, high = first * pixel, (first + size) * pixel
    axes.imshow(image.numpy(), origin="lower", extent=(low, high, low, high), **style)


def _draw_scale_bar(axes: Axes, length: float = 20.0) -> None:
    """A white bar of so many ångström near the lower left corner, and no ticks."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x, y = left + 0.07 * (right - left), bottom + 0.08 * (top - bottom)
    axes.plot([x, x + length], [y, y], color="white", linewidth=5, solid_capstyle="butt")
    axes.plot([x, x + length], [y, y], color="black", linewidth=3, solid_capstyle="butt")
    axes.set(xticks=[], yticks=[], xlim=(left, right), ylim=(bottom, top))


def _steps(
    forward: ForwardModel, latents: Values, noise: float, seed: int
) -> dict[str, Complex[Tensor, "kept"]]:
    """Coefficients of one image after each step of Algorithm 1, over the whole box."""
    box_size, generator = forward.box_size, torch.Generator().manual_seed(seed)
    transferred = forward.coefficients(latents, box_size)
    return {
        "projection": forward.projections(latents, box_size),
        "contrast transfer": transferred,
        "noise": WhiteNoise(noise, box_size).sample(transferred, generator),
    }


def _limits(image: Float[Tensor, "..."]) -> dict[str, float]:
    """Grey levels that clip one pixel in a hundred."""
    low, high = image.flatten().quantile(torch.tensor([0.005, 0.995])).tolist()
    return {"vmin": low, "vmax": high}


def plot_conformations(
    forward: ForwardModel, latents: Values, amplitude: float, noise: float, seed: int = 0
) -> Figure:
    """The reference and the structure bent by ±α Å along the first mode, with an image after every step.

    Counterpart of the paper's Fig. 1a. The latents are of one image, without a batch dimension; the noise is
    σ_n a pixel, and the same in all three images.
    """
    n_atoms, size = len(forward.reference), forward.box_size * forward.pixel_size
    amplitudes = (-amplitude, 0.0, amplitude)
    figure, axes = new_figure(len(amplitudes), 4, height=5.0)
    bent = [_with_first_amplitude(latents, value, forward.n_modes) for value in amplitudes]
    steps = [_steps(forward, each, noise, seed) for each in bent]
    images = {name: [coefficients_to_image(s[name], forward.box_size) for s in steps] for name in steps[0]}
    limits = {name: _limits(torch.stack(each)) for name, each in images.items()}
    for row, (ax, value) in enumerate(zip(axes[:, 0], amplitudes, strict=True)):
        draw_trace(ax, _turned(forward, bent[1]))
        if value:
            draw_trace(ax, _turned(forward, bent[row]), color=COLOURS[0 if value > 0 else 1])
        ax.set(xlim=(-size / 2, size / 2), ylim=(-size / 2, size / 2))
        ax.set_ylabel(amplitude_label(value, n_atoms))
        for cell, name in zip(axes[row, 1:], images, strict=True):
            draw_image(cell, images[name][row], size, **limits[name])
    for ax, title in zip(axes[0], ("structure", *(f"+ {name}" for name in images)), strict=True):
        ax.set_title(title.replace("+ projection", "projection").replace("contrast ", "contrast\n"))
    for ax in axes.flat:
        _draw_scale_bar(ax)
    axes[-1, 0].set_xlabel("bar: 20 Å")
    return figure


def _with_first_amplitude(latents: Values, amplitude: float, n_modes: int) -> Values:
    amplitudes = latents["pose"].new_zeros(n_modes)
    amplitudes[0] = amplitude
    return {**latents, "amplitude": amplitudes}


def _turned(forward: ForwardModel, latents: Values) -> Float[Tensor, "atoms 3"]:
    """Coordinates in Å as the detector sees them."""
    return forward.deform(latents["amplitude"]) @ pose_to_rotation(latents["pose"]).transpose(-2, -1)


def plot_projection_steps(forward: ForwardModel, latents: Values, noise: float, seed: int = 0) -> Figure:
    """One image step by step: structure, projection, contrast transfer, noise; and the same in Fourier space.

    Parameters as of `plot_conformations`.
    """
    size = forward.box_size * forward.pixel_size
    steps = _steps(forward, latents, noise, seed)
    figure, axes = new_figure(3, 2, height=8.4, height_ratios=(1, 1, 0.8))
    draw_trace(axes[0, 0], _turned(forward, latents), color=COLOURS[0])
    axes[0, 0].set(title="structure, bent and turned", xlim=(-size / 2, size / 2), ylim=(-size / 2, size / 2))
    for ax, (name, coefficients) in zip(axes.flat[1:4], steps.items(), strict=True):
        image = coefficients_to_image(coefficients, forward.box_size)
        draw_image(ax, image, size, **_limits(image))
        # Inset, so that the bar is as high as the image whatever the layout does.
        figure.colorbar(ax.images[0], cax=ax.inset_axes((1.03, 0, 0.05, 1)))
        ax.set_title(name if name == "projection" else f"+ {name}")
    for ax in axes[:2].flat:
        ax.set(xlabel=AXIS_NAMES[0], ylabel=AXIS_NAMES[1])
    _draw_transfer(axes[2, 0], forward.transfer, latents)
    _draw_spectra(axes[2, 1], steps, noise, forward.box_size)
    return figure


def _draw_transfer(ax: Axes, microscope: Transfer, latents: Values) -> None:
    """The contrast transfer along a line from the centre to the corner of Fourier space."""
    frequency = torch.linspace(0, 0.5**0.5, 300)
    transfer = microscope.values(latents, torch.stack([frequency, torch.zeros_like(frequency)], dim=-1))
    ax.axhline(0, color="0.75", linewidth=0.8)
    ax.axvline(0.5, color="0.75", linewidth=0.8, linestyle=":")
    ax.plot(frequency, transfer, color=COLOURS[0])
    set_to = [f"{o.symbol} = {latents[o.name].item():.3g}{o.suffix}" for o in microscope.latents]
    ax.set(xlabel="frequency (1/px)", ylabel="contrast transfer", title=", ".join(set_to))


def _draw_spectra(
    ax: Axes, steps: Mapping[str, Complex[Tensor, "kept"]], noise: float, box_size: int
) -> None:
    """Mean square of the coefficients on rings of one integer frequency."""
    rings = half_plane_frequencies(box_size).norm(dim=-1).round().long()
    counts = rings.bincount()
    for colour, (name, coefficients) in zip(COLOURS, steps.items(), strict=False):
        power = rings.bincount(coefficients.abs().square()) / counts
        ax.semilogy(torch.arange(len(counts)) / box_size, power, color=colour, label=name)
    ax.axhline((noise / box_size) ** 2, color="black", linewidth=1, linestyle="--", label="σ² / N²")
    ax.set(xlabel="frequency (1/px)", ylabel="power", title="power spectrum")
    ax.set_ylim(bottom=0.01 * (noise / box_size) ** 2)
    ax.legend(fontsize=8, loc="upper right", handlelength=1.2)


def plot_projector_agreement(deviations: Mapping[str, Mapping[str, float]]) -> Figure:
    """Largest deviation of each projector from a dense float64 sum, as a share of the peak of one atom.

    By type of number, then projector, as of `projector_deviations`.
    """
    figure, ((ax,),) = new_figure(height=2.8)
    names = list(next(iter(deviations.values())))
    for colour, marker, (dtype, each) in zip(COLOURS, "os", deviations.items(), strict=False):
        ax.plot(list(each.values()), range(len(each)), marker, color=colour, markersize=9, label=dtype)
        for place, value in enumerate(each.values()):
            ax.annotate(
                f"{value:.1e}", (value, place), (0, 9), textcoords="offset points", ha="center", fontsize=9
            )
    ax.set(xscale="log", yticks=range(len(names)), yticklabels=names, ylim=(-0.5, len(names) - 0.3))
    ax.set_xlabel("largest deviation from the dense sum (peak of an atom = 1)")
    ax.margins(x=0.15)
    ax.grid(axis="y", color="0.9")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def projector_deviations(forward: ForwardModel, latents: Values) -> dict[str, dict[str, float]]:
    """Largest difference of a pixel between each projector and a sum over all atoms and pixels in float64.

    By type of number, then projector, for images of some latents.
    """
    box_size, width = forward.box_size, forward.atom_width
    positions = forward.positions(latents).double()
    pixels = torch.arange(box_size, dtype=torch.float64) - box_size // 2
    grid = torch.stack(torch.meshgrid(pixels, pixels, indexing="xy"), dim=-1)
    distance = (grid - positions[..., None, None, :]).square().sum(-1)
    dense = image_to_coefficients((-distance / (2 * width**2)).exp().sum(dim=-3), box_size)

    def deviation(name: str, dtype: torch.dtype) -> float:
        found = PROJECTORS[name](positions.to(dtype), box_size, width, box_size)
        return coefficients_to_image(found - dense, box_size).abs().max().item()

    types = {"float64": torch.float64, "float32": torch.float32}
    return {
        label: {name: deviation(name, dtype) for name in PROJECTORS if name != "auto"}
        for label, dtype in types.items()
    }


def plot_crop_levels(
    forward: ForwardModel,
    latents: Values,
    noise: float,
    resolutions: Sequence[int] = (64, 48, 32, 24, 16, 12),
    seed: int = 0,
) -> Figure:
    """One noisy image at several resolutions, each with its noise as measured and as predicted.

    Counterpart of the paper's Fig. A2. The measured noise is the deviation of what the crop holds besides the
    noise-free image, in an orthonormal basis; the predicted one is σ_n K/N. Parameters as of
    `plot_conformations`, and values of K up to the box size.
    """
    box_size = forward.box_size
    clean = forward.coefficients(latents, box_size)
    white = WhiteNoise(noise, box_size)
    noisy = white.sample(clean, torch.Generator().manual_seed(seed))
    figure, axes = new_panels(len(resolutions), 3, 0.4, 2.45)
    for ax, resolution in zip(axes.flat, resolutions, strict=False):
        image = coefficients_to_image(crop_coefficients(noisy, resolution), resolution)
        draw_image(ax, image, box_size * forward.pixel_size, **_limits(image))
        measured = to_real(crop_coefficients(noisy - clean, resolution), resolution).std().item()
        predicted = white.cropped(resolution).item()
        ax.set_title(f"K = {resolution}\n{measured:.4f} ({predicted:.4f})", fontsize=10)
        ax.set(xticks=[-20, 0, 20], yticks=[-20, 0, 20])
    for ax in axes[:, 0]:
        ax.set_ylabel(AXIS_NAMES[1])
    for ax in axes[-1]:
        ax.set_xlabel(AXIS_NAMES[0])
    figure.suptitle("noise in the crop: measured (predicted)")
    return figure
