"""Physics-aware inference for cryo-EM: from an elastic network to the posterior of an image's latents.

Data flow from top to bottom, and a module imports from those above it alone:

    errors, settings
    structure_files -> structure, sparse_network -> anm
    rotation, fourier, pieces, memory, compiled -> fourier_loops, gridded_loops and their _projection
    spatial_projection, fourier_projection, gridded_projection -> projection
    latents, projection, filtering, ctf, noise -> forward -> likelihood
    antipodal -> distributions -> prior, particles
    encoders -> rings, chain, linearised -> guides -> program -> objectives
    unknowns, ragged -> information, templates -> cells -> exact
    predictive, streams -> mixture, climb -> search, orientation_grid -> orientation_search -> refine
    amortised -> calibration, referee
    diagnostics, divergence -> training -> lock, storage, provenance -> checkpoint, weights
    profile_files, complaints, sections -> configuration -> device, datasets -> experiment
    experiment -> assessment, metrics -> reference
    timing, windows, transition, landscapes, views, costs, tables, plots, widgets
"""

#: Modules in the order in which data flows.
ORDER = (
    *("errors", "settings", "structure_files", "structure", "sparse_network", "anm"),
    *("rotation", "fourier", "pieces", "memory", "compiled", "fourier_loops", "fourier_projection"),
    *("gridded_loops", "gridded_projection", "spatial_projection"),
    *("latents", "projection", "filtering", "ctf", "noise", "forward", "likelihood"),
    *("antipodal", "distributions", "prior", "particles"),
    *("encoders", "rings", "chain", "linearised", "guides", "program", "objectives"),
    *("unknowns", "ragged", "information", "templates", "cells", "exact"),
    *("predictive", "streams", "mixture", "climb"),
    *("search", "orientation_grid", "orientation_search", "refine"),
    *("amortised", "calibration", "referee"),
    *("diagnostics", "divergence", "training", "lock", "storage", "provenance", "checkpoint", "weights"),
    *("profile_files", "complaints", "sections", "configuration", "device", "datasets", "experiment"),
    *("assessment", "metrics", "reference"),
    *("timing", "windows", "transition", "landscapes", "views", "costs", "tables", "plots", "widgets"),
    "__main__",
)
