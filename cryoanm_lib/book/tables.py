"""Tables of the book, as Markdown: every number in them comes from a run."""

from collections.abc import Iterable, Mapping
from statistics import median

from cryoanm_lib.checks.calibration import LEVELS
from cryoanm_lib.checks.residuals import FLIP_DEGREES, RESIDUAL_KEYS, residuals
from cryoanm_lib.experiments.fit import Fit
from cryoanm_lib.inference.fisher import information_limit
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.program import CryoProgram

_UNITS = {"pose": "°", "shift": " px", "amplitude": "", "defocus": "", "contrast": ""}


def stage_table(fit: Fit) -> str:
    """What each stage of an experiment did: K, objective, steps, and residuals of the test images.

    Parameters
    ----------
    fit : Fit
        A finished experiment; one with weights that came with the library may have had no stage.
    """
    heading = ["stage", "K", "objective", "steps"]
    heading += [f"{name} residual" for name in fit.program.inferred]
    heading += ["flipped"] if "pose" in fit.program.inferred else []
    rows, done = [], 0
    for index, stage in enumerate(fit.profile.stages(fit.name)):
        total = max(record["total_steps"] for record in fit.history if record["stage"] == index)
        found = residuals(fit.snapshots[index], fit.truth)
        row = [index + 1, stage.resolution, stage.objective.replace("_", " "), total - done]
        row += [two_digits(found[name].mean().item(), _UNITS[name]) for name in fit.program.inferred]
        row += [f"{100 * (found['pose'] > FLIP_DEGREES).double().mean():.1f} %"] if "pose" in found else []
        rows.append(row)
        done = total
    return markdown_table(heading, rows)


def reach_table(metrics: Mapping[str, Mapping], tasks: Iterable[str]) -> str:
    """Paper, ours and limit in a row for each inferred latent of some tasks; ours refined, where it was.

    Parameters
    ----------
    metrics : mapping
        Runs by name, as of `gather_metrics`.
    tasks : iterable of str
        Those to show, of which each has a run of ours.
    """
    rows = []
    for runs in tasks_of(metrics, tasks).values():
        shown = runs["ours"][0]
        for place, latent in enumerate(latents_of(shown)):
            key, unit = RESIDUAL_KEYS[latent], _UNITS[latent]
            best, reported = runs["refined"] or runs["ours"], shown.get(f"{key}_paper")
            rows.append(
                [
                    "" if place else shown["title"],
                    latent,
                    shown["paper_says"] if reported is None else two_digits(reported, unit),
                    f"**{_of_seeds(best, key, unit)}**",
                    two_digits(best[0][f"{key}_limit"], unit),
                ]
            )
    return markdown_table(["unknown", "latent", "paper", "ours", "limit"], rows)


def headline_table(metrics: Mapping[str, Mapping], tasks: Iterable[str] | None = None) -> str:
    """One row for each inferred latent of each task: paper, its recipe here, ours, refined, limit.

    Where a recipe was run with several seeds, the median is shown, and the worst in brackets.

    Parameters
    ----------
    metrics : mapping
        Runs by name, as of `gather_metrics`.
    tasks : iterable of str, optional
        Those to show; default all that either recipe was run on.
    """
    heading = ["experiment", "latent", "paper", "its recipe", "ours", "refined", "limit", "training (s)"]
    rows = []
    for runs in tasks_of(metrics, tasks).values():
        shown = (runs["ours"] or runs["paper"])[0]
        for place, latent in enumerate(latents_of(shown)):
            key, unit = RESIDUAL_KEYS[latent], _UNITS[latent]
            reported = shown.get(f"{key}_paper")
            rows.append(
                [
                    "" if place else shown["title"],
                    latent,
                    shown["paper_says"] if reported is None else two_digits(reported, unit),
                    _of_seeds(runs["paper"], key, unit),
                    f"**{_of_seeds(runs['ours'], key, unit)}**",
                    _of_seeds(runs["refined"], key, unit),
                    two_digits(shown[f"{key}_limit"], unit),
                    "" if place else _times(runs),
                ]
            )
    return markdown_table(heading, rows)


def tasks_of(
    metrics: Mapping[str, Mapping], tasks: Iterable[str] | None = None
) -> dict[str, dict[str, list[Mapping]]]:
    """The runs of each task by recipe, "ours", "paper" and ours "refined", in the order of their first run.

    Refined is an assessment of a run of ours at the resolution of that run.

    Parameters
    ----------
    metrics : mapping
        Runs by name, as of `gather_metrics`.
    tasks : iterable of str, optional
        Those to return; default all.
    """
    found: dict[str, dict[str, list[Mapping]]] = {}
    wanted = None if tasks is None else set(tasks)
    for run in metrics.values():
        if run["recipe"] in ("ours", "paper") and (wanted is None or run["task"] in wanted):
            empty: dict[str, list[Mapping]] = {"ours": [], "paper": [], "refined": []}
            found.setdefault(run["task"], empty)[run["recipe"]].append(run)
    for run in metrics.values():
        if run["recipe"] == "refined" and run["task"] in found:
            of = metrics[run["of"]]
            if of["recipe"] == "ours" and of["resolution"] == run["resolution"]:
                found[run["task"]]["refined"].append(run)
    return found


def latents_of(metrics: Mapping) -> list[str]:
    """The latents that a run inferred."""
    return [latent for latent, key in RESIDUAL_KEYS.items() if key in metrics]


def markdown_table(heading: Iterable, rows: Iterable[Iterable]) -> str:
    """A table in Markdown."""
    heading = list(heading)
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def limit_table(programs: Iterable[CryoProgram], images: Particles, resolutions: Iterable[int]) -> str:
    """The information limit of each program's unknowns, the mean over images, one row a resolution.

    Parameters
    ----------
    programs : iterable of CryoProgram
        Each a column for what it infers.
    images : Particles
        At whose latents the information is worked out.
    resolutions : iterable of int
        K of the rows.
    """
    programs = list(programs)
    heading = ["K"] + [f"{name} ({len(p.inferred)} unknown)" for p in programs for name in p.inferred]
    rows = []
    for resolution in resolutions:
        row = [str(resolution)]
        for program in programs:
            limit = information_limit(program, images.latents, resolution)
            row += [two_digits(limit[name].mean().item(), _UNITS[name]) for name in program.inferred]
        rows.append(row)
    return markdown_table(heading, rows)


def refinement_table(assessments: Iterable[Mapping]) -> str:
    """Residuals of guide and refined posterior as multiples of the limit, outliers and speed, one row each.

    Parameters
    ----------
    assessments : iterable of mapping
        Metrics of assessments.
    """
    assessments = list(assessments)
    latents = [name for name in RESIDUAL_KEYS if any(name in latents_of(metrics) for metrics in assessments)]
    heading = ["refined", "K", *(f"{name}: guide → refined" for name in latents), "outliers", "images/s"]
    rows = []
    for metrics in assessments:
        row = [metrics["title"], metrics["resolution"]]
        for name in latents:
            pair = [metrics.get(f"{p}{name}_residual_over_limit") for p in ("guide_", "")]
            row.append("" if None in pair else f"{two_digits(pair[0])} → **{pair[1]:.2f}**")
        row += [f"{100 * metrics['outlier_fraction']:.2g} %", f"{metrics['images_per_second']:.0f}"]
        rows.append(row)
    return markdown_table(heading, rows)


def space_table(assessments: Iterable[Mapping]) -> str:
    """Refined poses in space, one row each: found, residuals over the limit, standardised errors, coverage.

    Parameters
    ----------
    assessments : iterable of mapping
        Metrics of assessments, all of which infer the same latents.
    """
    assessments = list(assessments)
    latents = latents_of(assessments[0])
    heading = [
        "SNR",
        "images",
        "within 1°",
        "within 5 limits",
        *(f"{name} / limit (error)" for name in latents),
    ]
    heading += ["coverage 50 / 80 / 95 %", "images/s"]
    rows = []
    for metrics in sorted(assessments, key=lambda metrics: -metrics["snr"]):
        found = [f"{100 * metrics[f'fraction_within_{of}']:.1f} %" for of in ("1deg", "5_limits")]
        pairs = [
            f"{metrics[f'{name}_residual_over_limit']:.2f} ({metrics[f'{name}_standardised_error']:.2f})"
            for name in latents
        ]
        covered = " / ".join(f"{100 * metrics[f'coverage_{100 * level:.0f}']:.1f}" for level in LEVELS)
        speed = two_digits(metrics["images_per_second"])
        rows.append([two_digits(metrics["snr"]), metrics["images"], *found, *pairs, covered, speed])
    return markdown_table(heading, rows)


def calibration_table(assessments: Iterable[Mapping]) -> str:
    """Coverage of guide and refined posterior, one row each, by falling signal-to-noise ratio.

    Parameters
    ----------
    assessments : iterable of mapping
        Metrics of assessments.
    """
    levels = [f"{100 * level:.0f}" for level in LEVELS]
    heading = ["posterior", "SNR", *(f"{method}: {' / '.join(levels)} %" for method in ("guide", "refined"))]
    heading += ["weighed", "smallest p"]
    rows = []
    for metrics in sorted(assessments, key=lambda metrics: -metrics["snr"]):
        row = [metrics["title"], two_digits(metrics["snr"])]
        for prefix in ("guide_", ""):
            row.append(" / ".join(f"{100 * metrics[f'{prefix}coverage_{level}']:.1f}" for level in levels))
        tested = [value for key, value in metrics.items() if key.startswith("sbc_p_")]
        row += [f"{100 * metrics['weighed_fraction']:.1f} %", f"{min(tested):.2g}"]
        rows.append(row)
    return markdown_table(heading, rows)


def _of_seeds(runs: list[Mapping], key: str, unit: str) -> str:
    """The median over runs, and the worst of them if there are several."""
    if not runs:
        return "—"
    values = [run[key] for run in runs]
    return two_digits(median(values), unit) + (
        f" ({two_digits(max(values), unit)})" if len(values) > 1 else ""
    )


def _times(runs: Mapping[str, list[Mapping]]) -> str:
    """Median seconds of training, the paper's recipe before ours."""
    seconds = [[run["train_seconds"] for run in runs[recipe]] for recipe in ("paper", "ours")]
    return " / ".join(f"{median(values):.0f}" if values else "—" for values in seconds)


def two_digits(value: float, unit: str = "") -> str:
    """Two digits, or all those before the point.

    Examples
    --------
    >>> two_digits(0.0563, "°"), two_digits(1), two_digits(9.96), two_digits(117.3, "°")
    ('0.056°', '1.0', '10', '117°')
    """
    return f"{value:.0f}{unit}" if abs(value) >= 9.95 else f"{value:#.2g}{unit}"
