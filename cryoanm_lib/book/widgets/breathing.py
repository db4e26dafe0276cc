"""A molecule that swings along its modes, and that a reader can turn."""

from dataclasses import dataclass

import matplotlib as mpl
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from cryoanm_lib.book.widgets.frame import Slider, moving_figure, rounded

# Colours along the chain, told apart by every eye, and light enough at one end only.
_COLOURS = 32

# Height of the picture over that of the molecule.
_ROOM = 1.1

# Pixels along an edge of the projection, and the width of an atom in them, as of the book's images.
_PIXELS, _ATOM_WIDTH = 64, 0.8


@dataclass(frozen=True, eq=False)
class Breathing:
    """The chain of a molecule, bent by an amplitude that swings, over the reference in grey; its projection.

    Parameters
    ----------
    reference : Float[Tensor, "atoms 3"]
        Coordinates in Å, centred.
    modes : Float[Tensor, "modes atoms 3"]
        Of unit norm over all coordinates.
    furthest : Float[Tensor, "modes"]
        Amplitude of each mode in Å at the end of a swing.
    deviations : Float[Tensor, "modes"]
        Amplitude of one deviation of each mode in Å, which the slider marks.
    still, alt, name : Figure, str, str
        As of `moving_figure`.
    other : Float[Tensor, "atoms 3"], optional
        Another structure of the same molecule, superposed, that is drawn with it in orange.
    """

    reference: Float[Tensor, "atoms 3"]
    modes: Float[Tensor, "modes atoms 3"]
    furthest: Float[Tensor, "modes"]
    deviations: Float[Tensor, "modes"]
    still: Figure
    alt: str
    name: str = "breathing"
    other: Float[Tensor, "atoms 3"] | None = None

    def _repr_html_(self) -> str:
        chain = mpl.colormaps["viridis"].resampled(_COLOURS)
        model = {
            "reference": rounded(self.reference),
            "modes": rounded(self.modes),
            "furthest": rounded(self.furthest),
            "deviations": rounded(self.deviations),
            "other": None if self.other is None else rounded(self.other),
            # Half the height of the picture: the reference with room to swing, however it is turned.
            "reach": round(_ROOM * self.reference.norm(dim=-1).max().item(), 3),
            "boxSize": _PIXELS,
            "atomWidth": _ATOM_WIDTH,
            "colours": [[round(255 * part) for part in chain(i)[:3]] for i in range(_COLOURS)],
        }
        end = self.furthest[0].item()
        slider = Slider("amplitude", "amplitude α", "Å", -end, end, end / 100, 0.7 * end)
        shared = ("projection",)
        return moving_figure("breathing", self.name, self.still, self.alt, [slider], model, True, shared)
