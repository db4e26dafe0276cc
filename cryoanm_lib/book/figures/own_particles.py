"""Figures of a run on particles of one's own: what was found, how it fits, and whether it is honest."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from cryoanm_lib.analysis.answers import Answers
from cryoanm_lib.analysis.learned import Learned
from cryoanm_lib.analysis.run_population import RunPopulation
from cryoanm_lib.book.figures.style import COLOURS, GREY, new_figure, new_panels
from cryoanm_lib.checks.calibration import LEVELS

#: Percentiles within which the greys and axes of a figure lie.
_MOST = torch.tensor([0.005, 0.995])
#: kT above the highest density to which contours go: from 2000 particles less is not known.
_LOWEST = 6


def plot_amplitudes(answers: Answers) -> Figure:
    """How the means of each amplitude are distributed; a bar is twice the deviation of a typical particle."""
    amplitudes, error = answers.mean["amplitude"], _amplitude_errors(answers)
    figure, axes = new_panels(amplitudes.shape[1], min(3, amplitudes.shape[1]), extra=0.3, each=2.4)
    for number, (values, deviation) in enumerate(zip(amplitudes.T, error.T, strict=True)):
        ax = axes.flat[number]
        count, _, _ = ax.hist(values.numpy(), bins=40, color=COLOURS[0], alpha=0.8)
        top, middle = 1.08 * count.max(), values.median().item()
        ax.errorbar(middle, top, xerr=2 * deviation.median().item(), color=COLOURS[1], capsize=3)
        ax.set(xlabel=f"amplitude {number + 1} (Å)", ylim=(0, 1.2 * count.max()))
    axes[0, 0].set_ylabel("particles")
    return figure


def plot_population(population: RunPopulation, answers: Answers) -> Figure:
    """The density of each amplitude with its 95 % band, and its Gaussians, over the pile of the means."""
    amplitudes = answers.mean["amplitude"][answers.explained()]
    modes = amplitudes.shape[1]
    figure, axes = new_panels(modes, min(3, modes), extra=0.3, each=2.4)
    for number, values in enumerate(amplitudes.T):
        ax, at = axes.flat[number], population.at[number]
        ax.hist(values.numpy(), bins=40, density=True, color=GREY, alpha=0.4, label="means")
        ax.fill_between(
            *(part[number].numpy() for part in (population.at, population.low, population.high)),
            **dict(color=COLOURS[0], alpha=0.3, linewidth=0),
        )
        for kind, style, label in (
            (population.smooth, "-", "smooth"),
            (population.gaussians, "--", "Gaussians"),
        ):
            density = kind[number].density(at[:, None])
            colour = COLOURS[0] if style == "-" else COLOURS[1]
            ax.plot(at.numpy(), density.numpy(), style, color=colour, linewidth=1.2, label=label)
        ax.set(xlabel=f"amplitude {number + 1} (Å)", yticks=[])
        # where next to nobody is the axis need not go
        seen = at[population.high[number] > 0.01 * population.high[number].max()]
        ax.set_xlim(seen.min().item(), seen.max().item())
    axes[0, 0].set_ylabel("density")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncol=3, fontsize=9)
    return figure


def plot_two_amplitudes(population: RunPopulation) -> Figure:
    """The first two amplitudes together: minus the logarithm of their density, a contour for each kT."""
    figure, axes = new_figure(height=3.4)
    if population.pair is not None:
        at = population.grid_of_pair()
        points = round(len(at) ** 0.5)
        energy = population.pair.free_energy(at).view(points, points).T.numpy()
        x, y = at[::points, 0].numpy(), at[:points, 1].numpy()
        levels = torch.arange(_LOWEST + 1).tolist()
        filled = axes[0, 0].contourf(x, y, energy, levels, cmap="Blues_r")
        axes[0, 0].contour(x, y, energy, levels, colors="0.3", linewidths=0.5)
        figure.colorbar(filled, ax=axes[0, 0], label="-log density (kT)")
    axes[0, 0].set(xlabel="amplitude 1 (Å)", ylabel="amplitude 2 (Å)")
    return figure


def plot_pairs(answers: Answers) -> Figure:
    """Each pair of neighbouring amplitudes, particle by particle, with the deviations of a typical one."""
    amplitudes, error = answers.mean["amplitude"], _amplitude_errors(answers).median(0).values
    pairs = [(first, first + 1) for first in range(amplitudes.shape[1] - 1)]
    figure, axes = new_panels(len(pairs), min(2, len(pairs)), extra=0.3, each=2.8)
    for ax, (x, y) in zip(axes.flat, pairs, strict=False):
        ax.plot(*amplitudes[:, [x, y]].T.numpy(), ".", markersize=1.5, color=COLOURS[0], rasterized=True)
        middle = amplitudes[:, [x, y]].median(0).values.tolist()
        ax.errorbar(
            *middle, xerr=error[x].item(), yerr=error[y].item(), color=COLOURS[1], capsize=3, zorder=3
        )
        ax.set(xlabel=f"amplitude {x + 1} (Å)", ylabel=f"amplitude {y + 1} (Å)")
    return figure


def _amplitude_errors(answers: Answers) -> Float[Tensor, "images modes"]:
    """Columns of `deviation`: the pose has three, the shift two where it is inferred."""
    first = 3 + 2 * ("shift" in answers.mean)
    return answers.deviation[:, first : first + answers.mean["amplitude"].shape[1]]


def plot_predictions(shown: Mapping[str, Tensor]) -> Figure:
    """Some images, what is predicted of each, and what is left, low-pass filtered as the answers see them."""
    rows = {"image": shown["images"], "predicted": shown["predicted"]}
    rows["left"] = rows["image"] - rows["predicted"]
    count = len(shown["images"])
    figure, axes = new_figure(3, count, height=3.5)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        like = rows["image"] if name != "predicted" else images
        low, high = like.flatten().quantile(_MOST.to(like)).tolist()
        for ax, image in zip(line, images, strict=True):
            ax.imshow(image.numpy(), origin="lower", vmin=low, vmax=high)
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    for ax, row in zip(axes[0], shown["row"].tolist(), strict=True):
        ax.set_title(f"row {row + 1}", fontsize=9)
    return figure


def plot_twin(twin: Mapping) -> Figure:
    """Errors on the twin, in deviations claimed and for the limit; and how often truths are inside."""
    figure, axes = new_figure(1, 2, height=0.7 + 0.27 * len(twin["latents"]), width_ratios=(1.3, 1))
    names, n = list(twin["latents"]), twin["images"]
    places = range(len(names))
    left, right = axes[0]
    for number, (key, label) in enumerate((("standardised", "for claimed"), ("ratio", "for the limit"))):
        values = [twin["latents"][name][key] for name in names]
        left.plot(values, [p + 0.12 - 0.24 * number for p in places], "o", color=COLOURS[number], label=label)
    half = 2 / (2 * n) ** 0.5
    left.axvspan(1 - half, 1 + half, color=GREY, alpha=0.3, linewidth=0)
    left.axvline(1, color=GREY, linewidth=0.8)
    every = [one[key] for one in twin["latents"].values() for key in ("standardised", "ratio")]
    left.set(yticks=list(places), yticklabels=names, xlabel="error (root mean square)")
    left.set_xlim(min(0.8, 0.95 * min(every)), max(1.2, 1.05 * max(every)))
    left.invert_yaxis()
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2, fontsize=9)
    nominal = [100 * level for level in LEVELS]
    for name in names:
        inside = [100 * twin["latents"][name]["inside"][f"{level:g}"] for level in LEVELS]
        right.plot(nominal, inside, ".-", color=GREY, linewidth=0.7)
    right.plot(
        nominal, [100 * twin["region"][f"{level:g}"] for level in LEVELS], "o-", color=COLOURS[0], label="all"
    )
    right.plot([40, 100], [40, 100], color="black", linewidth=0.6)
    right.set(xlabel="region (%)", ylabel="truths inside (%)")
    return figure


def plot_learned(learned: Learned) -> Figure:
    """The noise's spectrum, for one of the predictions; and D, what images hold of what is predicted."""
    figure, axes = new_figure(1, 2, height=2.6)
    size = learned.box_size * learned.optics.pixel_size
    highest = learned.resolution // 2
    frequency = torch.arange(1, len(learned.power)) / size
    axes[0, 0].plot(frequency.numpy(), learned.power[1:].numpy(), color=COLOURS[0])
    axes[0, 0].axvspan(highest / size, frequency[-1].item(), color=GREY, alpha=0.2, linewidth=0)
    axes[0, 0].set(xlabel="frequency (1/Å)", ylabel="noise power", yscale="log")
    axes[0, 1].axhline(1, color=GREY, linewidth=0.8)
    axes[0, 1].plot(frequency[:highest].numpy(), learned.luzzati[1 : highest + 1].numpy(), color=COLOURS[1])
    axes[0, 1].set(xlabel="frequency (1/Å)", ylabel="D", ylim=(0, 1.3))
    return figure


def plot_lacking(shown: Mapping[str, Tensor], places: Float[Tensor, "atoms 3"]) -> Figure:
    """The difference map along each axis, its highest value in deviations; dots are atoms."""
    figure, axes = new_figure(1, 3, height=2.7, sharey=True)
    density, pixel = shown["density"], shown["pixel_size"].item()
    scaled = density / shown["error"].min().clamp(min=1e-30)
    size = len(density)
    low = (-(size // 2) - 0.5) * pixel
    extent = (low, low + size * pixel) * 2
    half = 1.2 * places.abs().max().item()
    for ax, (along, x, y) in zip(axes[0], ((0, 0, 1), (1, 0, 2), (2, 1, 2)), strict=True):
        picture = ax.imshow(
            scaled.amax(along).numpy(), origin="lower", extent=extent, vmin=0, vmax=6, cmap="Blues"
        )
        ax.plot(*places[:, [x, y]].T.numpy(), ".", markersize=0.5, color=GREY, rasterized=True)
        ax.set(xlim=(-half, half), ylim=(-half, half), xlabel=f"{'xyz'[x]} (Å)")
        ax.set_title(f"along {'zyx'[along]}", fontsize=9)
    figure.colorbar(picture, ax=axes, shrink=0.8, label="deviations")
    return figure
