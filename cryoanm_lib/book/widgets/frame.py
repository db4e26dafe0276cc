"""What all moving figures share: the still, the sliders, the script and the numbers that it works with."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from matplotlib.figure import Figure
from torch import Tensor

_FOLDER = Path(__file__).resolve().parent

# Å and pixels to a tenth of what single precision resolves: a pixel errs by less than 1e-4 of the brightest.
_DIGITS = 6


@dataclass(frozen=True)
class Slider:
    """One number that a reader can move."""

    name: str
    label: str
    unit: str
    low: float
    high: float
    step: float
    value: float

    def html(self, of: str) -> str:
        """A label, the slider, and the number that it stands at, in the figure of that name."""
        id_ = f"{of}-{self.name}"
        bounds = f'min="{self.low:g}" max="{self.high:g}" step="{self.step:g}" value="{self.value:g}"'
        return (
            f'    <label for="{id_}">{self.label}</label>'
            f'<input type="range" id="{id_}" name="{self.name}" data-unit="{self.unit}" {bounds}>'
            f'<output for="{id_}"></output>'
        )


def moving_figure(
    kind: str,
    name: str,
    still: Figure,
    alt: str,
    sliders: Sequence[Slider],
    model: Mapping[str, object],
    turns: bool = False,
    shared: Sequence[str] = (),
) -> str:
    """The HTML of a moving figure: what `<kind>.html` holds, driven by `<kind>.js`.

    The still stands in its place where no script runs, and in print.

    Parameters
    ----------
    kind : str
        Name of the files, and of the object of the script whose `start` is called.
    name : str
        Of the figure on its page.
    still : Figure
        What stands in its place.
    alt : str
        What the still shows, in words.
    sliders : sequence of Slider
        From top to bottom.
    model : mapping
        What the script works with; it must have a form in JSON.
    turns : bool
        The picture can be turned by hand.
    shared : sequence of str
        Scripts that the figure's own uses, by the names of their files.
    """
    picture = io.BytesIO()
    still.savefig(picture, format="png", dpi=100)
    text = {suffix: _text(f"{kind}.{suffix}") for suffix in ("html", "css", "js")}
    controls = "\n".join(slider.html(name) for slider in sliders)
    return Template(_text("frame.html")).substitute(
        kind=kind,
        id=name,
        attributes=' data-turns="true"' if turns else "",
        style=text["css"].rstrip(),
        still=base64.b64encode(picture.getvalue()).decode(),
        alt=escape(alt),
        body=Template(text["html"]).substitute(controls=controls, id=name).rstrip(),
        script="\n".join([*(_text(f"{each}.js") for each in shared), text["js"]]),
        model=json.dumps(model, separators=(",", ":")),
    )


def _text(file: str) -> str:
    return (_FOLDER / file).read_text(encoding="utf-8")


def rounded(table: Tensor, digits: int = _DIGITS) -> list:
    """Numbers of a tensor as nested lists, with as many digits as a script needs."""
    if table.ndim > 1:
        return [rounded(row, digits) for row in table]
    return [round(value, digits) for value in table.tolist()]
