"""Every error that the library raises on purpose, so that a caller can catch them by one name."""


class CryoANMError(ValueError):
    """Base of all errors raised on purpose: each names the value, what was allowed, and the remedy."""


class StructureError(CryoANMError):
    """A structure cannot be read, found, downloaded or used."""


class NetworkModelError(CryoANMError):
    """The elastic network of a structure is not usable: disconnected, or too small for its modes."""


class ForwardModelError(CryoANMError):
    """An image cannot be simulated as asked: box, resolution, shapes or noise."""


class ParticleError(CryoANMError):
    """A table of particles or a stack of images cannot be read, or says too little."""


class ConfigurationError(CryoANMError):
    """A configuration has an unknown key, a wrong type or an impossible value."""


class TrainingError(CryoANMError):
    """Training cannot go on: it diverged."""


class ArtifactError(CryoANMError):
    """A stored checkpoint or result is damaged, or belongs to another configuration."""
