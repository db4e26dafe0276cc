"""Rotations after which a symmetric molecule looks the same, and poses that differ by one of them."""

import math

import scipy  # loads its rotations where they are first used
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.numerics.rotation import quaternion_product

#: Degrees between the z axis of an icosahedron, of twofold symmetry, and the nearest fivefold one; and of a
#: cube, between that and the nearest diagonal.
_FIVEFOLD, _DIAGONAL = math.degrees(math.atan(2 / (1 + 5**0.5))), math.degrees(math.atan(2**0.5))
#: How groups are turned from where SciPy has them: about z, then y, then z.
_PLACED = {
    "T": (-45.0, -_DIAGONAL, -90.0),
    "I": (90.0, 0.0, 0.0),
    "I1": (0.0, 0.0, 0.0),
    "I2": (90.0, 0.0, 0.0),
    "I3": (90.0, -_FIVEFOLD, 0.0),
    "I4": (90.0, _FIVEFOLD, 0.0),
}


def point_group(symmetry: str) -> Float64[Tensor, "turns 4"]:
    """Unit quaternions of a group, named and placed as RELION does it.

    Cn and Dn have their main axis along z, and Dn a twofold one along x; T has a threefold axis along z, and
    O fourfold ones along x, y and z. Of I1 and I2, which is I, twofold axes lie along x, y and z; of I3 and
    I4 a fivefold one along z.

    Raises
    ------
    CryoANMError
        If there is no such group.

    Examples
    --------
    >>> len(point_group("D3"))
    6
    """
    kind = symmetry[:1] if symmetry in _PLACED else symmetry
    try:
        group = scipy.spatial.transform.Rotation.create_group(kind)
    except ValueError as error:
        raise CryoANMError(
            f"symmetry {symmetry!r} does not exist: choose C1, C2 …, D2, D3 …, T, O, or I, I1 … I4"
        ) from error
    if (degrees := _PLACED.get(symmetry)) is not None:
        there = scipy.spatial.transform.Rotation.from_euler("zyz", degrees, degrees=True)
        group = there * group * there.inv()
    return torch.from_numpy(group.as_quat(scalar_first=True))


def in_asymmetric_unit(
    quaternions: Float64[Tensor, "rotations 4"], group: Float64[Tensor, "turns 4"]
) -> Bool[Tensor, "rotations"]:
    """Which rotations R are no further from rest than any R S, with S in the group.

    Of the rotations that differ by the symmetry alone one is marked.

    Examples
    --------
    >>> turns = torch.nn.functional.normalize(torch.randn(600, 4, dtype=torch.float64), dim=1)
    >>> 60 < in_asymmetric_unit(turns, point_group("D3")).sum() < 140
    tensor(True)
    """
    # the real part of the product of two quaternions, of which the inverse is in the group too
    turned = (quaternions @ group.T).abs()
    return turned.amax(dim=1) <= quaternions[:, 0].abs() + 1e-12


def nearest_equivalent(
    quaternions: Float[Tensor, "*#batch 4"], to: Float[Tensor, "*#batch 4"], group: Float64[Tensor, "turns 4"]
) -> Float[Tensor, "*batch 4"]:
    """Of all R S, with S in the group, the one that is nearest to another rotation.

    Examples
    --------
    >>> rest, turned = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.7072, 0, 0, 0.7070])
    >>> nearest_equivalent(turned, rest, point_group("C4")).round(decimals=2).abs()
    tensor([1., 0., 0., 0.])
    """
    if len(group) == 1:
        return quaternions.expand(torch.broadcast_shapes(quaternions.shape, to.shape))
    every = quaternion_product(quaternions[..., None, :], group.to(quaternions))
    best = (every * to[..., None, :]).sum(-1).abs().argmax(-1)
    every = every.expand(*best.shape, *every.shape[-2:])
    return every.take_along_dim(best[..., None, None], dim=-2)[..., 0, :]
