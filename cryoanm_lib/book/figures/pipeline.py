"""The whole book in one figure: the program that makes an image, and the inference that runs it backwards."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from cryoanm_lib.book.figures.calibration import draw_window
from cryoanm_lib.book.figures.images import draw_image
from cryoanm_lib.book.figures.structure import draw_trace
from cryoanm_lib.book.figures.style import COLOURS, GREY, new_figure
from cryoanm_lib.book.windows import window
from cryoanm_lib.imaging.latents import pose_to_rotation
from cryoanm_lib.inference.exact_posterior import exact_posterior
from cryoanm_lib.numerics.fourier import coefficients_to_image, crop_coefficients
from cryoanm_lib.particles.particles import Simulated
from cryoanm_lib.program.program import Model

_TITLE_SIZE = 9


def plot_pipeline(model: Model, image: Simulated, coarse: int, fine: int) -> Figure:
    """From a molecule to its image along the upper row, and back to the latents along the lower one.

    The model infers pose and amplitude in the plane. The one image has the size of the box, and its posterior
    is shown at two resolutions.
    """
    forward, latents = model.forward_model, image.truth
    figure, axes = new_figure(2, 4, height=4.0)
    # inches, so that arrows have their room
    figure.set_layout_engine("constrained", w_pad=0.13, h_pad=0.1)
    size = forward.box_size * forward.pixel_size
    half = (-size / 2, size / 2)
    bent = forward.deform(latents["amplitude"])[0]
    turned = bent @ pose_to_rotation(latents["pose"])[0].T
    draw_trace(axes[0, 0], forward.reference, markersize=1)
    draw_trace(axes[0, 0], bent, color=COLOURS[0], markersize=1)
    draw_trace(axes[0, 1], turned, color=COLOURS[0], markersize=1)
    projected = coefficients_to_image(forward.projections(latents, forward.box_size)[0], forward.box_size)
    draw_image(axes[0, 2], projected, size)
    draw_image(axes[0, 3], forward.images(latents)[0], size)
    seen = coefficients_to_image(image.coefficients[0], forward.box_size)
    cropped = coefficients_to_image(crop_coefficients(image.coefficients[0], coarse), coarse)
    draw_image(axes[1, 3], seen, size)
    draw_image(axes[1, 2], cropped, size)
    for ax, resolution in ((axes[1, 1], coarse), (axes[1, 0], fine)):
        _draw_posterior(ax, model, image, resolution)
    (focus,) = forward.transfer.latents
    titles = ["1. bend it\nby α", "2. turn it\nby θ", "3. look\nthrough it"]
    titles += [f"4. {focus.name}\nby {focus.symbol}", f"8. sharpen\nit, K = {fine}"]
    titles += [f"7. posterior\nK = {coarse}", "6. see it\ncoarsely", "5. add\nnoise"]
    for ax, title in zip(axes.flat, titles, strict=True):
        ax.set_title(title, fontsize=_TITLE_SIZE)
        ax.set_box_aspect(1)
    for ax in (*axes[0], *axes[1, 2:]):
        ax.set(xticks=[], yticks=[], xlim=half, ylim=half)
    for before, after in zip(axes[0], axes[0, 1:], strict=False):
        _arrow(figure, before, after, (1.04, 0.5), (-0.04, 0.5))
    _arrow(figure, axes[0, 3], axes[1, 3], (0.5, -0.04), (0.5, 1.36))
    for after, before in zip(axes[1], axes[1, 1:], strict=False):
        _arrow(figure, before, after, (-0.04, 0.9), (1.04, 0.9))
    return figure


def _draw_posterior(ax: Axes, model: Model, image: Simulated, resolution: int) -> None:
    """Where the latents may be, and where they were."""
    shown = window(exact_posterior(model, image, resolution))
    draw_window(ax, shown, mark=8)
    ax.locator_params(nbins=3)
    ax.tick_params(labelsize=7, pad=1, length=2)
    ax.tick_params(axis="y", direction="in", pad=-4)  # the gap beside the panel belongs to an arrow
    ax.set_axisbelow(False)
    for label in ax.get_yticklabels():
        label.set_horizontalalignment("left")
    ax.set_xlabel("θ (°)", fontsize=_TITLE_SIZE, labelpad=0)
    ax.set_ylabel("α (Å)", fontsize=_TITLE_SIZE, labelpad=2)


def _arrow(
    figure: Figure, before: Axes, after: Axes, start: tuple[float, float], end: tuple[float, float]
) -> None:
    """From a place of one panel to a place of another, both in the panels' own fractions."""
    look = {"arrowstyle": "-|>", "mutation_scale": 12, "shrinkA": 0, "shrinkB": 0, "color": GREY}
    places = ("axes fraction", "axes fraction")
    arrow = ConnectionPatch(start, end, *places, axesA=before, axesB=after, **look)
    arrow.set_in_layout(False)
    figure.add_artist(arrow)
