"""The whole book in one figure: the program that makes an image, and the inference that runs it backwards."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from cryoanm_lib.book.figures.calibration import draw_window
from cryoanm_lib.book.figures.images import draw_image
from cryoanm_lib.book.figures.structure import draw_trace
from cryoanm_lib.book.figures.style import COLOURS, GREY, new_figure
from cryoanm_lib.book.windows import window
from cryoanm_lib.inference.exact_posterior import exact_posterior
from cryoanm_lib.numerics.fourier import coefficients_to_image, crop_coefficients
from cryoanm_lib.particles.particles import Particles, to_forward
from cryoanm_lib.program.program import CryoProgram

_TITLE_SIZE = 9


def plot_pipeline(program: CryoProgram, image: Particles, coarse: int, fine: int) -> Figure:
    """From a molecule to its image along the upper row, and back to the latents along the lower one.

    Parameters
    ----------
    program : CryoProgram
        Infers pose and amplitude in the plane.
    image : Particles
        One image, at the size of the box.
    coarse, fine : int
        Two resolutions at which the posterior is shown.
    """
    model, latents = program.forward_model, to_forward(image.latents)
    figure, axes = new_figure(2, 4, height=4.0)
    size = model.box_size * model.pixel_size
    half = (-size / 2, size / 2)
    bent = model.deform(latents.amplitudes)[0]
    turned = bent @ latents.rotations[0].T
    draw_trace(axes[0, 0], model.reference, markersize=1)
    draw_trace(axes[0, 0], bent, color=COLOURS[0], markersize=1)
    draw_trace(axes[0, 1], turned, color=COLOURS[0], markersize=1)
    projected = coefficients_to_image(model.projections(latents, model.box_size)[0], model.box_size)
    draw_image(axes[0, 2], projected, size)
    draw_image(axes[0, 3], model.images(latents)[0], size)
    seen = coefficients_to_image(image.coefficients[0], model.box_size)
    cropped = coefficients_to_image(crop_coefficients(image.coefficients[0], coarse), coarse)
    draw_image(axes[1, 3], seen, size)
    draw_image(axes[1, 2], cropped, size)
    for ax, resolution in ((axes[1, 1], coarse), (axes[1, 0], fine)):
        _draw_posterior(ax, program, image, resolution)
    titles = ("1. bend it\nby α", "2. turn it\nby θ", "3. look\nthrough it", "4. defocus\nby z")
    titles += (
        f"8. sharpen\nit, K = {fine}",
        f"7. posterior\nK = {coarse}",
        "6. see it\ncoarsely",
        "5. add\nnoise",
    )
    for ax, title in zip(axes.flat, titles, strict=True):
        ax.set_title(title, fontsize=_TITLE_SIZE)
        ax.set_box_aspect(1)
    for ax in (*axes[0], *axes[1, 2:]):
        ax.set(xticks=[], yticks=[], xlim=half, ylim=half)
    for before, after in zip(axes[0], axes[0, 1:], strict=False):
        _arrow(figure, before, after, (1.03, 0.5), (-0.03, 0.5))
    _arrow(figure, axes[0, 3], axes[1, 3], (0.9, -0.04), (0.9, 1.32))
    for after, before in zip(axes[1], axes[1, 1:], strict=False):
        _arrow(figure, before, after, (-0.03, 0.92), (1.03, 0.92))
    return figure


def _draw_posterior(ax: Axes, program: CryoProgram, image: Particles, resolution: int) -> None:
    """Where the latents may be, and where they were."""
    shown = window(exact_posterior(program, image, resolution))
    draw_window(ax, shown, mark=8)
    ax.locator_params(nbins=3)
    ax.tick_params(labelsize=7, pad=1, length=2)
    ax.set_xlabel("θ (°)", fontsize=_TITLE_SIZE, labelpad=0)
    ax.set_ylabel("α (Å)", fontsize=_TITLE_SIZE, labelpad=0)


def _arrow(
    figure: Figure, before: Axes, after: Axes, start: tuple[float, float], end: tuple[float, float]
) -> None:
    """From a place of one panel to a place of another, both in the panels' own fractions."""
    arrow = ConnectionPatch(
        start, end, "axes fraction", "axes fraction", axesA=before, axesB=after, arrowstyle="-|>", color=GREY
    )
    arrow.set_in_layout(False)
    figure.add_artist(arrow)
