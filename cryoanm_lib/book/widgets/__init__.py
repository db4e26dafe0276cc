"""Figures that move under the reader's hand: drawn by the browser, with no server and no network."""

from cryoanm_lib.book.widgets.breathing import Breathing
from cryoanm_lib.book.widgets.explorer import Explorer
from cryoanm_lib.book.widgets.landscape import Landscape
from cryoanm_lib.book.widgets.microscope import Microscope
from cryoanm_lib.book.widgets.sharpening import Sharpening

__all__ = ["Breathing", "Explorer", "Landscape", "Microscope", "Sharpening"]
