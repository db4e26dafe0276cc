"""Images of a model through a table's own optics, at its own poses, in its own noise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import mrcfile
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from tqdm import tqdm

from cryoanm_lib.analysis.folder import particles_of
from cryoanm_lib.analysis.learn import first_guess
from cryoanm_lib.analysis.learned import Learned
from cryoanm_lib.analysis.microscope import same_microscope
from cryoanm_lib.analysis.molecule import Molecule, molecule_of
from cryoanm_lib.analysis.plan import Plan
from cryoanm_lib.errors import ParticleError
from cryoanm_lib.imaging.contrast_transfer import GIVEN_CTF
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.io.storage import write_atomically
from cryoanm_lib.numerics.fourier import coefficients_to_image
from cryoanm_lib.particles.optics_group import OpticsGroup
from cryoanm_lib.particles.particle_set import ParticleSet
from cryoanm_lib.particles.star import write_star

#: Images at a time.
_IMAGES = 200


@torch.no_grad()
def simulate_stack(
    plan: Plan, path: str | Path, noise_free: bool = False, snr: float | None = None, progress: bool = True
) -> Path:
    """Write images of the molecule at rest for every row of a table, and the table that names them.

    Scale and noise are those of the table's own images, as `learn` begins with them. Where there are none, or
    other noise is wanted, a signal-to-noise ratio says how much, which is then white and the scale that of
    the forward model.

    Parameters
    ----------
    plan : Plan
        Of table and molecule.
    path : str or Path
        The stack; the star file is beside it, under the same name.
    noise_free, snr, progress : bool, float, bool
        Leave the noise out, or say how strong the signal is: variance of pixels for that of the noise; and
        show how far it is.

    Returns
    -------
    Path
        Of the star file.

    Raises
    ------
    ParticleError
        If a file is there already, poses, shifts or defoci are missing, images are not there and no ratio is
        given, boxes differ or are not said, or the table is no star file.
    """
    path, particles, molecule = Path(path), particles_of(plan), molecule_of(plan)
    if particles.source.suffix == ".cs":
        raise ParticleError(f"{plan.particles!r} is no star file to name the images in: give one")
    if snr is not None and not snr > 0:
        raise ParticleError(f"snr = {snr:g} is not usable: it must be greater than 0")
    for there in (path, path.with_suffix(".star")):
        if there.exists():
            raise ParticleError(f"{str(there)!r} is there already: remove it, or choose another name")
    generator = torch.Generator().manual_seed(plan.seed)
    makers, boxes = [], set()
    for rows in same_microscope(particles):
        maker = _maker(particles[rows], molecule, plan, noise_free, snr, generator)
        makers.append((rows, maker[1]))
        boxes.add((maker[0], particles.optics[int(particles.group[rows[0]])].pixel_size))
    if len(boxes) > 1:
        raise ParticleError(
            f"the optics groups have boxes and pixels of {sorted(boxes)}: simulate one of them at a time"
        )
    ((box_size, pixel_size),) = boxes

    def write(beside: Path) -> None:
        shape = (len(particles), box_size, box_size)
        with (
            mrcfile.new_mmap(beside, shape, mrc_mode=2, overwrite=True) as file,
            tqdm(total=len(particles), unit="image", disable=not progress, desc="simulate") as bar,
        ):
            file.set_image_stack()
            file.voxel_size = pixel_size
            stack: Any = file.data
            for rows, made in makers:
                for some in rows.split(_IMAGES):
                    stack[some.numpy()] = made(particles[some]).numpy()
                    bar.update(len(some))

    write_atomically(path, write)
    star = path.with_suffix(".star")
    write_star(particles, star, names=[f"{row + 1:06d}@{path.name}" for row in range(len(particles))])
    return star


def _maker(
    particles: ParticleSet,
    molecule: Molecule,
    plan: Plan,
    noise_free: bool,
    snr: float | None,
    generator: torch.Generator,
) -> tuple[int, Callable[[ParticleSet], Float[Tensor, "images y x"]]]:
    """The box of images of one microscope, and what draws them."""
    optics = particles.optics[int(particles.group[0])]
    learned = None
    if snr is None and not (noise_free and optics.box_size):
        learned = _of_images(particles, molecule, plan, generator)
    box_size = optics.box_size if learned is None else learned.box_size
    if box_size is None:
        raise ParticleError(
            f"{plan.particles!r} does not say how large boxes are: give rlnImageSize by --override"
        )
    forward = _forward(optics, molecule, box_size)
    power = None if noise_free else _noise_power(forward, particles, learned, snr)

    def made(these: ParticleSet) -> Float[Tensor, "images y x"]:
        images = coefficients_to_image(forward.coefficients(_latents(forward, these), box_size), box_size)
        if power is not None:
            images = images + _drawn(power, len(these), box_size, generator)
        images = images if learned is None else learned.scale * images
        # as the table says that they were corrected
        return optics.corrected(images, these.latents()[GIVEN_CTF]) if optics.was_corrected else images

    return box_size, made


def _of_images(particles: ParticleSet, molecule: Molecule, plan: Plan, generator: torch.Generator) -> Learned:
    """Scale and noise of some of the images there are."""
    rows: Int64[Tensor, "rows"] = torch.randperm(len(particles), generator=generator)[: plan.learn_from]
    try:
        read = particles.images(rows.sort().values, plan.skip_bad)
    except ParticleError as error:
        raise ParticleError(f"{error}; without images, say how noisy they are to be (--snr)") from error
    return first_guess(particles[read.rows], read.pixels, molecule, plan)


def _forward(optics: OpticsGroup, molecule: Molecule, box_size: int) -> ForwardModel:
    forward = ForwardModel(
        *(molecule.coordinates.float(), molecule.directions.float(), box_size),
        pixel_size=optics.pixel_size,
        transfer=optics.transfer(varies=()),
        scattering=molecule.scattering,
    )
    forward.check_fit(3)
    return forward


def _latents(forward: ForwardModel, particles: ParticleSet) -> dict[str, Tensor]:
    latents = {name: value.float() for name, value in particles.latents().items()}
    return latents | {"amplitude": torch.zeros(len(particles), forward.n_modes)}


def _noise_power(
    forward: ForwardModel, particles: ParticleSet, learned: Learned | None, snr: float | None
) -> Float64[Tensor, "shells"]:
    """The noise's spectrum in variances of a pixel, as of `RadialNoise`."""
    if learned is not None:
        return learned.power
    some = particles[slice(0, _IMAGES)]
    coefficients = forward.coefficients(_latents(forward, some), forward.box_size)
    clean = coefficients_to_image(coefficients, forward.box_size)
    variance = clean.flatten(1).var(1).mean().double() / cast(float, snr)
    return variance.expand(forward.box_size // 2 + 1)


def _drawn(
    power: Float64[Tensor, "shells"], count: int, box_size: int, generator: torch.Generator
) -> Float[Tensor, "images y x"]:
    """Pixels of noise of a radial spectrum, up to the corners of Fourier space."""
    line = torch.fft.fftfreq(box_size, 1 / box_size)
    radius = torch.hypot(line[:, None], torch.fft.rfftfreq(box_size, 1 / box_size)).clamp(max=len(power) - 1)
    low = radius.floor().long().clamp(max=len(power) - 2)
    deviation = torch.lerp(power[low], power[low + 1], (radius - low).double()).sqrt().float()
    white = torch.randn(count, box_size, box_size, generator=generator)
    return torch.fft.irfft2(deviation * torch.fft.rfft2(white), s=(box_size, box_size))
