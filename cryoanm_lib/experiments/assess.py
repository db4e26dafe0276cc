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
from cryoanm_lib.checks.residuals import RESIDUAL_KEYS, residuals
from cryoanm_lib.errors import ArtifactError
from cryoanm_lib.experiments.datasets import draw_test_images
from cryoanm_lib.experiments.fit import find_results, fit_or_load, load_fit
from cryoanm_lib.experiments.profile import Profile, load_profile
from cryoanm_lib.inference.amortised import GuidePosterior, elbo
from cryoanm_lib.inference.exact_posterior import exact_posterior
from cryoanm_lib.inference.fisher import information_limit, signal_to_noise
from cryoanm_lib.inference.lattice_search import SEARCH_RESOLUTION, LatticeSearch
from cryoanm_lib.inference.refinement import SUSPICIOUS, RefinedPosterior, refine
from cryoanm_lib.inference.so3_search import SO3Search
from cryoanm_lib.io.locks import alone
from cryoanm_lib.io.provenance import beginning, circumstances, provenance
from cryoanm_lib.io.storage import load_json, load_tensors, save_json, save_tensors, sweep
from cryoanm_lib.particles.particles import Particles
from cryoanm_lib.program.program import CryoProgram

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
    name : str
        In the profile.
    profile : Profile
        The configuration that it came from.
    metrics : dict
        Headline numbers; those of the guide and of the exact posterior begin with their names.
    truth : dict of Tensor
        Latents that made the test images.
    limit : dict of Tensor
        The information limit of each image.
    tested : dict of dict of Tensor
        For each of `METHODS`, of the first images: "level", the smallest credible region with the truth in
        it; "rank.<latent>" of the truth among draws; "draw.<latent>", one draw. "log_evidence" of refined and
        exact, "elbo" of the guide. Of the refined "surprise", "ess_fraction", "p_value" and "weighed",
        "mean.<latent>", and the "deviation" of every column of `Unknowns`.
    """

    name: str
    profile: Profile
    metrics: dict
    truth: dict[str, Tensor]
    limit: dict[str, Tensor]
    tested: dict[str, dict[str, Tensor]] = field(repr=False)


def assess_or_load(
    name: str, profile: str | Path = "laptop", structure: str | None = None, results: str | Path = "results"
) -> Assessment:
    """The artifact of an assessment if there is one of this very configuration, else made on the spot.

    Parameters
    ----------
    name : str
        An assessment of the profile.
    profile : str or Path
        Name or file of the profile.
    structure : str, optional
        Takes the place of the profile's structure.
    results : str or Path
        Folder of results; a relative one is looked up from the working directory and its parents.
    """
    settings, folder = load_profile(profile, structure), find_results(results)
    if not (folder / settings.assessment_path(name) / "metrics.json").is_file():
        fit_or_load(settings.assessment(name).of, profile, structure, folder)
        assess(settings, name, folder)
    return load_assessment(settings, name, folder)


def assess(settings: Profile, name: str, results: Path) -> None:
    """Refine the test images of a finished experiment, test the answers, and write the artifact.

    If another process is at it, wait, and take what it has made.
    """
    with alone(results, settings.assessment_path(name)) as waited:
        if not (waited and (results / settings.assessment_path(name) / "metrics.json").is_file()):
            _assess(settings, name, results)


def _assess(settings: Profile, name: str, results: Path) -> None:
    section, checks, begun = settings.assessment(name), settings.checks, beginning()
    program = load_fit(settings, section.of, results).program
    images = draw_test_images(settings, section.of, section.noise)[: section.images]
    resolution = section.resolution
    generator = torch.Generator().manual_seed(settings.seed_of(section.of) + _DRAW_SEED)
    limit = information_limit(program, images.latents, resolution)
    refined, speed = timed_refinement(program, images, resolution, generator)
    posteriors: dict[str, Posterior] = {
        "guide": GuidePosterior(program, images[: section.guide_images], resolution),
        "refined": refined,
    }
    if section.exact_images:
        posteriors["exact"] = exact_posterior(program, images[: section.exact_images], resolution)
    tested, metrics = {}, {}
    for method, posterior in posteriors.items():
        draws = posterior.sample(checks.draws, generator)
        shown = {latent: value[: len(posterior)] for latent, value in images.latents.items()}
        tested[method] = _tested(posterior, draws, shown)
        prefix = "" if method == "refined" else f"{method}_"
        found = _summary(draws, shown, limit, tested[method], generator)
        if isinstance(posterior, RefinedPosterior):
            found |= _standardised(posterior, draws, shown, limit)
        metrics |= {f"{prefix}{key}": value for key, value in found.items()}
    tested["refined"] |= _checks_of(refined, tested["refined"])
    metrics |= _of_refinement(tested["refined"]) | {"images_per_second": speed}
    if "exact" in posteriors:
        for method, found in _evidences(posteriors, generator).items():
            tested[method] |= found
        metrics |= _gaps(tested)
    elif refined.mixture.unknowns.in_space:
        metrics |= _gap_to_refined(posteriors["guide"], refined, generator)
    _save(settings, name, results, metrics, images, limit, tested, begun)


def load_assessment(settings: Profile, name: str, results: Path) -> Assessment:
    """Read the artifact of an assessment.

    Raises
    ------
    ArtifactError
        If it is missing, damaged, or belongs to another configuration.
    """
    folder, expected = results / settings.assessment_path(name), settings.assessment_hash(name)
    metrics = load_json(folder / "metrics.json")
    tensors, of_tensors = load_tensors(folder / "posteriors.safetensors")
    for found in (metrics, of_tensors):
        if found.get("config_hash") != expected:
            raise ArtifactError(
                f"{folder} holds configuration {found.get('config_hash')}, not {expected}: delete the folder "
                "and run the assessment again"
            )
    metrics |= settings.assessment_description(name)
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        group, _, rest = key.partition(".")
        groups.setdefault(group, {})[rest] = value
    truth, limit = groups.pop("truth"), groups.pop("limit")
    return Assessment(name, settings, metrics, truth, limit, {m: groups[m] for m in METHODS if m in groups})


def timed_refinement(
    program: CryoProgram,
    images: Particles,
    resolution: int,
    generator: torch.Generator | None = None,
) -> tuple[RefinedPosterior, float]:
    """The refined posterior, and images a second once templates exist."""
    in_space = program.prior.pose == "space" and "pose" in program.inferred
    search = SO3Search(program) if in_space else LatticeSearch(program, min(resolution, SEARCH_RESOLUTION))
    search.starts(images[:1])
    refine(program, images[:8], resolution, search=search)  # the first call pays for what torch sets up
    start = time.perf_counter()
    posterior = refine(program, images, resolution, search=search, generator=generator)
    return posterior, len(images) / (time.perf_counter() - start)


def _tested(
    posterior: Posterior, draws: Mapping[str, Tensor], truth: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Level and ranks of the truth, and one draw, image by image."""
    found = {"level": credible_level(posterior, draws, truth)}
    found |= {f"rank.{latent}": rank for latent, rank in ranks(draws, truth).items()}
    return found | {f"draw.{latent}": value[0].contiguous() for latent, value in draws.items()}


def _summary(
    draws: Mapping[str, Tensor],
    truth: Mapping[str, Tensor],
    limit: Mapping[str, Tensor],
    tested: Mapping[str, Tensor],
    generator: torch.Generator,
) -> dict[str, float]:
    """Residuals beside the limit, outliers, coverage, and the uniformity of ranks."""
    away = residuals(draws, truth)
    n_draws, n_images = next(iter(away.values())).shape
    found, right = _found(away, limit, truth)
    outlier = torch.zeros(n_images, dtype=torch.bool)
    for latent, value in away.items():
        own = limit[latent][:n_images]
        found[RESIDUAL_KEYS[latent]] = value.mean().item()
        if n_images > 1:  # its standard error, from how images differ
            found[f"{RESIDUAL_KEYS[latent]}_error"] = value.mean(0).std().item() / n_images**0.5
        found[f"{RESIDUAL_KEYS[latent]}_limit"] = own.mean().item()
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
    posterior: RefinedPosterior,
    draws: Mapping[str, Tensor],
    truth: Mapping[str, Tensor],
    limit: Mapping[str, Tensor],
) -> dict[str, float]:
    """Root mean square of the truth's distance from the posterior mean in the posterior's own deviations."""
    _, right = _found(residuals(draws, truth), limit, truth)
    standard = posterior.standardised(truth)[right]
    columns = posterior.mixture.unknowns.columns
    return {
        f"{name}_standardised_error": standard[:, torch.tensor([c == name for c in columns])]
        .square()
        .mean()
        .sqrt()
        .item()
        for name in posterior.mixture.unknowns.names
    }


def _checks_of(posterior: RefinedPosterior, tested: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the refinement says of itself, and the predictive check at one draw."""
    draw = {key.removeprefix("draw."): value for key, value in tested.items() if key.startswith("draw.")}
    return {
        "log_evidence": posterior.log_evidence,
        "ess_fraction": posterior.ess_fraction,
        "weighed": posterior.weighed,
        "surprise": posterior.surprise,
        "deviation": posterior.covariance().diagonal(dim1=1, dim2=2).sqrt(),
        **{f"mean.{latent}": value.contiguous() for latent, value in posterior.mean().items()},
        "p_value": predictive_p_value(posterior.program, posterior.particles, draw, posterior.resolution),
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


def _evidences(
    posteriors: Mapping[str, Posterior], generator: torch.Generator
) -> dict[str, dict[str, Tensor]]:
    """The exact log-evidence, and the guide's ELBO with its standard error on as many images."""
    exact, guide = posteriors["exact"], posteriors["guide"]
    fewer = GuidePosterior(guide.program, guide.particles[: len(exact)], guide.resolution)
    bound, error = elbo(fewer, generator=generator)
    return {"guide": {"elbo": bound, "elbo_error": error}, "exact": {"log_evidence": exact.log_evidence}}


def _gap_to_refined(
    guide: GuidePosterior, refined: RefinedPosterior, generator: torch.Generator
) -> dict[str, float]:
    """The refined log-evidence less the ELBO, where an exact one is out of reach."""
    bound, _ = elbo(guide, generator=generator)
    gap = refined.log_evidence[: len(bound)] - bound
    return {"elbo_gap_mean": gap.mean().item(), "elbo_gap_median": gap.median().item()}


def _gaps(tested: Mapping[str, Mapping[str, Tensor]]) -> dict[str, float]:
    """Exact log-evidence less the ELBO, and less the refined one."""
    exact, bound = tested["exact"]["log_evidence"], tested["guide"]["elbo"]
    gap = exact[: len(bound)] - bound
    off = (exact - tested["refined"]["log_evidence"][: len(exact)]).abs()
    return {
        "elbo_gap_mean": gap.mean().item(),
        "elbo_gap_median": gap.median().item(),
        "evidence_error_median": off.median().item(),
        "evidence_error_max": off.max().item(),
    }


def _save(
    settings: Profile,
    name: str,
    results: Path,
    metrics: dict,
    images: Particles,
    limit: Mapping[str, Tensor],
    tested: Mapping[str, Mapping[str, Tensor]],
    begun: Mapping[str, str],
) -> None:
    """Write the artifact; the metrics go first and come last: where they stand, it is whole."""
    section, digest = settings.assessment(name), settings.assessment_hash(name)
    folder, program = results / settings.assessment_path(name), settings.program(section.of)
    tensors = {f"truth.{latent}": value for latent, value in images.latents.items()}
    tensors |= {f"limit.{latent}": value for latent, value in limit.items()}
    tensors |= {f"{method}.{key}": v for method, found in tested.items() for key, v in found.items()}
    cpu, seed = torch.device("cpu"), settings.seed_of(section.of)
    about = {
        "profile": settings.name,
        "structure": settings.structure,
        "config_hash": digest,
        "seed": seed,
        "resolution": section.resolution,
        "noise": program.noise if section.noise is None else section.noise,
        "snr": signal_to_noise(program, images.latents).mean().item(),
        "test_images": len(images),
    }
    sweep(folder)
    (folder / "metrics.json").unlink(missing_ok=True)
    save_tensors(folder / "posteriors.safetensors", tensors, config_hash=digest)
    of = {"assessment": name, "config_hash": digest, "data": settings.data_hashes(section.of), "seed": seed}
    of["fit"] = settings.artifact_path(section.of).name
    save_json(folder / "provenance.json", provenance(begun, cpu, **of))
    save_json(folder / "metrics.json", about | metrics | circumstances(begun, cpu))
