"""Posteriors of many particles as they are kept: a file a shard, and all of them side by side."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from cryoanm_lib.checks.predictive import explained_p_value, matched_p_value
from cryoanm_lib.errors import ArtifactError
from cryoanm_lib.imaging.latents import LATENTS
from cryoanm_lib.inference.likelihoods import Likelihoods
from cryoanm_lib.inference.refinement import SUSPICIOUS, RefinedPosterior
from cryoanm_lib.io.storage import flat, grouped, load_tensors, read_shape, save_tensors

#: What there is of each image beside its latents.
_OF_EACH = (
    *("row", "deviation", "covariance", "narrower", "prior"),
    *("noise_scale", "log_evidence", "ess_fraction", "p_value", "matched"),
)


@dataclass(frozen=True, eq=False)
class Answers:
    """Posteriors of particles, in the order of their rows.

    Attributes
    ----------
    row : Int64[Tensor, "images"]
        Of the table.
    mean : dict of str to Float[Tensor, "images ..."]
        Of each latent: the pose a quaternion, the shift in Å.
    deviation : Float[Tensor, "images columns"]
        In the same units, of the pose in radians about each axis.
    covariance, narrower : Float[Tensor, "images modes modes"]
        Of the amplitudes together, in Å²; and as it were if atoms were where the model has them.
    prior : Float[Tensor, "images modes"]
        Deviations of the amplitudes' prior, about 0, that they were found with.
    noise_scale : Float64[Tensor, "images"]
        ν, by which an image is noisier than its microscope's.
    log_evidence, ess_fraction : Float64[Tensor, "images"]
        As of `RefinedPosterior`.
    p_value, matched : Float64[Tensor, "images"]
        `explained_p_value` and `matched_p_value` at a draw from the posterior, uniform if the model is right.
    own : dict of str to Float[Tensor, "images ..."]
        One draw from the posterior of the model as it is, whose atoms are where they are.
    draws : dict of str to Float[Tensor, "images draws ..."]
        From the posterior, if they were asked for.
    """

    row: Int64[Tensor, "images"]
    mean: dict[str, Float[Tensor, "images ..."]]
    deviation: Float[Tensor, "images columns"]
    covariance: Float[Tensor, "images modes modes"]
    narrower: Float[Tensor, "images modes modes"]
    prior: Float[Tensor, "images modes"]
    noise_scale: Float64[Tensor, "images"]
    log_evidence: Float64[Tensor, "images"]
    ess_fraction: Float64[Tensor, "images"]
    p_value: Float64[Tensor, "images"]
    matched: Float64[Tensor, "images"]
    own: dict[str, Float[Tensor, "images ..."]]
    draws: dict[str, Float[Tensor, "images draws ..."]]

    def __len__(self) -> int:
        """Number of particles that were answered."""
        return len(self.row)

    @classmethod
    def of(
        cls,
        posterior: RefinedPosterior,
        wider: RefinedPosterior,
        row: Int64[Tensor, "images"],
        shift: Float64[Tensor, "images 2"],
        draws: int,
        generator: torch.Generator,
    ) -> "Answers":
        """What is kept of the posterior of images that had been moved back by so many pixels.

        Deviations and draws are those of the wider one, in which atoms may be off their places; alarms are
        about the model as it is, and so is the draw that a twin is made of.
        """
        model, pixel_size = posterior.model, posterior.model.forward_model.pixel_size
        own = {name: value[0] for name, value in posterior.sample(1, generator).items()}
        drawn, mean = wider.sample(max(draws, 1), generator), posterior.mean()
        of_draw = (model, posterior.particles, own, posterior.resolution)
        explained, matched = explained_p_value(*of_draw), matched_p_value(*of_draw)
        covariance = wider.covariance()
        deviation = covariance.diagonal(dim1=1, dim2=2).sqrt()
        bends = model.unknowns.of(lambda latent: latent.name == "amplitude")
        width = model.prior.moments("amplitude", model.unknowns.n_modes, deviation)[1]
        in_pixels = torch.tensor([name == "shift" for name in model.unknowns.columns])
        deviation = torch.where(in_pixels, pixel_size * deviation, deviation)
        drawn = {name: value.transpose(0, 1) for name, value in drawn.items()}
        if "shift" in mean:
            mean["shift"] = pixel_size * (mean["shift"] + shift)
            drawn["shift"] = pixel_size * (drawn["shift"] + shift[:, None])
            own["shift"] = pixel_size * (own["shift"] + shift)
        return cls(
            row=row,
            mean={name: value.float() for name, value in mean.items()},
            deviation=deviation.float(),
            covariance=covariance[:, bends][:, :, bends].float(),
            narrower=posterior.covariance()[:, bends][:, :, bends].float(),
            prior=width.float().expand(len(posterior), -1).clone(),
            noise_scale=posterior.particles.noise.unit()[1].expand(len(posterior)).clone(),
            log_evidence=posterior.log_evidence.double(),
            ess_fraction=posterior.ess_fraction.double(),
            p_value=explained.double(),
            matched=matched.double(),
            own={name: value.float() for name, value in own.items()},
            draws={name: value.float() for name, value in drawn.items()},
        )

    def likelihoods(self, *columns: int) -> Likelihoods:
        """What images say of some amplitudes together, or of all, apart from the prior of these.

        Of some it is with all others anywhere that their prior has them.
        """
        columns = columns or tuple(range(self.prior.shape[1]))
        wider, narrower = (
            part[:, columns][:, :, columns].double() for part in (self.covariance, self.narrower)
        )
        mean, prior = self.mean["amplitude"][:, columns].double(), self.prior[:, columns].double()
        return Likelihoods.of_posteriors(mean, narrower, prior, wider)

    def explained(self) -> Bool[Tensor, "images"]:
        """Where the molecule leaves no more of an image than noise would."""
        return self.p_value >= SUSPICIOUS

    def __getitem__(self, which: Tensor) -> "Answers":
        """Those of some particles."""
        return self._of({name: value[which] for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """All that there is, by name."""
        each = {name: getattr(self, name) for name in _OF_EACH}
        return {**each, **flat({"mean": self.mean, "own": self.own, "draws": self.draws})}

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor]) -> "Answers":
        groups = grouped({name: value for name, value in tensors.items() if "." in name})
        # a file has its tensors in the order of their names, and columns are in that of the latents
        mean = {name: groups["mean"][name] for name in LATENTS if name in groups["mean"]}
        each: dict[str, Any] = {name: tensors[name] for name in _OF_EACH}
        return cls(**each, mean=mean, own=groups["own"], draws=groups["draws"])

    def save(self, path: Path, **told: str) -> None:
        """Write a shard."""
        save_tensors(path, self.tensors(), **told)

    @classmethod
    def each(cls, paths: Iterable[Path], draws: bool = False) -> Iterator["Answers"]:
        """Those of a shard after the other; those without a usable image are left out.

        Raises
        ------
        ArtifactError
            If one is missing or damaged, or of a version that kept something else.
        """
        for path in paths:
            tensors, _ = load_tensors(path)
            if not len(tensors["row"]):
                continue  # and there is nothing else
            if lacking := [name for name in _OF_EACH if name not in tensors]:
                raise ArtifactError(
                    f"{path} is of another version and lacks {', '.join(lacking)}: infer into another folder "
                    "(--out)"
                )
            kept = {name: v for name, v in tensors.items() if draws or not name.startswith("draws.")}
            yield cls._of(kept)

    @classmethod
    def load(cls, paths: Iterable[Path], draws: bool = False) -> "Answers":
        """Those of some shards together, in the order of their rows.

        Raises
        ------
        ArtifactError
            As of `each`; or if there is no answer in them.
        """
        paths = list(paths)
        count, start = sum(read_shape(path, "row")[0] for path in paths), 0
        whole: dict[str, Tensor] = {}
        for part in cls.each(paths, draws):  # held once, and not in parts beside the whole
            tensors, stop = part.tensors(), start + len(part)
            for name, value in tensors.items():
                if name not in whole:
                    whole[name] = value.new_empty(count, *value.shape[1:])
                whole[name][start:stop] = value
            start = stop
        if not whole:
            raise ArtifactError("no image of the run was usable: see the reasons in its shards")
        order = whole["row"].argsort()
        for name in whole:
            whole[name] = whole[name][order]
        return cls._of(whole)
