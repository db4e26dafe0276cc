"""Tables of the book, as Markdown: every number in them comes from a run."""

from collections.abc import Iterable, Iterator, Mapping
from statistics import median

import torch

from cryoanm_lib.checks.calibration import LEVELS, coverage, credible_level
from cryoanm_lib.checks.residuals import FLIP_DEGREES, residuals
from cryoanm_lib.experiments.assess import Assessment
from cryoanm_lib.experiments.fit import Fit
from cryoanm_lib.experiments.profile import Profile
from cryoanm_lib.experiments.reference import Reference
from cryoanm_lib.imaging.latents import LATENTS, Latent, Values
from cryoanm_lib.inference.fisher import information_limit
from cryoanm_lib.inference.gaussian_population import gaussian_population
from cryoanm_lib.inference.likelihoods import Likelihoods
from cryoanm_lib.inference.refinement import SUSPICIOUS, RefinedPosterior
from cryoanm_lib.particles.particles import Simulated
from cryoanm_lib.program.program import Model


def _unit(latent: Latent) -> str:
    """What stands behind a number; Å and px² stand in the text below a table, for they would not fit."""
    return "" if latent.unit in ("Å", "px²") else latent.suffix


def stage_table(fit: Fit) -> str:
    """What each stage of an experiment did: K, objective, steps, and residuals of the test images."""
    latents = fit.model.unknowns.latents
    heading = ["stage", "K", "objective", "steps", *(f"{latent.name} residual" for latent in latents)]
    heading += ["flipped"] if "pose" in fit.model.inferred else []
    rows, done = [], 0
    for index, stage in enumerate(fit.run.stages):
        total = max(record["total_steps"] for record in fit.history if record["stage"] == index)
        found = residuals(fit.snapshots[index], fit.truth)
        row = [index + 1, stage.resolution, stage.objective.replace("_", " "), total - done]
        row += [two_digits(found[one.name].mean().item(), _unit(one)) for one in latents]
        row += [f"{100 * (found['pose'] > FLIP_DEGREES).double().mean():.1f} %"] if "pose" in found else []
        rows.append(row)
        done = total
    return markdown_table(heading, rows)


def reach_table(metrics: Mapping[str, Mapping], tasks: Iterable[str]) -> str:
    """Our guide alone, refined and limit in a row for each inferred latent of some tasks.

    The limit is that of the refined images where they were refined, at their K. Metrics are of runs by name,
    as of `gather_metrics`; each of the tasks has a run of ours.
    """
    rows = []
    for runs, latent, start in _latent_rows(metrics, tasks):
        refined = runs["refined"] or runs["finer"]
        limit = (refined or runs["ours"])[0][f"{latent.metric}_limit"]
        guide, best = _of_seeds(runs["ours"], latent), _of_seeds(refined, latent)
        rows.append([*start, guide, f"**{best}**" if refined else best, two_digits(limit, _unit(latent))])
    return markdown_table(["unknown", "latent", "guide alone", "refined", "limit"], rows)


def headline_table(metrics: Mapping[str, Mapping], tasks: Iterable[str] | None = None) -> str:
    """One row for each inferred latent of each task: the paper's recipe here, ours, refined, limit.

    Where a recipe was run with several seeds, the median is shown, and the worst in brackets. Parameters as
    of `tasks_of`. Where nothing was refined, there is no such column.
    """
    found = list(_latent_rows(metrics, tasks))
    kinds = ["ours", "refined"] if any(runs["refined"] for runs, *_ in found) else ["ours"]
    rows = []
    for runs, latent, start in found:
        papers, ours, *refined = (_of_seeds(runs[of], latent) for of in ("paper", *kinds))
        limit = two_digits((runs["ours"] or runs["paper"])[0][f"{latent.metric}_limit"], _unit(latent))
        rows.append([*start, papers, f"**{ours}**", *refined, limit, _times(runs) if start[0] else ""])
    heading = ["experiment", "latent", "paper's recipe", *kinds, "limit", "time (s)"]
    return markdown_table(heading, rows)


def _latent_rows(
    metrics: Mapping[str, Mapping], tasks: Iterable[str] | None
) -> Iterator[tuple[dict[str, list[Mapping]], Latent, list[str]]]:
    """The runs of a task, a latent that they infer, and the cells both tables begin with, for every row.

    The first cell says once what the experiment is and what the paper reports of it.
    """
    for runs in tasks_of(metrics, tasks).values():
        shown = (runs["ours"] or runs["paper"])[0]
        title = f"{shown['title']} (paper: {_reported(shown)})"
        for place, name in enumerate(latents_of(shown)):
            yield runs, LATENTS[name], ["" if place else title, name]


def _reported(metrics: Mapping) -> str:
    """What the paper says of an experiment: a number for each latent, or words where it gives none.

    Of an amplitude it gives no unit.
    """
    latents = [LATENTS[name] for name in latents_of(metrics)]
    values = {one: metrics.get(f"{one.metric}_paper") for one in latents}
    numbers = [
        f"{one.name} {two_digits(value, one.suffix if one.manifold.turns else '')}"
        for one, value in values.items()
        if value is not None
    ]
    return ", ".join(numbers if len(numbers) == len(latents) else [*numbers, metrics["paper_says"]])


def tasks_of(
    metrics: Mapping[str, Mapping], tasks: Iterable[str] | None = None
) -> dict[str, dict[str, list[Mapping]]]:
    """The runs of each task by recipe, "ours", "paper" and ours "refined", in the order of their first run.

    Refined is an assessment of a run of ours at the resolution of that run; one at another is "finer".

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
            empty: dict[str, list[Mapping]] = {"ours": [], "paper": [], "refined": [], "finer": []}
            found.setdefault(run["task"], empty)[run["recipe"]].append(run)
    for run in metrics.values():
        if run["recipe"] == "refined" and run["task"] in found:
            of = metrics[run["of"]]
            if of["recipe"] == "ours":
                same = of["resolution"] == run["resolution"]
                found[run["task"]]["refined" if same else "finer"].append(run)
    return found


def latents_of(metrics: Mapping) -> list[str]:
    """The latents that a run inferred."""
    return [name for name, latent in LATENTS.items() if latent.metric in metrics]


def markdown_table(heading: Iterable, rows: Iterable[Iterable]) -> str:
    """A table in Markdown."""
    heading = list(heading)
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def limit_table(models: Iterable[Model], images: Simulated, resolutions: Iterable[int]) -> str:
    """The information limit of each model's unknowns, its mean over images, one row a resolution."""
    models = list(models)
    heading = ["K"] + [f"{name} ({len(m.inferred)} unknown)" for m in models for name in m.inferred]
    rows = []
    for resolution in resolutions:
        row = [str(resolution)]
        for model in models:
            limit = information_limit(model, images.giving(model.given), resolution)
            row += [two_digits(limit[o.name].mean().item(), _unit(o)) for o in model.unknowns.latents]
        rows.append(row)
    return markdown_table(heading, rows)


def refinement_table(assessments: Iterable[Mapping]) -> str:
    """Residuals over the limit, of the guide → of the refined posterior, outliers and speed, one row each."""
    assessments = list(assessments)
    latents = [name for name in LATENTS if any(name in latents_of(metrics) for metrics in assessments)]
    heading = ["refined", "K", *latents, "outliers", "images/s"]
    rows = []
    for metrics in assessments:
        row = [metrics["title"], metrics["resolution"]]
        for name in latents:
            guide, refined = (metrics.get(f"{of}{name}_residual_over_limit") for of in ("guide_", ""))
            row.append("" if guide is None or refined is None else f"{two_digits(guide)} → **{refined:.2f}**")
        row += [f"{100 * metrics['outlier_fraction']:.2g} %", f"{metrics['images_per_second']:.0f}"]
        rows.append(row)
    return markdown_table(heading, rows)


def space_table(assessments: Iterable[Mapping]) -> str:
    """Refined poses in space, a column each: found, residuals over the limit, standardised errors, coverage.

    All assessments infer the same latents.
    """
    ordered = sorted(assessments, key=lambda metrics: -metrics["snr"])
    rows = [["images", *(metrics["images"] for metrics in ordered)]]
    for name, key in (("within 1°", "1deg"), ("within 5 limits", "5_limits")):
        rows.append([name, *(f"{100 * metrics[f'fraction_within_{key}']:.1f} %" for metrics in ordered)])
    for name in latents_of(ordered[0]):
        pairs = (
            f"{metrics[f'{name}_residual_over_limit']:.2f} ({metrics[f'{name}_standardised_error']:.2f})"
            for metrics in ordered
        )
        rows.append([f"{name} / limit (error)", *pairs])
    for level in (f"{100 * level:.0f}" for level in LEVELS):
        rows.append([f"inside {level} %", *(f"{100 * m[f'coverage_{level}']:.1f} %" for m in ordered)])
    rows.append(["images/s", *(two_digits(metrics["images_per_second"]) for metrics in ordered)])
    return markdown_table(["SNR", *(two_digits(metrics["snr"]) for metrics in ordered)], rows)


def population_table(assessments: Iterable[Assessment]) -> str:
    """How the first amplitude is distributed, by what the explained images of each assessment say together.

    How many Gaussians they ask for and how wide these are in all, beside the amplitudes that made the images,
    and the means of their posteriors, which the prior draws together.
    """
    heading = ["images", "SNR", "explained", "Gaussians", "width", "of the true", "of the means"]
    rows = []
    for assessment in assessments:
        refined, model = assessment.tested["refined"], assessment.of.run.model()
        explained = refined["surprise"] >= SUSPICIOUS
        mean = refined["mean.amplitude"][explained, :1].double()
        column = model.unknowns.columns.index("amplitude")
        variance = refined["deviation"][explained, column].double().square()[:, None, None]
        width = mean.new_tensor(model.prior.amplitude_scales(model.forward_model.n_modes)[:1])
        population = gaussian_population(Likelihoods.of_posteriors(mean, variance, width))
        middle = population.weight @ population.mean[:, 0]
        spread = population.covariance[:, 0, 0] + (population.mean[:, 0] - middle).square()
        true = assessment.truth["amplitude"][: len(explained)][explained, 0]
        widths = ((population.weight @ spread).sqrt(), true.std(), mean.std())
        row = [assessment.metrics["title"], two_digits(assessment.metrics["snr"]), len(mean)]
        rows.append([*row, len(population.weight), *(f"{each:.2f} Å" for each in widths)])
    return markdown_table(heading, rows)


def coverage_table(fits: Iterable[Fit]) -> str:
    """How honest each guide is by itself, one row each: what its last stage minimised, and coverage in %."""
    heading = ["guide", "last stage", "images", *(f"in {100 * level:.0f} %" for level in LEVELS)]
    rows = []
    for fit in fits:
        last = {"elbo": "ELBO", "forward_kl": "forward KL"}[fit.run.stages[-1].objective]
        covered = (fit.metrics[f"coverage_{100 * level:.0f}"] for level in LEVELS)
        row = [fit.metrics["title"], last, fit.metrics["test_images"]]
        rows.append([*row, *(f"{100 * share:.1f}" for share in covered)])
    return markdown_table(heading, rows)


def guide_table(assessments: Iterable[Mapping]) -> str:
    """How honest each guide is by itself, one row each: coverage, and what its ELBO lacks to the evidence."""
    heading = ["guide for", "SNR", "images", *(f"in {100 * level:.0f} %" for level in LEVELS)]
    rows = []
    for metrics in assessments:
        covered = (metrics[f"guide_coverage_{100 * level:.0f}"] for level in LEVELS)
        row = [metrics["title"], two_digits(metrics["snr"]), metrics["guide_images"]]
        row += [*(f"{100 * share:.0f} %" for share in covered), f"{metrics['elbo_gap_median']:,.1f}"]
        rows.append(row)
    return markdown_table([*heading, "evidence − ELBO"], rows)


def calibration_table(assessments: Iterable[Mapping]) -> str:
    """Coverage of guide and refined posterior, one row each, by falling signal-to-noise ratio."""
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


def standardised_errors(posterior: RefinedPosterior, truth: Values) -> dict[str, float]:
    """Root mean square of truth less posterior mean, in the posterior's deviations, of each latent."""
    squares, columns = posterior.standardised(truth).square().mean(0), posterior.mixture.unknowns.columns
    of_each = {name: [s for s, own in zip(squares, columns, strict=True) if own == name] for name in columns}
    return {name: torch.stack(own).mean().sqrt().item() for name, own in of_each.items()}


def honesty_table(
    answers: Mapping[str, RefinedPosterior], truth: Values, n_draws: int, generator: torch.Generator
) -> str:
    """Standardised errors and coverage of posteriors of the same images, a column for each assumption."""
    columns = []
    for posterior in answers.values():
        errors = standardised_errors(posterior, truth)
        level = credible_level(posterior, posterior.sample(n_draws, generator), truth)
        inside = " / ".join(f"{100 * coverage(level, nominal, n_draws):.0f}" for nominal in LEVELS)
        columns.append([*(f"{error:.2f}" for error in errors.values()), inside])
    levels = "/".join(f"{100 * nominal:.0f}" for nominal in LEVELS)
    names = [*(name.replace("_", " ") for name in errors), f"in {levels} %"]
    return markdown_table(["", *answers], [list(row) for row in zip(names, *columns, strict=True)])


def older_runs(reference: Reference, settings: Profile, names: Iterable[str] | None = None) -> str:
    """A paragraph that names the reference runs, all or of some, of an earlier configuration; or nothing."""
    older = [name for name in reference.older(settings) if names is None or name in set(names)]
    if not older:
        return ""
    listed = ", ".join(f"*{name.replace('_', ' ')}*" for name in older)
    return f"\n\nOf an earlier configuration of networks, and still to be run again: {listed}."


def _of_seeds(runs: list[Mapping], latent: Latent) -> str:
    """The median over runs, and the worst of them if there are several."""
    values, unit = [run[latent.metric] for run in runs], _unit(latent)
    worst = f" ({two_digits(max(values), unit)})" if len(values) > 1 else ""
    return two_digits(median(values), unit) + worst if values else "—"


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
