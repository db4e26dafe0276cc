"""A new microscope: defocus and astigmatism, whose two numbers are latents of each image."""

import pyro.distributions as dist
import torch

from cryoanm_lib import LATENTS, Latent, Model, Prior, Transfer

DEFOCUS = LATENTS["defocus"]
ASTIGMATISM = Latent("astigmatism", (2,), frame="detector", unit="px²", symbol="a")


class Astigmatic(Transfer):
    """sin(-φ(k)) with φ = z |k|² + a₁ (k_x² - k_y²) + 2 a₂ k_x k_y, the defocus seen from each direction."""

    latents = (DEFOCUS, ASTIGMATISM)

    def values(self, latents, frequencies):
        return (-self._phase(latents, frequencies)).sin()

    def slopes(self, latents, frequencies):
        down = -self._phase(latents, frequencies).cos()
        each = [down * part for part in self._parts(frequencies)]
        return {"defocus": each[0][..., None, :], "astigmatism": torch.stack(each[1:], dim=-2)}

    def _phase(self, latents, frequencies):
        numbers = torch.cat([latents["defocus"][..., None], latents["astigmatism"]], dim=-1)
        return numbers @ self._parts(frequencies)

    def _parts(self, frequencies):
        x, y = frequencies.unbind(-1)
        return torch.stack([x**2 + y**2, x**2 - y**2, 2 * x * y])


class AstigmaticPrior(Prior):
    """The paper's, and a few px² of astigmatism."""

    astigmatism_scale: float = 4.0

    @property
    def latents(self):
        return (*super().latents, ASTIGMATISM)

    def distribution(self, name, n_modes, like):
        if name == "astigmatism":
            return dist.Normal(like.new_zeros(2), self.astigmatism_scale).to_event(1)
        return super().distribution(name, n_modes, like)


def test_astigmatism_is_found_with_honest_error_bars(forward, all_the_way):
    inferred = ("pose", "amplitude", "defocus", "astigmatism")
    model = Model(forward(transfer=Astigmatic()), AstigmaticPrior(), noise=0.1, inferred=inferred)
    torch.manual_seed(1)
    all_the_way(model, model.simulate(200, 32))
