"""One experiment of a profile, and one assessment, with all that they leave open filled in."""

import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from cryoanm_lib.experiments.schema import (
    DESCRIPTION,
    AssessmentSection,
    CheckSection,
    Defaults,
    ExperimentSection,
    ModelSection,
    PriorSection,
)
from cryoanm_lib.experiments.weights import weights_hash
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.inference.training import Stage
from cryoanm_lib.molecule.structure import structure_file
from cryoanm_lib.program.prior import Prior
from cryoanm_lib.program.program import Guide, Model
from cryoanm_lib.settings import Section

#: To be raised where a default changes, or what networks of the same settings are: hashes leave out what
#: stands at its default, so that a new option voids nothing, and a changed one would void nothing either.
SCHEMA = 2

# Of a profile, what no run depends on, and what it has of its own.
_NOT_OF_A_RUN = set("name structure model seed experiments assessments checks device prior length".split())

# Of an experiment's section, what the run has of its own, and what cannot change its result.
_NOT_OF_A_RESULT = {*DESCRIPTION, "model", "prior", "noise", "seed", "more_seeds", "otherwise", "weights"}


@dataclass(frozen=True)
class Run:
    """All that a fit depends on.

    Attributes
    ----------
    name, profile, section : str, Defaults, ExperimentSection
        Of the experiment or of its repeat, what holds where it says nothing else, and what it says.
    """

    name: str
    profile: Defaults
    section: ExperimentSection

    @property
    def model_section(self) -> ModelSection:
        """Of the forward model."""
        return self.section.model or self.profile.model

    @property
    def prior_section(self) -> PriorSection:
        """Of the prior."""
        return self.section.prior or self.profile.prior

    @property
    def noise(self) -> float | tuple[float, float]:
        """σ_n, or the range from which each image has its own."""
        return self.section.noise or self.model_section.noise

    @property
    def seed(self) -> int:
        """What fixes the run."""
        return self.profile.seed if self.section.seed is None else self.section.seed

    def forward_model(self) -> ForwardModel:
        """The forward model, in float32."""
        return self.model_section.forward_model(self.profile.load_structure())

    def model(self, noise: float | None = None) -> Model:
        """The model; with another noise if one is given."""
        chosen = self.noise if noise is None else noise
        return Model(self.forward_model(), self.prior, chosen, self.section.infer)

    def guide(self, noise: float | None = None) -> Guide:
        """The guide with its model, untrained."""
        return self.section.guide.guide(self.model(noise))

    @property
    def prior(self) -> Prior:
        """Of every latent."""
        thermal = self.prior_section.temperature is not None
        modes = self.model_section.normal_modes(self.profile.load_structure()) if thermal else None
        return self.prior_section.resolved(modes)

    @property
    def stages(self) -> list[Stage]:
        """The schedule."""
        return list(self.section.stages)

    @property
    def last_resolution(self) -> int:
        """K of the last stage; the whole box where nothing is trained."""
        return self.stages[-1].resolution if self.stages else self.model_section.box_size

    @property
    def description(self) -> dict:
        """What tables say of a run: title, task, recipe, and what the paper reports of it.

        A value that the paper reports has the name of its metric with `_paper` appended.
        """
        reported = {f"{key}_paper": value for key, value in self.section.paper.items()}
        return self.section.model_dump(include=DESCRIPTION - {"paper"}) | reported

    @property
    def images_hash(self) -> str:
        """Eight hexadecimal digits that change with what is in an experiment's images, but for the noise."""
        content = {
            **self.profile.model_dump(
                mode="json", include={"chain", "residues", "stride"}, exclude_defaults=True
            ),
            "structure": self._structure_digest(),
            "prior": _content(self.prior_section),
            "model": _content(self.model_section, without={"noise", "projector"}),
        }
        return _digest(content)

    @property
    def config_hash(self) -> str:
        """Eight hexadecimal digits that change with every setting on which a result depends.

        The device is not among them, nor is the code: Snakemake trains again when the library changes.
        """
        # Both are the same to rounding, whichever is fastest.
        auto = self.model_section.projector in ("auto", "fourier")
        content = {
            **_content(self.profile, without=_NOT_OF_A_RUN),
            "structure": self._structure_digest(),
            "prior": _content(self.prior),
            "experiment": _content(self.section, without=_NOT_OF_A_RESULT),
            "model": _content(self.model_section, without={"noise", "projector"} if auto else {"noise"}),
            "noise": self.noise,
            "seed": self.seed,
        }
        if self.section.weights is not None:
            content["weights"] = weights_hash(self.section.weights)[:8]
        return _digest(content)

    @property
    def data_hashes(self) -> dict[str, str]:
        """SHA-256 of what an experiment is given: atoms as read, and networks that it starts from."""
        atoms = self.profile.load_structure().coordinates
        given = {"atoms": hashlib.sha256(atoms.numpy().tobytes()).hexdigest()}
        if self.section.weights is not None:
            given["weights"] = weights_hash(self.section.weights)
        return given

    def _structure_digest(self) -> str:
        """The structure's name, or what its file holds."""
        path = structure_file(self.profile.structure)
        if path is None or not os.path.isfile(path):  # which takes any name, also one that is too long
            return self.profile.structure
        return hashlib.sha256(path.read_bytes()).hexdigest()

    @property
    def path(self) -> Path:
        """Folder of the results, below the results folder."""
        return Path("fits", f"{self.name}-{self.config_hash}")


@dataclass(frozen=True)
class Assessed:
    """All that an assessment depends on.

    Attributes
    ----------
    name, section : str, AssessmentSection
        In the profile, and of what, at which K, on how many images.
    run, checks : Run, CheckSection
        What is assessed, and how much is spent.
    """

    name: str
    section: AssessmentSection
    run: Run
    checks: CheckSection

    @classmethod
    def of(cls, name: str, section: AssessmentSection, run: Run, checks: CheckSection) -> "Assessed":
        """What the section leaves open is the run's, or the checks'."""
        defaults = {
            "resolution": run.last_resolution,
            "exact_images": 0 if run.prior_section.pose == "space" else checks.exact_images,
            "guide_images": checks.guide_images,
            "noise": run.section.test_noise,
        }
        missing = {key: value for key, value in defaults.items() if getattr(section, key) is None}
        return cls(name, section.model_copy(update=missing), run, checks)

    @property
    def description(self) -> dict:
        """What tables say of an assessment."""
        section, task = self.section, self.run.section.task
        return {"title": section.title, "of": section.of, "task": task, "recipe": "refined"}

    @property
    def config_hash(self) -> str:
        """Eight hexadecimal digits that change with every setting on which a result depends."""
        content = _content(self.checks) | _content(self.section, without={"title"})
        return _digest(content | {"fit": self.run.config_hash})

    @property
    def path(self) -> Path:
        """Folder of the results, below the results folder."""
        return Path("assessments", f"{self.name}-{self.config_hash}")


def _content(section: Section, without: Collection[str] = ()) -> dict:
    """What of a section is not at its default."""
    return section.model_dump(mode="json", exclude=set(without), exclude_defaults=True)


def _digest(content: dict) -> str:
    text = json.dumps({"schema": SCHEMA} | content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
