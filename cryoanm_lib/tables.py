"""Tables of the book, as Markdown: every number in them comes from a run."""

from collections.abc import Iterable, Mapping

from cryoanm_lib.diagnostics import FLIP_DEGREES, RESIDUAL_KEYS, residuals
from cryoanm_lib.experiment import Fit

_UNITS = {"pose": "°", "amplitude": "", "defocus": ""}


def stage_table(fit: Fit) -> str:
    """What each stage of an experiment did: K, objective, steps, and residuals of the test images.

    Parameters
    ----------
    fit : Fit
        A finished experiment.
    """
    heading = ["stage", "K", "objective", "steps"]
    heading += [f"{name} residual" for name in fit.program.inferred]
    heading += ["flipped"] if "pose" in fit.program.inferred else []
    rows, done = [], 0
    for index, (stage, snapshot) in enumerate(zip(fit.profile.stages(fit.name), fit.snapshots, strict=True)):
        total = max(record["total_steps"] for record in fit.history if record["stage"] == index)
        found = residuals(snapshot, fit.truth)
        row = [index + 1, stage.resolution, stage.objective.replace("_", " "), total - done]
        row += [f"{found[name].mean():.2f}{_UNITS[name]}" for name in fit.program.inferred]
        row += [f"{100 * (found['pose'] > FLIP_DEGREES).double().mean():.1f} %"] if "pose" in found else []
        rows.append(row)
        done = total
    return markdown_table(heading, rows)


def headline_table(metrics: Mapping[str, Mapping], titles: Mapping[str, str]) -> str:
    """One row for each inferred latent of each experiment: paper, this run, information limit.

    Parameters
    ----------
    metrics : mapping
        The content of `results/metrics.json`.
    titles : mapping
        What to call each experiment.
    """
    heading = ["experiment", "latent", "paper", "this run", "limit", "training"]
    rows = []
    for name, found in metrics.items():
        inferred = [latent for latent, key in RESIDUAL_KEYS.items() if key in found]
        for latent in inferred:
            key, unit = RESIDUAL_KEYS[latent], _UNITS[latent]
            first = latent == inferred[0]
            rows.append(
                [
                    titles.get(name, name) if first else "",
                    latent,
                    _number(found.get(f"{key}_paper"), unit),
                    f"**{_number(found[key], unit)}**",
                    _number(found[f"{key}_limit"], unit),
                    f"{found['train_seconds']:.0f} s" if first else "",
                ]
            )
    return markdown_table(heading, rows)


def markdown_table(heading: Iterable, rows: Iterable[Iterable]) -> str:
    """A table in Markdown."""
    heading = list(heading)
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _number(value: float | None, unit: str) -> str:
    return "—" if value is None else f"{value:.2g}{unit}"
