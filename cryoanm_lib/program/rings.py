"""An image on rings about its centre, where a turn is a phase, and networks that turn with the image."""

import math

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from cryoanm_lib.numerics.fourier import half_plane_frequencies, image_to_coefficients
from cryoanm_lib.program.encoders import GROUPS, HIDDEN, small_head

#: Learned references of a pose encoder.
REFERENCES = 32


class Rings(nn.Module):
    """Angular Fourier series of an image on concentric rings, a pixel apart.

        I(r, φ) = Σ_m c_m(r) exp(imφ),    |m| ≤ πr,

    of which those with m ≥ 0 are kept. The bound keeps nearly all that a ring of radius r holds of waves up
    to half a cycle a pixel. A picture turned by θ has the harmonics c_m exp(-imθ): a turn of any size costs
    one product and no interpolation, and the contrast transfer, being radial, does not mind. The crop Π_K
    does: it is square, so that the crop of a turned molecule is the turned crop only nearly, except at
    quarter turns. What lies in the corners of the image, beyond the last ring, is not seen.

    Parameters
    ----------
    size : int
        S, pixels along an edge of the images; there are S/2 rings of 3S points.
    references : int
        Learned references of the pose encoder.
    """

    ring: Int[Tensor, "kept"]
    order: Int[Tensor, "kept"]
    basis: Float[Tensor, "pixels parts"]

    def __init__(self, size: int, references: int = REFERENCES) -> None:
        super().__init__()
        self.size, self.references, self.n_rings, self.n_angles = size, references, size // 2, 3 * size
        radii = torch.arange(self.n_rings) + 0.5
        orders = torch.arange(self.n_angles // 2)
        ring, order = torch.nonzero(orders <= math.pi * radii[:, None], as_tuple=True)
        self.register_buffer("ring", ring, persistent=False)
        self.register_buffer("order", order, persistent=False)
        harmonics = _ring_harmonics(size, radii.double(), self.n_angles)[:, ring, order]
        self.register_buffer("basis", torch.view_as_real(harmonics).flatten(1).float(), persistent=False)

    def __len__(self) -> int:
        """Number of complex harmonics kept."""
        return len(self.ring)

    def forward(self, images: Float[Tensor, "*batch size size"]) -> Complex[Tensor, "*batch kept"]:
        """Harmonics c_m(r) √r, weighted so that each ring counts by its area, in the order of the rings."""
        return torch.view_as_complex((images.flatten(-2) @ self.basis).unflatten(-1, (-1, 2)))

    def turn_back(
        self, seen: Complex[Tensor, "images kept"], pose: Float[Tensor, "*batch #images 2"]
    ) -> Complex[Tensor, "*batch images kept"]:
        """Harmonics at pose zero, c_m exp(imθ)."""
        angle = torch.atan2(pose[..., 1], pose[..., 0])
        phase = angle[..., None] * torch.arange(self.n_angles // 2, device=angle.device)
        return seen * torch.polar(torch.ones_like(phase), phase)[..., self.order]

    def grid(self, seen: Complex[Tensor, "*batch kept"]) -> Complex[Tensor, "*batch rings orders"]:
        """Harmonics as a table of rings and orders, zero where a ring holds none."""
        table = seen.new_zeros(*seen.shape[:-1], self.n_rings, self.n_angles // 2)
        table[..., self.ring, self.order] = seen
        return table

    def pose_encoder(self, components: int) -> "EquivariantPoseEncoder":
        """Reads logits, and vectors that turn with the image."""
        return EquivariantPoseEncoder(self, components)

    def encoder(self, n_outputs: int) -> "DenseEncoder":
        """Reads numbers."""
        return DenseEncoder(2 * len(self), n_outputs)


class EquivariantPoseEncoder(nn.Module):
    """Learned references correlated with the image at every angle, then read along the angle.

    The correlations C_f(φ) of each reference with the image turned back by φ pass through a convolution
    along the circle and become features. From these come, for each component, the angles that it attends
    to, its weight there, and a field of vectors, radial and tangential, whose attended sum is the mean vector
    of a projected normal. Where the harmonics turn by one of the angles, so do the vectors, and the logits
    stay. So does the posterior under a uniform prior; a prior that prefers some pose is not in the network's
    reach, but in what the image says.
    """

    def __init__(self, rings: Rings, components: int) -> None:
        super().__init__()
        # The method and not the module, whose buffers would count as this network's own.
        self._grid, self.n_angles = rings.grid, rings.n_angles
        width = rings.references
        scale = math.sqrt(2 / (rings.n_rings * (rings.n_angles // 2)))
        self.references = nn.Parameter(scale * torch.randn(width, len(rings), 2))
        self.along = nn.Sequential(
            nn.GroupNorm(math.gcd(GROUPS, width), width),
            nn.ReLU(inplace=True),
            nn.Conv1d(width, width, kernel_size=5, padding=2, padding_mode="circular", bias=False),
            nn.GroupNorm(math.gcd(GROUPS, width), width),
            nn.ReLU(inplace=True),
        )
        self.attention = nn.Conv1d(width, components, kernel_size=1, bias=False)
        self.logits = small_head(width, components)
        self.field = nn.Conv1d(width, 2 * components, kernel_size=1, bias=False)
        nn.init.normal_(self.field.weight, std=0.01)
        angle = 2 * math.pi * torch.arange(self.n_angles) / self.n_angles
        radial = torch.stack([angle.cos(), angle.sin()], dim=-1)
        tangential = torch.stack([-angle.sin(), angle.cos()], dim=-1)
        self.register_buffer("frame", torch.stack([radial, tangential], dim=1), persistent=False)

    def correlations(
        self, harmonics: Complex[Tensor, "images kept"]
    ) -> Float[Tensor, "images references angles"]:
        """C_f(φ) = Re Σ_m Σ_r W_fm(r) c_m(r) exp(imφ)."""
        table = self._grid(harmonics).permute(2, 0, 1)
        references = self._grid(torch.view_as_complex(self.references)).permute(2, 1, 0)
        matched = torch.bmm(table, references)
        return torch.fft.irfft(matched.permute(1, 2, 0), n=self.n_angles, norm="ortho")

    def forward(
        self, harmonics: Complex[Tensor, "*batch kept"]
    ) -> tuple[Float[Tensor, "*batch components"], Float[Tensor, "*batch components 2"]]:
        """Logits and vectors of each component."""
        batch = harmonics.shape[:-1]
        features = self.along(self.correlations(harmonics.reshape(-1, harmonics.shape[-1])))
        attention = self.attention(features).softmax(-1)
        attended = torch.einsum("ika,ifa->ikf", attention, features)
        logits = (attended * self.logits.weight).sum(-1) + self.logits.bias
        field = self.field(features).unflatten(1, (-1, 2))
        # Attention adds up to one; the factor makes a flat one a sum over the circle.
        vectors = self.n_angles * torch.einsum("ikea,aec->ikc", attention[:, :, None] * field, self.frame)
        return logits.unflatten(0, batch), vectors.unflatten(0, batch)


class DenseEncoder(nn.Module):
    """Two dense layers of 512 on the real and imaginary parts of the harmonics, then a linear head."""

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(
            nn.Linear(n_inputs, HIDDEN, bias=False),
            nn.LayerNorm(HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, HIDDEN, bias=False),
            nn.LayerNorm(HIDDEN),
            nn.ReLU(inplace=True),
        )
        self.head = small_head(HIDDEN, n_outputs)

    def forward(self, harmonics: Complex[Tensor, "*batch kept"]) -> Float[Tensor, "*batch outputs"]:
        """Parameters of the guide for each image."""
        flat = torch.view_as_real(harmonics.reshape(-1, harmonics.shape[-1])).flatten(1)
        return self.head(self.dense(flat)).unflatten(0, harmonics.shape[:-1])


def _ring_harmonics(
    size: int, radii: Float[Tensor, "rings"], n_angles: int
) -> Complex[Tensor, "pixels rings orders"]:
    """What each pixel contributes to each harmonic: interpolate its Fourier series on rings, transform."""
    pixels = torch.eye(size**2, dtype=torch.float64).unflatten(1, (size, size))
    coefficients = image_to_coefficients(pixels, size)
    # Each coefficient of the half plane stands for its conjugate partner too, but for k = 0.
    coefficients[:, 1:] *= 2
    angle = 2 * math.pi * torch.arange(n_angles, dtype=torch.float64) / n_angles
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
    cycles = direction @ half_plane_frequencies(size).double().T / size
    rings = []
    for radius in radii:  # one at a time: all of them would not fit into memory for a large image
        phase = 2 * math.pi * radius * cycles
        values = (coefficients @ torch.polar(torch.ones_like(phase), phase).T).real
        rings.append(torch.fft.rfft(values * radius.sqrt(), dim=-1, norm="ortho")[..., : n_angles // 2])
    return torch.stack(rings, dim=1)
