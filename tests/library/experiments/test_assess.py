"""Assessments: made once from a fit, loaded after, refused when they are another's."""

import json
from pathlib import Path

import pytest

from cryoanm_lib.__main__ import main
from cryoanm_lib.errors import ArtifactError, ConfigurationError
from cryoanm_lib.experiments.assess import METHODS, assess_or_load, load_assessment
from cryoanm_lib.experiments.profile import load_profile

TINY = """
test_images: 12
window: 4
checks: {draws: 19, guide_images: 6, exact_images: 4}
experiments:
  both:
    title: Both
    infer: [pose, amplitude]
    noise: 0.2
    guide: {image_size: 16, references: 4}
    batch_size: 10
    stages: [{resolution: 16, steps: 4}]
assessments:
  both_refined: {of: both, title: Both}
  both_refined_24: {of: both, title: "Both, K = 24", resolution: 24, exact_images: 0}
"""


@pytest.fixture
def profile(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def test_assess_then_load(profile, tmp_path) -> None:
    """The guide is untrained: what is refined reaches the limit all the same, by the wide search."""
    results = tmp_path / "results"
    first = assess_or_load("both_refined", profile, results=results)
    metrics = first.metrics
    assert metrics["test_images"] == 12 and metrics["resolution"] == 16 and metrics["noise"] == 0.2
    assert 0.1 < metrics["snr"] < 2.0
    assert metrics["outlier_fraction"] == 0.0
    assert 0.3 < metrics["pose_residual_over_limit"] < 3 < metrics["guide_pose_residual_over_limit"]
    assert 0 < metrics["pose_residual_mean_deg_error"] < metrics["pose_residual_mean_deg"]
    assert metrics["elbo_gap_median"] > 10
    assert metrics["evidence_error_median"] < 0.2
    assert set(first.tested) == set(METHODS)
    sizes = {method: len(found["level"]) for method, found in first.tested.items()}
    assert sizes == {"guide": 6, "refined": 12, "exact": 4}
    for level in (50, 80, 95):
        assert 0 <= metrics[f"coverage_{level}"] <= 1
        assert f"guide_coverage_{level}" in metrics and f"exact_coverage_{level}" in metrics
    path = results / load_profile(profile).assessed("both_refined").path / "metrics.json"
    made = path.stat().st_mtime
    again = assess_or_load("both_refined", profile, results=results)
    assert again.metrics == metrics
    assert path.stat().st_mtime == made


def test_without_the_exact_posterior_and_at_another_resolution(profile, tmp_path) -> None:
    found = assess_or_load("both_refined_24", profile, results=tmp_path)
    assert found.metrics["resolution"] == 24 and "exact" not in found.tested
    assert not any(key.startswith(("exact_", "elbo_")) for key in found.metrics)


def test_metrics_hold_assessments_beside_fits(profile, tmp_path, capsys) -> None:
    given = ["--profile", str(profile), "--results", str(tmp_path)]
    assert main(["fit", "both", *given]) == 0
    assert main(["assess", "both_refined", *given]) == 0
    assert main(["assess", "both_refined_24", *given]) == 0
    assert main(["metrics", *given]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics) == ["both", "both_refined", "both_refined_24"]
    assert metrics["both_refined"]["of"] == "both" and metrics["both_refined"]["recipe"] == "refined"


def test_another_configuration_is_refused(profile, tmp_path) -> None:
    assess_or_load("both_refined", profile, results=tmp_path)
    settings = load_profile(profile)
    path = tmp_path / settings.assessed("both_refined").path / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config_hash": "00000000"}))
    with pytest.raises(ArtifactError, match="00000000"):
        load_assessment(settings, "both_refined", tmp_path)


def test_an_assessment_depends_on_its_fit_and_its_own_settings(profile) -> None:
    settings = load_profile(profile)
    digest = settings.assessed("both_refined").config_hash
    for before, after, changes in [
        ("steps: 4", "steps: 5", True),
        ("draws: 19", "draws: 39", True),
        ("title: Both}", "title: The two}", False),
        ("resolution: 24", "resolution: 20", False),
    ]:
        profile.write_text(TINY.replace(before, after))
        assert (load_profile(profile).assessed("both_refined").config_hash != digest) == changes
        assert (load_profile(profile).run("both").config_hash != settings.run("both").config_hash) == (
            before == "steps: 4"
        )


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("of: both, title: Both}", "of: neither, title: Both}", "assessments.both_refined.of = 'neither'"),
        ("resolution: 24", "resolution: 65", "assessments.both_refined_24: resolution K = 65"),
        ("both_refined:", "both:", "assessments.both has the name of an experiment"),
        (
            "exact_images: 0",
            "exakt: 0",
            "assessments.both_refined_24.exakt: unknown key; allowed: exact_images",
        ),
        ("draws: 19", "draws: 0", "checks.draws = 0"),
    ],
)
def test_a_setting_that_is_not_usable_is_named(profile, before, after, message) -> None:
    profile.write_text(TINY.replace(before, after))
    with pytest.raises(ConfigurationError, match=message):
        load_profile(profile)


def test_an_unknown_assessment_is_named(profile) -> None:
    with pytest.raises(
        ConfigurationError, match="no assessment 'none'; it has both_refined, both_refined_24"
    ):
        load_profile(profile).assessed("none")
