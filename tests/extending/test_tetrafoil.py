"""A new microscope: defocus and fourfold astigmatism, whose two numbers are latents of each image."""

import pyro.distributions as dist
import torch

from cryoanm_lib import LATENTS, Latent, Model, Prior, Transfer

DEFOCUS = LATENTS["defocus"]
TETRAFOIL = Latent("tetrafoil", (2,), frame="detector", unit="px⁴", symbol="t")


class Fourfold(Transfer):
    """sin(-φ(k)) with φ = z |k|² + t₁ (k_x⁴ - 6 k_x² k_y² + k_y⁴) + 4 t₂ (k_x³ k_y - k_x k_y³)."""

    latents = (DEFOCUS, TETRAFOIL)

    def values(self, latents, frequencies):
        return (-self._phase(latents, frequencies)).sin()

    def slopes(self, latents, frequencies):
        down = -self._phase(latents, frequencies).cos()
        each = [down * part for part in self._parts(frequencies)]
        return {"defocus": each[0][..., None, :], "tetrafoil": torch.stack(each[1:], dim=-2)}

    def _phase(self, latents, frequencies):
        numbers = torch.cat([latents["defocus"][..., None], latents["tetrafoil"]], dim=-1)
        return numbers @ self._parts(frequencies)

    def _parts(self, frequencies):
        x, y = frequencies.unbind(-1)
        return torch.stack([x**2 + y**2, x**4 - 6 * x**2 * y**2 + y**4, 4 * (x**3 * y - x * y**3)])


class FourfoldPrior(Prior):
    """The paper's, and some tetrafoil."""

    tetrafoil_scale: float = 60.0

    @property
    def latents(self):
        return (*super().latents, TETRAFOIL)

    def distribution(self, name, n_modes, like):
        if name == "tetrafoil":
            return dist.Normal(like.new_zeros(2), self.tetrafoil_scale).to_event(1)
        return super().distribution(name, n_modes, like)


def test_tetrafoil_is_found_with_honest_error_bars(forward, all_the_way):
    inferred = ("pose", "amplitude", "defocus", "tetrafoil")
    model = Model(forward(transfer=Fourfold()), FourfoldPrior(), noise=0.1, inferred=inferred)
    torch.manual_seed(1)
    all_the_way(model, model.simulate(200, 32))
