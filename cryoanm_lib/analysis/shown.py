"""What is shown of images: some beside their predictions, and where the model is wrong."""

import torch
from torch import Tensor

from cryoanm_lib.analysis.answers import Answers
from cryoanm_lib.analysis.microscope import Microscope
from cryoanm_lib.analysis.plan import Plan
from cryoanm_lib.checks.difference_map import difference_map
from cryoanm_lib.imaging.contrast_transfer import GIVEN_CTF
from cryoanm_lib.numerics.fourier import coefficients_to_image
from cryoanm_lib.numerics.point_groups import point_group
from cryoanm_lib.particles.particle_set import ParticleSet

#: Images that are shown, and those from which the difference map is made.
_SHOWN, _MAPPED = 6, 1000


@torch.no_grad()
def shown(plan: Plan, particles: ParticleSet, microscope: Microscope, answers: Answers) -> dict[str, Tensor]:
    """Images of one microscope, predictions at the means of their posteriors, and the difference map.

    Returns
    -------
    dict of str to Tensor
        "row" of the images, "images" and "predicted" (images, K, K) at the resolution K of the answers;
        "density" and "error" of the map (z, y, x), with its "pixel_size".
    """
    learned, model = microscope.learned, microscope.model
    here = torch.nonzero(torch.isin(answers.row, microscope.rows))[:_MAPPED, 0]
    read = particles.images(answers.row[here], plan.skip_bad)
    images, shift = learned.prepared(particles[read.rows], read.pixels)
    mean = {name: value[here].double() for name, value in answers.mean.items()}
    if "shift" in mean:
        mean["shift"] = mean["shift"] / learned.optics.pixel_size - shift
    few = slice(0, _SHOWN)
    latents = {GIVEN_CTF: images.given[GIVEN_CTF][few], **{k: v[few].float() for k, v in mean.items()}}
    predicted = model.forward_model.coefficients(latents, learned.resolution)
    found = difference_map(model, images, mean, learned.resolution, point_group(plan.symmetry))
    return {
        "row": answers.row[here][few],
        "images": coefficients_to_image(images.coefficients[few], learned.resolution),
        "predicted": coefficients_to_image(predicted, learned.resolution),
        "density": found.density.float(),
        "error": found.error.float(),
        "pixel_size": torch.tensor(found.pixel_size),
    }
