"""Figures that move under the reader's hand: drawn by the browser, with no server and no network."""

from cryoanm_lib.widgets.explorer import Explorer

__all__ = ["Explorer"]
