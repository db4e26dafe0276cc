"""Figures that set recipes side by side: the paper's, ours, and what lies between."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cryoanm_lib.book.figures.style import COLOURS, GREY, TRUTH_COLOUR, new_figure, plain_log_ticks
from cryoanm_lib.book.tables import latents_of, tasks_of
from cryoanm_lib.experiments.fit import Fit
from cryoanm_lib.imaging.latents import LATENTS

OURS, PAPERS, REPORTED = COLOURS[0], COLOURS[1], COLOURS[4]


def plot_headline(metrics: Mapping[str, Mapping], tasks: Sequence[str] | None = None) -> Figure:
    """Residuals of every task by both recipes, beside the paper's values and the information limit.

    Parameters as of `cryoanm_lib.book.tables.tasks_of`.
    """
    found = tasks_of(metrics, tasks)
    inferred = [latents_of((runs["ours"] or runs["paper"])[0]) for runs in found.values()]
    # A panel for one task alone would be empty but for a dot; its number is in the tables.
    least = min(2, len(found))
    latents = [latent for latent in LATENTS if sum(latent in names for names in inferred) >= least]
    figure, axes = new_figure(1, len(latents), height=1.4 + 0.36 * len(found), sharey=True)
    for ax, latent in zip(axes[0], latents, strict=True):
        key = LATENTS[latent].metric
        points: dict[str, list[tuple[float, int]]] = {"limit": [], "ours": [], "paper": [], "reported": []}
        for row, runs in enumerate(found.values()):
            for recipe in ("ours", "paper"):
                points[recipe] += [(run[key], row) for run in runs[recipe] if key in run]
            shown = (runs["ours"] or runs["paper"])[0]
            if key in shown:
                points["limit"].append((shown[f"{key}_limit"], row))
                points["reported"] += [(v, row) for v in [shown.get(f"{key}_paper")] if v is not None]
        for row in range(len(found)):
            values = [value for drawn in points.values() for value, at in drawn if at == row]
            if values:
                ax.plot([min(values), max(values)], [row, row], color=GREY, linewidth=0.8, zorder=0)
        looks = {
            "limit": {"marker": "|", "s": 160, "color": TRUTH_COLOUR, "label": "limit"},
            "ours": {"marker": "o", "s": 28, "color": OURS, "label": "our recipe"},
            "paper": {"marker": "s", "s": 28, "color": PAPERS, "label": "paper's recipe here"},
            "reported": {"marker": "x", "s": 40, "color": REPORTED, "label": "paper reported"},
        }
        for kind, look in looks.items():
            ax.scatter(*(zip(*points[kind], strict=True) if points[kind] else ([], [])), **look)
        ax.set(xscale="log", xlabel=LATENTS[latent].residual_label, ylim=(len(found) - 0.5, -0.5))
        ax.set_yticks(range(len(found)), [task.replace("_", " ") for task in found], fontsize=9)
        plain_log_ticks(ax, "x", most=4)
        ax.grid(axis="x", alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def plot_recipes(ours: Fit, papers: Fit) -> Figure:
    """Mean residual against training time by both recipes of one task, with the information limit."""
    runs = {"our recipe": (ours.history, OURS), "paper's recipe": (papers.history, PAPERS)}
    latents = latents_of(ours.metrics)
    figure, axes = new_figure(1, len(latents), height=3.0)
    for ax, latent in zip(axes[0], latents, strict=True):
        key = LATENTS[latent].metric
        for label, (history, colour) in runs.items():
            seconds, values = zip(*((r["seconds"], r[f"{latent}_residual"]) for r in history), strict=True)
            ax.loglog(seconds, values, marker="o", markersize=3, color=colour, label=label)
        ax.axhline(ours.metrics[f"{key}_limit"], color=TRUTH_COLOUR, linestyle="--", label="limit")
        if (reported := ours.metrics.get(f"{key}_paper")) is not None:
            ax.axhline(reported, color=REPORTED, linestyle=":", label="paper reported")
        ax.set(xlabel="training time (s)", title=LATENTS[latent].residual_label)
        plain_log_ticks(ax, "xy")
        ax.grid(axis="y", alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def plot_ablation(histories: Mapping[str, Sequence[Mapping]], limits: Mapping[str, float]) -> Figure:
    """Residual against training time as one recipe is turned into another, change by change.

    The history of each step stands by what was changed, in the order of the changes; the information limits
    by the latents to show.
    """
    figure, axes = new_figure(1, len(limits), height=4.2)
    shades = plt.get_cmap("viridis_r")(np.linspace(0.05, 0.95, len(histories)))
    for ax, (latent, limit) in zip(axes[0], limits.items(), strict=True):
        for number, ((label, history), shade) in enumerate(zip(histories.items(), shades, strict=True)):
            seconds = [record["seconds"] for record in history]
            values = [record[f"{latent}_residual"] for record in history]
            ax.loglog(seconds, values, color=shade, linewidth=1.4, label=f"{number}  {label}")
        ax.axhline(limit, color=TRUTH_COLOUR, linestyle="--", label="limit")
        ax.set(xlabel="training time (s)", title=LATENTS[latent].residual_label)
        ax.set_xlim(right=1.6 * max(history[-1]["seconds"] for history in histories.values()))
        ends = [(h[-1]["seconds"], h[-1][f"{latent}_residual"]) for h in histories.values()]
        _number_ends(ax, ends, shades)
        plain_log_ticks(ax, "xy")
        ax.grid(axis="y", alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _number_ends(
    axes: Axes, ends: Sequence[tuple[float, float]], shades: Float[np.ndarray, "curves 4"]
) -> None:
    """Write each curve's number beside its end, moved up where it would cover the one below."""
    axes.set_ylim(top=4.0 * axes.get_ylim()[1])
    low, high = np.log(axes.get_ylim())
    gap, floor = 0.045 * (high - low), -np.inf
    for number in sorted(range(len(ends)), key=lambda n: ends[n][1]):
        seconds, value = ends[number]
        floor = max(np.log(value), floor + gap)
        look = {"textcoords": "offset points", "va": "center", "fontsize": 9, "annotation_clip": False}
        axes.annotate(str(number), (seconds, np.exp(floor)), (4, 0), color=shades[number], **look)


def plot_generalisation(metrics: Mapping[str, Mapping]) -> Figure:
    """Residuals of fresh images against those of the images trained on, by the paper's recipe.

    `metrics` are of runs by name, as of `gather_metrics`.
    """
    papers = [run for run in metrics.values() if run["recipe"] == "paper"]
    latents = [
        name for name, one in LATENTS.items() if any(f"{one.metric}_training" in run for run in papers)
    ]
    figure, axes = new_figure(1, len(latents), height=2.7)
    for ax, latent in zip(axes[0], latents, strict=True):
        key = LATENTS[latent].metric
        runs = [run for run in papers if f"{key}_training" in run]
        pairs = [(run[f"{key}_training"], run[key]) for run in runs]
        ax.scatter(*(zip(*pairs, strict=True) if pairs else ([], [])), color=PAPERS, s=24)
        span = [value for pair in pairs for value in pair] or [0.1, 1.0]
        low, high = 0.8 * min(span), 1.25 * max(span)
        ax.plot([low, high], [low, high], color=GREY, linewidth=0.8, zorder=0)
        ax.set(xscale="log", yscale="log", xlabel="trained on", title=LATENTS[latent].residual_label)
        ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        plain_log_ticks(ax, "xy")
    axes[0, 0].set_ylabel("fresh")
    return figure
