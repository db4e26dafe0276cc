"""Validated configuration: a profile says which structure, which model, and which experiments.

Profiles are YAML files in `config/`. Every key is described here, and a file with an unknown key, a wrong
type or an impossible value is refused by name.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from cryoanm_lib.errors import ConfigurationError, ForwardModelError
from cryoanm_lib.experiments.complaints import explanation, without_json
from cryoanm_lib.experiments.profile_files import ONLY_IN_FILES, PROFILES, config_folder, read_profile
from cryoanm_lib.experiments.schema import (
    DESCRIPTION,
    AssessmentSection,
    CheckSection,
    ExperimentName,
    ExperimentSection,
    LengthSection,
    ModelSection,
    PriorSection,
    Seed,
)
from cryoanm_lib.experiments.weights import weights_hash, weights_made
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.inference.training import Stage
from cryoanm_lib.molecule.anm import NormalModes, normal_modes
from cryoanm_lib.molecule.structure import Structure, load_structure, structure_file
from cryoanm_lib.numerics.fourier import check_resolution
from cryoanm_lib.program.prior import Prior
from cryoanm_lib.program.program import CryoProgram
from cryoanm_lib.settings import Count, LatentName, Section

#: The protein of the book, embedded in the library; the expected ranges of metrics are for it.
DEFAULT_STRUCTURE = "adk_open"

# Settings that no fit depends on, and those that it takes from its own section.
NOT_OF_A_FIT = set("name experiments assessments checks device deterministic prior length".split())


class Profile(Section):
    """Everything that a run of the book depends on."""

    name: str = Field(description="the profile's name, that of its file")
    structure: Annotated[str, Field(min_length=1)] = Field(
        DEFAULT_STRUCTURE, description="embedded name, PDB ID, or path"
    )
    chain: str | None = Field(None, description="author's chain; default the first with Cα")
    stride: Count = Field(2, description="every stride-th Cα is a pseudo-atom")
    seed: Seed = Field(1, description="fixes the run")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    deterministic: bool = Field(
        False,
        description="train by operations that give the same bits each time, also on a GPU; slower",
    )
    test_images: Count = Field(2000, description="images never trained on, for every residual")
    window: Count = Field(100, description="steps between records, and over which a stage settles")
    model: ModelSection = ModelSection()
    prior: PriorSection = PriorSection()
    length: LengthSection = LengthSection()
    experiments: Annotated[dict[ExperimentName, ExperimentSection], Field(min_length=1)] = Field(
        description="by name"
    )
    assessments: dict[ExperimentName, AssessmentSection] = Field({}, description="by name")
    checks: CheckSection = CheckSection()

    @model_validator(mode="after")
    def _resolutions_fit_the_box(self) -> "Profile":
        for name, experiment in self.experiments.items():
            sizes = {
                f"{key}[{i}].resolution": stage.resolution
                for key in ("stages", "otherwise")
                for i, stage in enumerate(getattr(experiment, key))
            }
            box_size = (experiment.model or self.model).box_size
            for key, size in {**sizes, "guide.image_size": experiment.guide.image_size}.items():
                if size > box_size:
                    raise ValueError(
                        f"experiments.{name}.{key} = {size} is larger than model.box_size = {box_size}"
                    )
        return self

    @model_validator(mode="after")
    def _what_is_inferred_can_be(self) -> "Profile":
        for name, experiment in self.experiments.items():
            prior = experiment.prior or self.prior
            for latent in experiment.infer:
                if latent not in prior.latents:
                    raise ValueError(
                        f"experiments.{name}.infer names {latent!r}, which does not vary: give the prior a "
                        f"{latent}_scale above 0"
                    )
            if prior.pose == "space" and "pose" in experiment.infer and experiment.guide.encoder != "shared":
                raise ValueError(
                    f"experiments.{name}.guide.encoder = {experiment.guide.encoder!r} does not infer a pose "
                    "in space: choose 'shared'"
                )
        return self

    @model_validator(mode="after")
    def _runs_are_distinct(self) -> "Profile":
        for name, experiment in self.experiments.items():
            seeds = [self.seed if experiment.seed is None else experiment.seed, *experiment.more_seeds]
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"experiments.{name}.more_seeds repeats a seed: its runs have {seeds}")
            for seed in experiment.more_seeds:
                if (repeat := f"{name}_seed_{seed}") in self.experiments:
                    raise ValueError(f"experiments.{repeat} has the name of a repeat of {name}: rename it")
        return self

    @model_validator(mode="after")
    def _one_experiment_for_each_task_and_recipe(self) -> "Profile":
        solved: dict[tuple[str, str], str] = {}
        infers: dict[str, tuple[LatentName, ...]] = {}
        for name, experiment in self.experiments.items():
            if experiment.recipe == "between":
                continue
            task = experiment.task or name
            if (other := solved.setdefault((task, experiment.recipe), name)) != name:
                raise ValueError(
                    f"experiments.{name} and {other} are both {experiment.recipe!r} of task {task!r}: repeat "
                    "one by more_seeds, or name another task"
                )
            if infers.setdefault(task, experiment.infer) != experiment.infer:
                raise ValueError(f"experiments.{name} infers other latents than its task {task!r}")
        return self

    @model_validator(mode="after")
    def _assessments_are_of_experiments(self) -> "Profile":
        runs = self.runs
        for name, assessment in self.assessments.items():
            if assessment.of not in runs:
                raise ValueError(f"assessments.{name}.of = {assessment.of!r} is none of {', '.join(runs)}")
            if name in runs:
                raise ValueError(f"assessments.{name} has the name of an experiment: rename it")
            if assessment.exact_images and (runs[assessment.of].prior or self.prior).pose == "space":
                raise ValueError(
                    f"assessments.{name}.exact_images = {assessment.exact_images}: no lattice covers poses "
                    "in space: leave it out"
                )
            if (resolution := assessment.resolution) is not None:
                try:
                    own = runs[assessment.of].model or self.model
                    check_resolution(resolution, own.box_size)
                except ForwardModelError as error:
                    raise ValueError(f"assessments.{name}: {error}") from error
        return self

    @property
    def noise(self) -> float:
        """σ_n of a pixel, where an experiment has none of its own."""
        return self.model.noise

    def load_structure(self) -> Structure:
        """The reference structure."""
        return load_structure(self.structure, chain=self.chain, stride=self.stride)

    def modes(self, n_modes: int | None = None, experiment: str | None = None) -> NormalModes:
        """The softest modes of the reference structure, as many as the model bends along by default."""
        model = self.model_of(experiment)
        count = model.modes if n_modes is None else n_modes
        return normal_modes(self.load_structure().coordinates, count, model.cutoff)

    def forward_model(self, projector: str | None = None, experiment: str | None = None) -> ForwardModel:
        """The forward model, in float32; that of an experiment if one is named."""
        model = self.model_of(experiment)
        sizes = model.model_dump(include={"box_size", "pixel_size", "atom_width"})
        reference = self.load_structure().coordinates.float()
        modes = self.modes(experiment=experiment).vectors.float()
        return ForwardModel(reference, modes, projector=projector or model.projector, **sizes)

    def model_of(self, experiment: str | None) -> ModelSection:
        """The model of an experiment, or the profile's."""
        own = None if experiment is None else self.experiment(experiment).model
        return self.model if own is None else own

    def program(self, experiment: str, noise: float | None = None) -> CryoProgram:
        """Model and guide of an experiment, the guide untrained; with another noise if one is given."""
        section = self.experiment(experiment)
        return CryoProgram(
            self.forward_model(experiment=experiment),
            self.prior_of(experiment),
            self.noise_of(experiment) if noise is None else noise,
            section.infer,
            **section.guide.model_dump(include={"components", "stratified", "upright", "others"}),
            representation=section.guide.representation(),
        )

    def stages(self, experiment: str) -> list[Stage]:
        """The schedule of an experiment."""
        return list(self.experiment(experiment).stages)

    def last_resolution(self, experiment: str) -> int:
        """K of the last stage; the whole box where nothing is trained."""
        stages = self.stages(experiment)
        return stages[-1].resolution if stages else self.model_of(experiment).box_size

    @property
    def runs(self) -> dict[str, ExperimentSection]:
        """The section of every run: the experiments, each followed by its repeats with other seeds."""
        found = {}
        for name, section in self.experiments.items():
            section = self._with_usable_weights(section)
            factor = getattr(self.length, section.recipe)
            stages = tuple(stage.lengthened(factor) for stage in section.stages)
            found[name] = section.model_copy(update={"task": section.task or name, "stages": stages})
            for seed in section.more_seeds:
                found[f"{name}_seed_{seed}"] = found[name].model_copy(update={"seed": seed})
        return found

    def _with_usable_weights(self, section: ExperimentSection) -> ExperimentSection:
        """Weights of images of something else are no use: then the networks learn by the other schedule."""
        made = weights_made(section.weights) if section.weights and section.otherwise else {}
        if not made or made.get("images") == self._images_hash(section):
            return section
        return section.model_copy(update={"weights": None, "stages": section.otherwise, "otherwise": ()})

    def images_hash(self, experiment: str) -> str:
        """Eight hexadecimal digits that change with what is in an experiment's images, but for the noise."""
        return self._images_hash(self.experiment(experiment))

    def _images_hash(self, section: ExperimentSection) -> str:
        prior, model = section.prior or self.prior, section.model or self.model
        content = {"structure": self._structure_digest(), "chain": self.chain, "stride": self.stride}
        content["prior"] = prior.model_dump(mode="json")
        content["model"] = model.model_dump(mode="json", exclude={"noise", "projector"})
        return _digest(content)

    def data_hashes(self, experiment: str) -> dict[str, str]:
        """SHA-256 of what an experiment is given: atoms as read, and networks that it starts from."""
        section, atoms = self.experiment(experiment), self.load_structure().coordinates
        given = {"atoms": hashlib.sha256(atoms.numpy().tobytes()).hexdigest()}
        if section.weights is not None:
            given["weights"] = weights_hash(section.weights)
        return given

    def _structure_digest(self) -> str:
        """The structure's name, or what its file holds."""
        path = structure_file(self.structure)
        if path is None or not os.path.isfile(path):  # which takes any name, also one that is too long
            return self.structure
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def experiment(self, name: str) -> ExperimentSection:
        """The section of a run."""
        if name not in (runs := self.runs):
            raise ConfigurationError(
                f"profile {self.name!r} has no experiment {name!r}; it has {', '.join(runs)}"
            )
        return runs[name]

    def description(self, name: str) -> dict:
        """What tables say of a run: title, task, recipe, and what the paper reports of it.

        A value that the paper reports has the name of its metric with `_paper` appended.
        """
        section = self.experiment(name)
        reported = {f"{key}_paper": value for key, value in section.paper.items()}
        return section.model_dump(include=DESCRIPTION - {"paper"}) | reported

    def prior_of(self, experiment: str) -> Prior:
        """The prior of an experiment."""
        own = self.experiment(experiment).prior
        prior = self.prior if own is None else own
        return prior.resolved(None if prior.temperature is None else self.modes(experiment=experiment))

    def noise_of(self, experiment: str) -> float | tuple[float, float]:
        """σ_n of an experiment, or the range from which each image has its own."""
        own = self.experiment(experiment).noise
        return self.model_of(experiment).noise if own is None else own

    def seed_of(self, experiment: str) -> int:
        """The seed that fixes an experiment."""
        own = self.experiment(experiment).seed
        return self.seed if own is None else own

    def config_hash(self, experiment: str) -> str:
        """Eight hexadecimal digits that change with every setting on which an experiment's result depends.

        The device is not among them, nor is the code: Snakemake trains again when the library changes.
        """
        content = self.model_dump(mode="json", exclude=NOT_OF_A_FIT)
        if self.deterministic:
            content["deterministic"] = True
        content["prior"] = self.prior_of(experiment).model_dump(mode="json")
        content["experiment"] = self.experiment(experiment).model_dump(
            mode="json", exclude={*DESCRIPTION, "model", "prior", "noise", "seed", "more_seeds", "otherwise"}
        )
        content["model"] = self.model_of(experiment).model_dump(mode="json")
        content["model"]["noise"] = self.noise_of(experiment)
        if content["model"]["projector"] == "auto":
            content["model"]["projector"] = "fourier"  # the same to rounding, whichever is fastest
        content["seed"] = self.seed_of(experiment)
        content["structure"] = self._structure_digest()
        if (weights := self.experiment(experiment).weights) is not None:
            content["weights"] = weights_hash(weights)[:8]
        return _digest(content)

    def artifact_path(self, experiment: str) -> Path:
        """Folder of an experiment's results, below the results folder."""
        return Path("fits", f"{experiment}-{self.config_hash(experiment)}")

    def assessment(self, name: str) -> AssessmentSection:
        """The section of an assessment, what it leaves open filled in."""
        if name not in self.assessments:
            raise ConfigurationError(
                f"profile {self.name!r} has no assessment {name!r}; it has {', '.join(self.assessments)}"
            )
        section = self.assessments[name]
        in_space = self.prior_of(section.of).pose == "space"
        defaults = {
            "resolution": self.last_resolution(section.of),
            "exact_images": 0 if in_space else self.checks.exact_images,
            "guide_images": self.checks.guide_images,
            "noise": self.experiment(section.of).test_noise,
        }
        return section.model_copy(update={k: v for k, v in defaults.items() if getattr(section, k) is None})

    def assessment_description(self, name: str) -> dict:
        """What tables say of an assessment."""
        section = self.assessment(name)
        task = self.experiment(section.of).task
        return {"title": section.title, "of": section.of, "task": task, "recipe": "refined"}

    def assessment_hash(self, name: str) -> str:
        """Eight hexadecimal digits that change with every setting on which an assessment's result depends."""
        section = self.assessment(name)
        content = self.checks.model_dump() | section.model_dump(exclude={"title"})
        return _digest(content | {"fit": self.config_hash(section.of)})

    def assessment_path(self, name: str) -> Path:
        """Folder of an assessment's results, below the results folder."""
        return Path("assessments", f"{name}-{self.assessment_hash(name)}")


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def load_profile(profile: str | Path, structure: str | None = None) -> Profile:
    """Read and check a profile.

    Parameters
    ----------
    profile : str or Path
        One of `PROFILES`, or the path of a YAML file.
    structure : str, optional
        Takes the place of the profile's own structure.

    Raises
    ------
    ConfigurationError
        Naming the key, its value and what is allowed.
    """
    path = config_folder() / f"{profile}.yaml" if str(profile) in PROFILES else Path(profile)
    if not path.is_file():
        raise ConfigurationError(
            f"profile {str(profile)!r} does not exist: choose from {PROFILES}, or give a path"
        )
    content = {"name": path.stem} | read_profile(path)
    content |= {} if structure is None else {"structure": str(structure)}
    try:
        # JSON and not the dictionary: its lists may become tuples although nothing else is coerced.
        return Profile.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise ConfigurationError(explanation(path.name, error, Profile, ONLY_IN_FILES)) from None
    except ValueError as error:  # an anchor within itself
        raise ConfigurationError(f"{path.name} is no tree of tables: {error}") from None
    except TypeError:
        key, value = next(without_json(content))
        raise ConfigurationError(
            f"{path.name}: {key} = {value!r} is a {type(value).__name__}: use text, numbers, lists and "
            "tables only"
        ) from None
