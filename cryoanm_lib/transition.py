"""Images of a molecule on its way between two known structures, which no single mode spans."""

import torch
from jaxtyping import Float
from torch import Tensor

from cryoanm_lib.forward import ForwardModel
from cryoanm_lib.program import CryoProgram, Particles, to_forward
from cryoanm_lib.structure import superpose


class Transition:
    """The straight path from a program's reference to another structure, x(t) = x̄ + t d.

    Parameters
    ----------
    program : CryoProgram
        Its reference is where the path begins, at t = 0; its forward model says how images are made.
    end : Float[Tensor, "atoms 3"]
        Where it ends, at t = 1, in any orientation: it is superposed on the beginning.
    """

    def __init__(self, program: CryoProgram, end: Float[Tensor, "atoms 3"]) -> None:
        model = program.forward_model
        self.program = program
        self.displacement = superpose(end.to(model.reference), model.reference) - model.reference
        self.length = self.displacement.norm().item()
        # A mode of its own: the forward model bends along it as along any other.
        direction = (self.displacement / self.length)[None]
        sizes = (model.box_size, model.pixel_size, model.atom_width, model.projector)
        self.forward_model = ForwardModel(model.reference, direction, *sizes)

    @property
    def amplitudes(self) -> Float[Tensor, "modes"]:
        """Amplitudes of the program's modes that come closest to the end, u·d: what they can know of it."""
        return (self.program.forward_model.modes * self.displacement).sum((-2, -1))

    @property
    def unspanned(self) -> float:
        """RMSD in Å that the program's modes leave at the end of the path."""
        modes = self.program.forward_model.modes
        left = self.displacement - torch.tensordot(self.amplitudes, modes, dims=1)
        return (left.norm() / len(left) ** 0.5).item()

    @torch.no_grad()
    def simulate(self, fraction: float, n_images: int, resolution: int) -> Particles:
        """Images of the molecule at a fraction t of the way, with poses from the program's prior.

        The amplitude that they are said to have is t u·d, and the pose that of the superposed structures.

        Parameters
        ----------
        fraction : float
            t.
        n_images : int
            How many.
        resolution : int
            K at which they are kept.
        """
        latents = dict(self.program.simulate(n_images, resolution).latents)
        latents["amplitude"] = latents["amplitude"].new_full((n_images, 1), fraction * self.length)
        images = self.forward_model.simulate(to_forward(latents), self.program.noise, resolution)
        nearest = (fraction * self.amplitudes).expand(n_images, -1)
        return Particles(images, latents | {"amplitude": nearest})
