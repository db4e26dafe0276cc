"""Projection and likelihood: ours beside the paper's, cryoJAX's, and what the machine can do at all."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.rows import Row
from benchmarks.side_by_side import in_turns, ratios
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.fourier_projection import fourier_coefficients
from cryoanm_lib.imaging.gridded_projection import ACCURACY
from cryoanm_lib.imaging.latents import in_plane
from cryoanm_lib.imaging.likelihood import log_likelihood
from cryoanm_lib.imaging.noise import WhiteNoise
from cryoanm_lib.imaging.projection import PROJECTORS
from cryoanm_lib.molecule.anm import normal_modes
from cryoanm_lib.molecule.structure import load_structure
from cryoanm_lib.numerics.fourier import half_plane_frequencies

#: Largest difference of two answers that count as equal, as a share of the largest value.
TOLERANCE = 1e-4

# The paper's task: 133 pseudo-atoms of 0.8 pixels on 64 × 64 pixels, noise 0.1.
_ATOMS, _BOX, _WIDTH = 133, 64, 0.8
_NOISE = WhiteNoise(0.1, _BOX)


def require_equal(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Refuse to time two things that do not do the same."""
    error = (ours - theirs).abs().max() / theirs.abs().max()
    if not error < TOLERANCE:
        raise SystemExit(f"{what}: answers differ by {error:.1e} of the largest value, not {TOLERANCE:.0e}")


def some_positions(n_images: int, n_atoms: int = _ATOMS) -> Tensor:
    """Atoms anywhere in a square in the box."""
    generator = torch.Generator().manual_seed(0)
    return 50 * torch.rand(n_images, n_atoms, 2, generator=generator) - 25


def against_the_paper(n_images: int = 500) -> Iterator[Row]:
    """The projection as a sparse tensor, forward and backward: by the paper's patch, and as exact as ours."""
    positions = some_positions(n_images)
    weights = torch.randn(n_images, len(half_plane_frequencies(_BOX)), dtype=torch.complex64)

    def answer(name: str, accuracy: float | None) -> tuple[Tensor, Tensor]:
        at = positions.clone().requires_grad_()
        coefficients = PROJECTORS[name](at, _BOX, _WIDTH, _BOX, accuracy)
        (gradient,) = torch.autograd.grad((weights.conj() * coefficients).sum().real, at)
        return torch.view_as_real(coefficients.detach()), gradient

    patches = {"its own patch": None, "a patch as exact as ours": ACCURACY}
    work = {"ours": partial(answer, "auto", None)}
    work |= {patch: partial(answer, "sparse", accuracy) for patch, accuracy in patches.items()}
    found = {way: answers() for way, answers in work.items()}
    for ours, theirs in zip(found["ours"], found["a patch as exact as ours"], strict=True):
        require_equal(ours, theirs, "projection")
    seconds = in_turns(work, rounds=7)
    for patch in patches:
        error = (found[patch][0] - found["ours"][0]).norm() / found["ours"][0].norm()
        what = f"the paper's sparse tensor, {patch} (error {error:.0e}): forward and backward"
        yield Row.of(what, ratios(seconds, patch, "ours"), "×", 20)


#: N, σ_a, K and P on both sides of where one projector overtakes the other.
_SIZES = [
    (64, 0.8, 32, 133),
    (64, 0.8, 64, 2000),
    (128, 1.6, 128, 1000),
    (256, 3.2, 256, 5000),
    (512, 1.6, 512, 20_000),
    (512, 6.4, 64, 20_000),
]


def choices_between_projectors(sizes: Sequence[tuple[int, float, int, int]] = _SIZES) -> Iterator[Row]:
    """How fast the choice of "auto" is, beside the faster of the two that it chooses from."""
    for box, width, resolution, n_atoms in sizes:
        positions = 0.7 / 50 * box * some_positions(max(1, 20_000 // n_atoms), n_atoms)
        names = ("fourier", "gridded", "auto")
        work = {name: partial(PROJECTORS[name], positions, box, width, resolution) for name in names}
        seconds = in_turns(work, rounds=5)
        best = min(names[:2], key=lambda name: sorted(seconds[name])[2])
        label = f"the faster projector: N = {box}, K = {resolution}, {n_atoms} atoms ({best})"
        yield Row.of(label, ratios(seconds, best, "auto"), "×", 0.8)


def against_matrix_products(n_images: int = 500, resolution: int = 32, size: int = 3000) -> Iterator[Row]:
    """Coefficients, at 8 real operations an atom and coefficient, as a share of a large product's rate."""
    positions, square = some_positions(n_images), torch.randn(size, size)
    work = {
        "coefficients": lambda: fourier_coefficients(positions, _BOX, _WIDTH, resolution),
        "product": lambda: square @ square,
    }
    seconds = in_turns(work)
    operations = 8 * n_images * _ATOMS * len(half_plane_frequencies(resolution))
    each = zip(seconds["product"], seconds["coefficients"], strict=True)
    shares = [100 * (operations / ours) / (2 * size**3 / product) for product, ours in each]
    yield Row.of(
        f"rate of a large matrix product: coefficients at K = {resolution}, 8 operations each",
        shares,
        "%",
        40,
    )


class OneTask:
    """Images of a molecule that bends along a mode, turns in the plane, and comes in and out of focus."""

    def __init__(self, n_images: int, device: torch.device | str = "cpu") -> None:
        reference = load_structure("adk_open").coordinates
        modes = normal_modes(reference).vectors
        # At 1.25 Å a pixel no atom comes near the edge, where the library wraps round and others cut off.
        self.model, self.noise = ForwardModel(reference.float(), modes.float(), pixel_size=1.25), _NOISE
        generator = torch.Generator().manual_seed(1)
        draws = torch.randn(2, n_images, generator=generator)
        self.amplitude, self.defocus = 3 * draws[0, :, None], 50 + 3 * draws[1]
        self.pose = 6.2832 * torch.rand(n_images, generator=generator)
        self.weights = torch.randn(n_images, 64, 64, generator=generator)
        for name in ("model", "amplitude", "defocus", "pose", "weights"):
            setattr(self, name, getattr(self, name).to(device))

    def latents(self, needs_gradient: bool = False) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The numbers, and the model's view of them."""
        given = (self.pose, self.amplitude, self.defocus)
        numbers = [x.clone().requires_grad_(needs_gradient) for x in given]
        pose, amplitude, defocus = numbers
        return numbers, in_plane(pose, amplitude, defocus=defocus)

    def images(self) -> Tensor:
        """Without noise."""
        return self.model.images(self.latents()[1])

    def observed(self, resolution: int) -> Tensor:
        """Coefficients with noise."""
        generator = torch.Generator(self.pose.device).manual_seed(2)
        return _NOISE.sample(self.model.coefficients(self.latents()[1], resolution), generator)

    def gradient(self) -> tuple[Tensor, ...]:
        """Of images, weighted pixel by pixel."""
        numbers, latents = self.latents(needs_gradient=True)
        return torch.autograd.grad((self.model.images(latents) * self.weights).sum(), numbers)

    def log_likelihood_gradient(self, observed: Tensor, resolution: int) -> tuple[Tensor, ...]:
        """Log-likelihood of images, and its gradient."""
        numbers, latents = self.latents(needs_gradient=True)
        predicted = self.model.coefficients(latents, resolution)
        value = log_likelihood(observed, predicted, _NOISE, resolution)
        return value.detach(), *torch.autograd.grad(value.sum(), numbers)


def against_cryojax(n_images: int = 500, resolution: int = 32) -> Iterator[Row]:
    """Images with contrast transfer, their gradients, and log-likelihoods with theirs."""
    from benchmarks.with_cryojax import WithCryoJAX, to_jax, to_torch

    ours = OneTask(n_images)
    numbers = [to_jax(x) for x in (ours.pose, ours.amplitude, ours.defocus)]
    weights, observed = to_jax(ours.weights), ours.observed(resolution)
    # These options of its projection are exact enough (7 pixels are not), and the fastest of them counts.
    theirs = {f"cryojax {n}": WithCryoJAX(ours.model, n_spread=n) for n in (None, 9, 11)}
    scores = {name: t.log_likelihood_slopes(observed, resolution) for name, t in theirs.items()}
    sigma = _NOISE.cropped(resolution).item()
    works = [
        (
            "image with contrast transfer",
            2,
            lambda: [ours.images()],
            {n: lambda t=t: [t.images(*numbers)] for n, t in theirs.items()},
        ),
        (
            "gradient by amplitude, angle and defocus",
            5,
            ours.gradient,
            {n: lambda t=t: t.weighted(*numbers, weights) for n, t in theirs.items()},
        ),
        (
            f"log-likelihood with gradient, K = {resolution}, for which it makes all {_BOX} × {_BOX}",
            12,
            lambda: ours.log_likelihood_gradient(observed, resolution),
            {
                n: lambda f=f, seen=seen: (lambda v, g: [v, *g])(*f(*numbers, seen, sigma))
                for n, (f, seen) in scores.items()
            },
        ),
    ]
    for what, target, own, others in works:
        for name, other in others.items():
            for mine, found in zip(own(), other(), strict=True):
                require_equal(mine, to_torch(found), f"{what}, {name}")
        waited = {n: lambda f=f: [x.block_until_ready() for x in f()] for n, f in others.items()}
        seconds = in_turns({"ours": own, **waited})
        rival = min(others, key=lambda n: sorted(seconds[n])[len(seconds[n]) // 2])
        yield Row.of(f"cryoJAX: {what}", ratios(seconds, rival, "ours"), "×", target)
