"""Validated configuration: a profile says which structure, which model, and which experiments.

Profiles are YAML files in `config/`. Every key is described here, and a file with an unknown key, a wrong
type or an impossible value is refused by name.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from cryoanm_lib.errors import ConfigurationError, ForwardModelError
from cryoanm_lib.experiments.complaints import explanation, without_json
from cryoanm_lib.experiments.profile_files import ONLY_IN_FILES, PROFILES, config_folder, read_profile
from cryoanm_lib.experiments.run import Assessed, Run
from cryoanm_lib.experiments.schema import (
    AssessmentSection,
    CheckSection,
    Defaults,
    ExperimentName,
    ExperimentSection,
    LengthSection,
)
from cryoanm_lib.experiments.weights import weights_made
from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import LatentName
from cryoanm_lib.molecule.anm import NormalModes
from cryoanm_lib.numerics.fourier import check_resolution


class Profile(Defaults):
    """Everything that a run of the book depends on."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    length: LengthSection = LengthSection()  # pyright: ignore[reportCallIssue] pydantic: all have defaults
    experiments: Annotated[dict[ExperimentName, ExperimentSection], Field(min_length=1)] = Field(
        description="by name"
    )
    assessments: dict[ExperimentName, AssessmentSection] = Field({}, description="by name")
    checks: CheckSection = CheckSection()  # pyright: ignore[reportCallIssue] pydantic: all have defaults

    @model_validator(mode="after")
    def _resolutions_fit_the_box(self) -> "Profile":
        for name, experiment in self.experiments.items():
            sizes = {f"{key}.resolution": stage.resolution for key, stage in experiment.every_stage.items()}
            sizes["guide.image_size"] = experiment.guide.image_size
            box_size = (experiment.model or self.model).box_size
            for key, size in sizes.items():
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
                if latent not in prior.names:
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

    def modes(self, n_modes: int | None = None) -> NormalModes:
        """The softest modes of the reference structure, as many as the model bends along by default."""
        return self.model.normal_modes(self.load_structure(), n_modes)

    def forward_model(self, projector: str | None = None) -> ForwardModel:
        """The forward model, in float32, where an experiment has none of its own."""
        return self.model.forward_model(self.load_structure(), projector)

    def run(self, name: str) -> Run:
        """An experiment, or a repeat of one, with all that it leaves open filled in.

        Raises
        ------
        ConfigurationError
            If there is none of this name.
        """
        if name not in (runs := self.runs):
            raise ConfigurationError(
                f"profile {self.name!r} has no experiment {name!r}; it has {', '.join(runs)}"
            )
        return Run(name, self, runs[name])

    def assessed(self, name: str) -> Assessed:
        """An assessment, with all that it leaves open filled in.

        Raises
        ------
        ConfigurationError
            If there is none of this name.
        """
        if name not in self.assessments:
            raise ConfigurationError(
                f"profile {self.name!r} has no assessment {name!r}; it has {', '.join(self.assessments)}"
            )
        return Assessed.of(name, self.assessments[name], self.run(self.assessments[name].of), self.checks)

    @property
    def runs(self) -> dict[str, ExperimentSection]:
        """The section of every run: the experiments, each followed by its repeats with other seeds."""
        found = {}
        for name, section in self.experiments.items():
            section = self._with_usable_weights(name, section)
            factor = getattr(self.length, section.recipe)
            stages = tuple(stage.lengthened(factor) for stage in section.stages)
            found[name] = section.model_copy(update={"task": section.task or name, "stages": stages})
            for seed in section.more_seeds:
                found[f"{name}_seed_{seed}"] = found[name].model_copy(update={"seed": seed})
        return found

    def _with_usable_weights(self, name: str, section: ExperimentSection) -> ExperimentSection:
        """Weights of images of something else are no use: then the networks learn by the other schedule."""
        made = weights_made(section.weights) if section.weights and section.otherwise else {}
        if not made or made.get("images") == Run(name, self, section).images_hash:
            return section
        return section.model_copy(update={"weights": None, "stages": section.otherwise, "otherwise": ()})


def load_profile(profile: str | Path, structure: str | None = None) -> Profile:
    """Read and check a profile.

    Parameters
    ----------
    profile, structure : str or Path, str, optional
        One of `PROFILES` or the path of a YAML file, and what takes the place of its structure.

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
