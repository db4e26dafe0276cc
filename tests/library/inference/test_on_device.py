"""Posteriors on a device: nothing lands on the CPU on the way, and the answers are the CPU's to rounding."""

import copy
from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from cryoanm_lib.checks.calibration import coverage, credible_level, ranks, uniformity
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.imaging import fourier_axis
from cryoanm_lib.inference.exact_posterior import exact_posterior
from cryoanm_lib.inference.fisher import information_limit
from cryoanm_lib.inference.lattice_search import LatticeSearch
from cryoanm_lib.inference.refinement import refine
from cryoanm_lib.inference.so3_search import SO3Search
from cryoanm_lib.inference.tempering import prior_about, temper
from cryoanm_lib.numerics import compiled
from cryoanm_lib.numerics.per_image_rng import PerImageRNG
from cryoanm_lib.particles.particles import Simulated
from cryoanm_lib.program.prior import Prior
from cryoanm_lib.program.program import Model
from tests.library.emulated import DEVICE, emulated

PLANE = ("pose", "amplitude")
SPACE = Prior(pose="space", shift_scale=1.0, contrast_scale=0.1)  # pyright: ignore[reportCallIssue]
# Largest difference of an answer from that of the CPU: sums of float32 in another order differ by 1e-6, and
# Newton's steps end 1e-3 nats below a peak, from whichever side they come.
TOLERANCE = 1e-3


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def searched(model: Model, images: Simulated) -> Any:
    search = LatticeSearch(model, 16)
    return refine(model, images, 32, search.starts(images), search, generator())


def looked_for_in_space(model: Model, images: Simulated) -> Any:
    search = SO3Search(model, spacing=30.0, most=4, symmetry="C2")
    return refine(model, images, 32, search.starts(images), search, generator(), group=search.group)


def exactly(model: Model, images: Simulated) -> Any:
    return exact_posterior(model, images, 32, tolerance=0.05)


def tempered(model: Model, images: Simulated) -> Any:
    start = prior_about(model, len(images), images.truth["pose"], 0.3)
    return temper(model, images, 32, start, draws=16, moves=1, generator=generator())


def judged(posterior: Any, images: Simulated) -> dict[str, Tensor]:
    """Everything that is asked of a posterior."""
    draws = posterior.sample(9, generator())
    found = {f"draw of {name}": value for name, value in draws.items()}
    found |= {f"mean of {name}": value for name, value in posterior.mean().items()}
    found |= {f"rank of {name}": value for name, value in ranks(draws, images.truth).items()}
    found |= {"evidence": posterior.log_evidence, "density": posterior.log_density(draws)}
    level = credible_level(posterior, draws, images.truth)
    assert 0 <= coverage(level, 0.5, 9) <= 1 and 0 <= uniformity(level, 9, generator()) <= 1
    found |= information_limit(posterior.model, images, 32)
    for name in ("ess_fraction", "surprise"):
        found |= {name: getattr(posterior, name)} if hasattr(posterior, name) else {}
    if hasattr(posterior, "covariance"):
        found |= {"covariance": posterior.covariance(), "standard": posterior.standardised(images.truth)}
    return found


TASKS = [
    pytest.param(searched, {"inferred": PLANE, "noise": 0.1}, 4, id="lattice"),
    pytest.param(
        searched, {"inferred": PLANE, "noise": (0.5, 2.0)}, 3, id="weighed", marks=pytest.mark.thorough
    ),
    pytest.param(
        looked_for_in_space, {"prior": SPACE, "inferred": None}, 2, id="space", marks=pytest.mark.thorough
    ),
    pytest.param(exactly, {"inferred": PLANE, "noise": 0.5}, 4, id="exact"),
    pytest.param(tempered, {"inferred": PLANE, "noise": 0.5}, 3, id="tempered"),
]


def a_task(tiny_model, options: dict, count: int) -> tuple[Model, Simulated]:
    model = tiny_model(**options)
    pyro.set_rng_seed(0)
    return model, model.simulate(count, 32)


def require_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        difference = (found[name].double() - value.double()).abs() / value.double().abs().clamp(min=1.0)
        assert difference.max() < TOLERANCE, f"{name} differs by {difference.max():.1e}"


@pytest.mark.parametrize(("infer", "options", "count"), TASKS)
def test_a_posterior_on_the_device_is_that_of_the_cpu(tiny_model, infer, options, count) -> None:
    """Draws are of the same random numbers; sums are in another order, by formulas in place of loops."""
    model, images = a_task(tiny_model, options, count)
    expected = judged(infer(model, images), images)
    with emulated():
        there = images.to(DEVICE)
        found = judged(infer(copy.deepcopy(model).to(DEVICE), there), there)
        assert {value.device for value in found.values()} == {DEVICE}
        found = {name: value.cpu() for name, value in found.items()}
    require_close(found, expected)


@pytest.mark.parametrize(("infer", "options", "count"), TASKS)
def test_formulas_of_torch_answer_what_compiled_loops_do(
    tiny_model, monkeypatch, infer, options, count
) -> None:
    """As a GPU computes, which has no loops."""
    model, images = a_task(tiny_model, options, count)
    expected = judged(infer(model, images), images)
    monkeypatch.setattr(compiled, "compiled_for", lambda tensor: False)
    fourier_axis._axis_of.cache_clear()  # an axis knows for whom it was made
    found = judged(infer(model, images), images)
    fourier_axis._axis_of.cache_clear()
    require_close(found, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("infer", "options", "count"), TASKS)
def test_a_posterior_on_cuda_is_that_of_the_cpu(tiny_model, infer, options, count) -> None:
    model, images = a_task(tiny_model, options, 10 * count)
    expected = judged(infer(model, images), images)
    there = images.to("cuda")
    found = judged(infer(copy.deepcopy(model).to("cuda"), there), there)
    assert {value.device.type for value in found.values()} == {"cuda"}
    require_close({name: value.cpu() for name, value in found.items()}, expected)


def test_a_guide_on_the_device_says_where_to_start(tiny_guide) -> None:
    """What it proposes comes by way of the CPU, where other answers of guides are kept."""
    guide = tiny_guide(inferred=PLANE)
    model = guide.model
    images = model.simulate(3, 32)
    expected = refine(model, images, 32, guide, generator=generator()).log_evidence
    with emulated():
        there = copy.deepcopy(guide).to(DEVICE)
        found = refine(there.model, images.to(DEVICE), 32, there, generator=generator())
        assert found.log_evidence.device == DEVICE
        require_close({"evidence": found.log_evidence.cpu()}, {"evidence": expected})


def test_draws_are_the_same_in_any_batch_on_the_device() -> None:
    """Those of an image among others on the CPU, and alone on the device."""
    expected = PerImageRNG.of(3, generator()).normal(2, 3)
    with emulated():
        there = PerImageRNG.of(3, generator(), DEVICE)
        alone = there[torch.tensor([False, False, True]).to(DEVICE)].normal(2, 3)
        others = there[torch.tensor([0, 1]).to(DEVICE)].normal(2, 3)
        assert torch.equal(torch.cat([others, alone]).cpu(), expected)


def test_images_and_model_on_two_devices_are_refused(tiny_model) -> None:
    model, images = a_task(tiny_model, {"inferred": PLANE}, 2)
    told = (
        r"images on meta:1 and a model on cpu do not meet: use particles.to\('cpu'\) or model.to\('meta:1'\)"
    )
    search, start = LatticeSearch(model, 16), prior_about(model, 2, images.truth["pose"], 0.3)
    with emulated():
        there = images.to(DEVICE)
        for asked in (
            lambda: refine(model, there, 32, search),  # pyright: ignore[reportArgumentType]
            lambda: search.starts(there),
            lambda: exact_posterior(model, there, 32),
            lambda: temper(model, there, 32, start, draws=8),
        ):
            with pytest.raises(CryoANMError, match=told):
                asked()


def test_what_is_given_must_be_on_the_device_too(tiny_model) -> None:
    model, images = a_task(tiny_model, {"inferred": ("pose",)}, 2)
    with emulated():
        given = {name: value.to(DEVICE) for name, value in images.given.items()}
        with pytest.raises(CryoANMError, match="given amplitude on meta:1 and a model on cpu"):
            exact_posterior(model, replace(images, given=given), 32)


def test_the_emulated_device_refuses_what_a_gpu_would() -> None:
    """Otherwise these tests would find nothing."""
    with emulated() as device:
        there = torch.ones(3).to(DEVICE)
        with pytest.raises(AssertionError, match="mixes"):
            there.add(torch.ones(3))
        with pytest.raises(AssertionError, match="mixes"):
            torch.ones(3)[there.long()]
        assert (there * torch.tensor(2.0)).sum().item() == 6.0
        assert device.waits == {"copy": 1, "item": 1}
