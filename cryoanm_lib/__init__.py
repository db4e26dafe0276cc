"""Physics-aware inference for cryo-EM: from an elastic network to the posterior of an image's latents.

Data flow from top to bottom, and a module imports from those above it alone:

    errors, settings
    structure_files -> structure -> anm
    rotation, fourier -> projection, ctf -> forward -> likelihood
    distributions, encoders -> rings -> program -> objectives
    unknowns, ragged -> information, templates -> cells -> exact
    predictive, mixture, climb -> search -> refine, amortised -> calibration, referee
    diagnostics -> training -> storage, provenance -> checkpoint
    profile_files, sections -> configuration -> experiment -> assessment -> reference
    transition, landscapes, tables, plots
"""

#: Modules in the order in which data flows.
ORDER = (
    *("errors", "settings", "structure_files", "structure", "anm"),
    *("rotation", "fourier", "projection", "ctf", "forward", "likelihood"),
    *("distributions", "encoders", "rings", "program", "objectives"),
    *("unknowns", "ragged", "information", "templates", "cells", "exact"),
    *("predictive", "mixture", "climb", "search", "refine", "amortised", "calibration", "referee"),
    *("diagnostics", "training", "storage", "provenance", "checkpoint"),
    *("profile_files", "sections", "configuration", "experiment", "assessment", "reference"),
    *("transition", "landscapes", "tables", "plots", "__main__"),
)
