"""Rigid blocks that move on helices, on which they stay what they are; straight lines would swell them."""

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cryoanm_lib.errors import NetworkModelError
from cryoanm_lib.molecule.rigid_blocks import block_numbers
from cryoanm_lib.numerics.rotation import cross_matrix

#: How much of a mode may be other than rigid motions of its blocks, as a share of its length.
_RIGID = 1e-5
#: Below this angle in radians, series stand for quotients that would lose their digits.
_SMALL = 1e-2


class Helices(nn.Module):
    """Where atoms of rigid blocks are, each block moved along the screw that its modes add up to.

    A mode moves the atom at x of a block with its middle at c by t + ω × (x - c). Straight on, it would swell
    the block by a share of the angle's square; along the helix that starts alike,

        x(α) = c + R(ω) (x - c) + V(ω) t,    ω = Σ_m α_m ω_m,    t = Σ_m α_m t_m,

    with R the rotation by the vector ω and V = ∫_0^1 R(s ω) ds, all distances within it stay.

    Parameters
    ----------
    reference, modes : Float[Tensor, "atoms 3"], Float[Tensor, "modes atoms 3"]
        As of `ForwardModel`.
    blocks : sequence
        The block of each atom, by which the modes were made.

    Raises
    ------
    NetworkModelError
        If there is not a block for each atom, or a mode does not leave one rigid.

    Examples
    --------
    >>> from cryoanm_lib import load_structure, rigid_block_modes
    >>> structure = load_structure("adk_open", stride=1)
    >>> blocks = [number // 10 for number in structure.residue_numbers]
    >>> modes = rigid_block_modes(structure.coordinates, blocks, n_modes=2).vectors
    >>> helices = Helices(structure.coordinates, modes, blocks)
    >>> helices(torch.tensor([30.0, -20.0], dtype=torch.float64)).shape
    torch.Size([214, 3])
    """

    block: Int[Tensor, "atoms"]
    middles: Float[Tensor, "blocks 3"]
    away: Float[Tensor, "atoms 3"]
    turns: Float[Tensor, "modes blocks 3"]
    moves: Float[Tensor, "modes blocks 3"]

    def __init__(
        self,
        reference: Float[Tensor, "atoms 3"],
        modes: Float[Tensor, "modes atoms 3"],
        blocks: Sequence[Hashable],
    ) -> None:
        super().__init__()
        block = torch.from_numpy(block_numbers(blocks, len(reference))).to(reference.device)
        count = int(block.max()) + 1
        middles = torch.stack([reference[block == place].mean(dim=0) for place in range(count)])
        away = reference - middles[block]
        turns, moves = _twists(modes.double(), away.double(), block, count)
        parts = {"block": block, "middles": middles, "away": away}
        for name, part in (parts | {"turns": turns.to(reference), "moves": moves.to(reference)}).items():
            self.register_buffer(name, part)
        left = modes.double() - moves[:, block] - torch.linalg.cross(turns[:, block], away.double()[None])
        if (share := left.flatten(1).norm(dim=1) / modes.double().flatten(1).norm(dim=1)).max() > _RIGID:
            raise NetworkModelError(
                f"{share.max():.0%} of mode {int(share.argmax())} is no rigid motion of the blocks: give the "
                "blocks that `rigid_block_modes` made it by"
            )

    def forward(self, amplitudes: Float[Tensor, "*batch modes"]) -> Float[Tensor, "*batch atoms 3"]:
        """Coordinates in Å."""
        turn = torch.einsum("...m,mbi->...bi", amplitudes, self.turns)
        move = torch.einsum("...m,mbi->...bi", amplitudes, self.moves)
        rotation, mean_rotation = _rotations(turn)
        shifted = self.middles + (mean_rotation @ move[..., None])[..., 0]
        turned = (rotation[..., self.block, :, :] @ self.away[..., None])[..., 0]
        return shifted[..., self.block, :] + turned

    def tangents(self, amplitudes: Float[Tensor, "*batch modes"]) -> Float[Tensor, "*batch modes atoms 3"]:
        """How fast each atom moves as the amplitude of each mode grows, at given amplitudes."""
        each = torch.eye(len(self.turns), dtype=amplitudes.dtype, device=amplitudes.device)
        along = [torch.func.jvp(self.forward, (amplitudes,), (e.expand_as(amplitudes),))[1] for e in each]
        return torch.stack(along, dim=-3)


def _twists(
    modes: Float[Tensor, "modes atoms 3"],
    away: Float[Tensor, "atoms 3"],
    block: Int[Tensor, "atoms"],
    count: int,
) -> tuple[Float[Tensor, "modes blocks 3"], Float[Tensor, "modes blocks 3"]]:
    """ω and t of each block that fit a mode best: of atoms on a line, the shortest ω that does."""
    turns, moves = (modes.new_zeros(len(modes), count, 3) for _ in range(2))
    for place in range(count):
        own = block == place
        moves[:, place] = modes[:, own].mean(dim=1)
        seen = (modes[:, own] - moves[:, place, None]).flatten(1)
        turns[:, place] = (torch.linalg.pinv(cross_matrix(-away[own]).flatten(0, 1)) @ seen.T).T
    return turns, moves


def _rotations(
    vector: Float[Tensor, "*batch 3"],
) -> tuple[Float[Tensor, "*batch 3 3"], Float[Tensor, "*batch 3 3"]]:
    """R = 1 + a W + b W² and V = 1 + b W + c W² of a rotation vector, where W is its cross product.

    a = sin θ / θ, b = (1 - cos θ) / θ² and c = (θ - sin θ) / θ³.
    """
    square = vector.square().sum(-1)
    small = square < _SMALL**2
    safe = square.where(~small, 1.0)  # so that no derivative divides by zero
    angle = safe.sqrt()
    a = torch.where(small, 1 - square / 6 + square**2 / 120, angle.sin() / angle)
    b = torch.where(small, 0.5 - square / 24 + square**2 / 720, (1 - angle.cos()) / safe)
    c = torch.where(small, 1 / 6 - square / 120 + square**2 / 5040, (angle - angle.sin()) / (safe * angle))
    cross, one = cross_matrix(vector), torch.eye(3, dtype=vector.dtype, device=vector.device)
    twice = cross @ cross
    a, b, c = (part[..., None, None] for part in (a, b, c))
    return one + a * cross + b * twice, one + b * cross + c * twice
