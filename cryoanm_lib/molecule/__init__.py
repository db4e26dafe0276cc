"""From a structure file to pseudo-atoms, and the modes along which they bend."""
