"""Physics-aware inference for cryo-EM: from an elastic network to the posterior of an image's latents."""

#: Packages from the ground up: a module imports from its own package and from those before it alone.
PACKAGES = (
    *("numerics", "io", "molecule", "imaging", "particles", "program"),
    *("checks", "inference", "experiments", "book", "commands"),
)
