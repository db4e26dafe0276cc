"""One assessment from a finished fit to an artifact: its images refined, and every error bar tested."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from cryoanm_lib.checks.calibration import (
    LEVELS,
    Posterior,
    central_level,
    coverage,
    credible_level,
    ranks,
    uniformity,
)
from cryoanm_lib.checks.predictive import predictive_p_value
from cryoanm_lib.checks.residuals import residuals
from cryoanm_lib.experiments.datasets import draw_test_images
from cryoanm_lib.experiments.fit import find_results, fit_or_load, load_fit, own_noise, require_configuration
from cryoanm_lib.experiments.profile import Profile, load_profile
from cryoanm_lib.experiments.run import Assessed
from cryoanm_lib.imaging.unknowns import Unknowns
from cryoanm_lib.inference.amortised import GuidePosterior, elbo
from cryoanm_lib.inference.exact_posterior import ExactPosterior, exact_posterior
from cryoanm_lib.inference.fisher import information_limit, signal_to_noise
from cryoanm_lib.inference.lattice_search import SEARCH_RESOLUTION, LatticeSearch
from cryoanm_lib.inference.refinement import SUSPICIOUS, RefinedPosterior, refine
from cryoanm_lib.inference.so3_search import SO3Search
from cryoanm_lib.io.locks import alone
from cryoanm_lib.io.provenance import beginning, circumstances, provenance
from cryoanm_lib.io.storage import flat, grouped, load_json, load_tensors, save_json, save_tensors, sweep
from cryoanm_lib.particles.particles import Particles, Simulated
from cryoanm_lib.program.program import Guide

#: The ways to a posterior that are compared, in the order of what they cost.
METHODS = ("guide", "refined", "exact")

#: A draw further from the truth than this many times the limit is an outlier, as one honest one in 15 000 is.
OUTLIER = 5.0

# No pose further off than this many degrees counts as found.
_FAR = 30.0

# What draws the posteriors' samples, whatever else a run draws.
_DRAW_SEED = 3_000_000_019


@dataclass(frozen=True, eq=False)
class Assessment:
    """A finished assessment.

    Attributes
    ----------
    of : Assessed
        The configuration that it came from.
    metrics : dict
        Headline numbers; those of the guide and of the exact posterior begin with their names.
    truth, limit : dict of Tensor
        Latents that made the test images, and the information limit of each image.
    tested : dict of dict of Tensor
        For each of `METHODS`, of the first images: "level", the smallest credible region with the truth in
        it; "rank.<latent>" of the truth among draws; "draw.<latent>", one draw. "log_evidence" of refined and
        exact, "elbo" of the guide. Of the refined "surprise", "ess_fraction", "p_value" and "weighed",
        "mean.<latent>", and the "deviation" of every column of `Unknowns`.
    """

    of: Assessed
    metrics: dict
    truth: dict[str, Tensor]
    limit: dict[str, Tensor]
    tested: dict[str, dict[str, Tensor]] = field(repr=False)


def assess_or_load(
    name: str, profile: str | Path = "laptop", structure: str | None = None, results: str | Path = "results"
) -> Assessment:
    """The artifact of an assessment if there is one of this very configuration, else made on the spot.

    Parameters as of `fit_or_load`, the name that of an assessment.
    """
    settings, folder = load_profile(profile, structure), find_results(results)
    of = settings.assessed(name)
    if not (folder / of.path / "metrics.json").is_file():
        fit_or_load(of.run.name, profile, structure, folder)
        assess(settings, name, folder)
    return load_assessment(settings, name, folder)


def assess(settings: Profile, name: str, results: Path) -> None:
    """Refine the test images of a finished experiment, test the answers, and write the artifact.

    If another process is at it, wait, and take what it has made.
    """
    of = settings.assessed(name)
    with alone(results, of.path) as waited:
        if not (waited and (results / of.path / "metrics.json").is_file()):
            _assess(of, load_fit(settings, of.run.name, results).guide, results)


def _assess(of: Assessed, guide: Guide, results: Path) -> None:
    section, begun, model = of.section, beginning(), guide.model
    resolution = section.resolution or of.run.last_resolution
    images = draw_test_images(of.run, section.noise)[: section.images].giving(model.given)
    generator = torch.Generator().manual_seed(of.run.seed + _DRAW_SEED)
    limit = information_limit(model, images, resolution)
    refined, speed = timed_refinement(guide, images, resolution, generator)
    guided = GuidePosterior(guide, images[: section.guide_images], resolution)
    posteriors: dict[str, Posterior] = {"guide": guided, "refined": refined}
    if section.exact_images:
        posteriors["exact"] = exact_posterior(model, images[: section.exact_images], resolution)
    tested, metrics = {}, {}
    for method, posterior in posteriors.items():
        draws = posterior.sample(of.checks.draws, generator)
        shown = {latent: value[: len(posterior)] for latent, value in images.truth.items()}
        tested[method] = _tested(posterior, draws, shown)
        prefix = "" if method == "refined" else f"{method}_"
        away = residuals(draws, shown)
        found, right = _found(away, limit, shown)
        found |= _summary(model.unknowns, away, right, limit, tested[method], generator)
        if isinstance(posterior, RefinedPosterior):
            found |= _standardised(posterior, shown, right)
        metrics |= {f"{prefix}{key}": value for key, value in found.items()}
    tested["refined"] |= _checks_of(refined, tested["refined"])
    metrics |= _of_refinement(tested["refined"]) | {"images_per_second": speed}
    if isinstance(exact := posteriors.get("exact"), ExactPosterior):
        elbos, gap = _elbo_gap(guided, exact, generator)
        tested["guide"] |= elbos
        tested["exact"]["log_evidence"] = exact.log_evidence
        metrics |= gap | _evidence_error(exact, refined)
    elif model.prior.pose == "space" and "pose" in model.inferred:
        metrics |= _elbo_gap(guided, refined, generator)[1]
    _save(of, results, metrics, images, limit, tested, begun)


def load_assessment(settings: Profile, name: str, results: Path) -> Assessment:
    """Read the artifact of an assessment.

    Raises
    ------
    ArtifactError
        If it is missing, damaged, or belongs to another configuration.
    """
    of = settings.assessed(name)
    folder = results / of.path
    metrics = load_json(folder / "metrics.json")
    tensors, of_tensors = load_tensors(folder / "posteriors.safetensors")
    require_configuration(folder, of.config_hash, metrics, of_tensors)
    groups = grouped(tensors)
    tested = {method: groups[method] for method in METHODS if method in groups}
    return Assessment(of, metrics | of.description, groups["truth"], groups["limit"], tested)


def timed_refinement(
    guide: Guide, images: Particles, resolution: int, generator: torch.Generator | None = None
) -> tuple[RefinedPosterior, float]:
    """The refined posterior, and images a second once templates exist."""
    model = guide.model
    in_space = model.prior.pose == "space" and "pose" in model.inferred
    search = SO3Search(model) if in_space else LatticeSearch(model, min(resolution, SEARCH_RESOLUTION))
    search.starts(images[:1])
    refine(model, images[:8], resolution, guide, search)  # the first call pays for what torch sets up
    start = time.perf_counter()
    posterior = refine(model, images, resolution, guide, search, generator)
    return posterior, len(images) / (time.perf_counter() - start)


def _tested(
    posterior: Posterior, draws: Mapping[str, Tensor], truth: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Level and ranks of the truth, and one draw, image by image."""
    found = {"level": credible_level(posterior, draws, truth)}
    found |= {f"rank.{latent}": rank for latent, rank in ranks(draws, truth).items()}
    return found | {f"draw.{latent}": value[0].contiguous() for latent, value in draws.items()}


def _summary(
    unknowns: Unknowns,
    away: Mapping[str, Tensor],
    right: Bool[Tensor, "images"],
    limit: Mapping[str, Tensor],
    tested: Mapping[str, Tensor],
    generator: torch.Generator,
) -> dict[str, float]:
    """Residuals beside the limit, outliers, coverage, and the uniformity of ranks."""
    n_draws, n_images = next(iter(away.values())).shape
    found: dict[str, float] = {}
    outlier = torch.zeros(n_images, dtype=torch.bool)
    metric = {latent.name: latent.metric for latent in unknowns.latents}
    for latent, value in away.items():
        own = limit[latent][:n_images]
        found[metric[latent]] = value.mean().item()
        if n_images > 1:  # its standard error, from how images differ
            found[f"{metric[latent]}_error"] = value.mean(0).std().item() / n_images**0.5
        found[f"{metric[latent]}_limit"] = own.mean().item()
        if right.any():
            ratio = value[:, right].double().mean() / own[right].mean()
            found[f"{latent}_residual_over_limit"] = ratio.item()
        outlier |= value[0] > OUTLIER * own
        rank = tested[f"rank.{latent}"]
        each = [uniformity(column, n_draws, generator) for column in rank.unbind(-1)]
        # Of several modes the worst, by Bonferroni.
        found[f"sbc_p_{latent}"] = min(1.0, min(each) * len(each))
        for level in LEVELS:
            inside = coverage(central_level(rank).flatten(), level, n_draws)
            found[f"{latent}_coverage_{100 * level:.0f}"] = inside
    found["outlier_fraction"] = outlier.double().mean().item()
    found["images"] = n_images
    for level in LEVELS:
        found[f"coverage_{100 * level:.0f}"] = coverage(tested["level"], level, n_draws)
    return found


def _found(
    away: Mapping[str, Tensor], limit: Mapping[str, Tensor], truth: Mapping[str, Tensor]
) -> tuple[dict[str, float], Bool[Tensor, "images"]]:
    """How many poses in space were found, and which; in the plane all count.

    A pose counts as found within 1°, or five times the limit where that is more.
    """
    if "pose" not in away or truth["pose"].shape[-1] == 2:
        return {}, torch.ones(len(truth["pose"]), dtype=torch.bool)
    first, own = away["pose"][0], limit["pose"][: len(truth["pose"])]
    near = (OUTLIER * own).clamp(max=_FAR)
    within = {"fraction_within_1deg": first < 1.0, "fraction_within_5_limits": first < near}
    fractions = {key: value.double().mean().item() for key, value in within.items()}
    right = torch.stack(list(within.values())).any(0)
    return fractions | {"pose_residual_median_deg": first.median().item()}, right


def _standardised(
    posterior: RefinedPosterior, truth: Mapping[str, Tensor], right: Bool[Tensor, "images"]
) -> dict[str, float]:
    """Root mean square of the truth's distance from the posterior mean in the posterior's own deviations."""
    standard = posterior.standardised(truth)[right]
    unknowns = posterior.mixture.unknowns
    own = {one.name: unknowns.of(lambda other, one=one: other is one) for one in unknowns.latents}
    return {
        f"{name}_standardised_error": standard[:, columns].square().mean().sqrt().item()
        for name, columns in own.items()
    }


def _checks_of(posterior: RefinedPosterior, tested: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the refinement says of itself, and the predictive check at one draw."""
    draw = grouped(tested)["draw"]
    return {
        "log_evidence": posterior.log_evidence,
        "ess_fraction": posterior.ess_fraction,
        "weighed": posterior.weighed,
        "surprise": posterior.surprise,
        "deviation": posterior.covariance().diagonal(dim1=1, dim2=2).sqrt(),
        **{f"mean.{latent}": value.contiguous() for latent, value in posterior.mean().items()},
        "p_value": predictive_p_value(posterior.model, posterior.particles, draw, posterior.resolution),
    }


def _of_refinement(refined: Mapping[str, Tensor]) -> dict[str, float]:
    """The same in a few numbers."""
    return {
        "ess_fraction_median": refined["ess_fraction"].median().item(),
        "ess_fraction_min": refined["ess_fraction"].min().item(),
        "weighed_fraction": refined["weighed"].double().mean().item(),
        "unexplained_fraction": (refined["surprise"] < SUSPICIOUS).double().mean().item(),
        "predictive_p": uniformity(refined["p_value"]),
    }


def _elbo_gap(
    guide: GuidePosterior, judge: ExactPosterior | RefinedPosterior, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The guide's ELBO with its standard error, and how far it lies below the judge's log-evidence."""
    fewer = GuidePosterior(guide.guide, guide.particles[: len(judge)], guide.resolution)
    bound, error = elbo(fewer, generator=generator)
    gap = judge.log_evidence[: len(bound)] - bound
    figures = {"elbo_gap_mean": gap.mean().item(), "elbo_gap_median": gap.median().item()}
    return {"elbo": bound, "elbo_error": error}, figures


def _evidence_error(exact: ExactPosterior, refined: RefinedPosterior) -> dict[str, float]:
    """How far the refined log-evidence is from the exact one."""
    off = (exact.log_evidence - refined.log_evidence[: len(exact)]).abs()
    return {"evidence_error_median": off.median().item(), "evidence_error_max": off.max().item()}


def _save(
    of: Assessed,
    results: Path,
    metrics: dict,
    images: Simulated,
    limit: Mapping[str, Tensor],
    tested: Mapping[str, Mapping[str, Tensor]],
    begun: Mapping[str, str],
) -> None:
    """Write the artifact; the metrics go first and come last: where they stand, it is whole."""
    folder, digest, run, noise = results / of.path, of.config_hash, of.run, of.section.noise
    tensors = flat({"truth": {**images.truth, **own_noise(images)}, "limit": limit, **tested})
    cpu = torch.device("cpu")
    about = {
        "profile": run.profile.name,
        "structure": run.profile.structure,
        "config_hash": digest,
        "seed": run.seed,
        "resolution": of.section.resolution,
        "noise": run.noise if noise is None else noise,
        "snr": signal_to_noise(run.model(noise), images).mean().item(),
        "test_images": len(images),
    }
    sweep(folder)
    (folder / "metrics.json").unlink(missing_ok=True)
    save_tensors(folder / "posteriors.safetensors", tensors, config_hash=digest)
    what = {"assessment": of.name, "config_hash": digest, "data": run.data_hashes, "seed": run.seed}
    what["fit"] = run.path.name
    save_json(folder / "provenance.json", provenance(begun, cpu, **what))
    save_json(folder / "metrics.json", about | metrics | circumstances(begun, cpu))
