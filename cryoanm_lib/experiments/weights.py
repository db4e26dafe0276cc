"""Networks that came with the library: trained once, for longer than a reader waits."""

import hashlib
from pathlib import Path

from cryoanm_lib.errors import ArtifactError
from cryoanm_lib.io.storage import load_tensors, read_header, save_tensors
from cryoanm_lib.program.program import Guide


def weights_path(name: str) -> Path:
    """Where they are kept."""
    return Path(__file__).resolve().parents[1] / "data" / f"{name}.safetensors"


def write_weights(guide: Guide, path: Path, **made: str) -> None:
    """Keep a guide's networks in half precision, with what is to be said of how they were made."""
    halved = {
        name: value.half() if value.is_floating_point() else value
        for name, value in guide.encoders.state_dict().items()
    }
    save_tensors(path, halved, **made)


def weights_made(name: str) -> dict[str, str]:
    """What is said of how weights were made; nothing if there are none under this name."""
    path = weights_path(name)
    return read_header(path) if path.is_file() else {}


def weights_hash(name: str) -> str:
    """SHA-256 of the file of weights; nothing if there is none under this name."""
    path = weights_path(name)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def load_weights(guide: Guide, name: str, images: str | None = None) -> dict[str, str]:
    """Put the networks kept under a name into a guide; returns what is said of how they were made.

    Parameters
    ----------
    guide, name : Guide, str
        Whose networks they become, and the experiment that trained them.
    images : str, optional
        What images the guide is for, by `Run.images_hash`.

    Raises
    ------
    ArtifactError
        If there are none, they are not those of such a guide, or they have learned other images.
    """
    path = weights_path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.safetensors"))) or "none"
        raise ArtifactError(f"no weights came with the library under the name {name!r}; there are: {known}")
    tensors, made = load_tensors(path)
    if images is not None and made.get("images") != images:
        raise ArtifactError(
            f"the weights {name!r} have learned images of another molecule, model or prior: train "
            "networks for this one, by stages and no weights"
        )
    like = guide.encoders.state_dict()
    shapes = [{key: tuple(value.shape) for key, value in found.items()} for found in (tensors, like)]
    if shapes[0] != shapes[1]:
        unlike = sorted(key for key in {*tensors, *like} if shapes[0].get(key) != shapes[1].get(key))
        raise ArtifactError(
            f"the weights {name!r} are of other networks, which differ in {', '.join(unlike[:3])}: give the "
            f"guide the settings of the experiment {name!r}"
        )
    if not all(value.isfinite().all() for value in tensors.values()):
        raise ArtifactError(f"{path} holds NaN or infinite values: install the library again")
    guide.encoders.load_state_dict({key: value.to(like[key].dtype) for key, value in tensors.items()})
    return made
