"""The parts of a profile: every key that its file may hold, what it may be, and what it is by default."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from cryoanm_lib.imaging.forward_model import ForwardModel
from cryoanm_lib.imaging.latents import LATENTS, LatentName
from cryoanm_lib.inference.training import Stage
from cryoanm_lib.molecule.anm import DEFAULT_CUTOFF, NormalModes, boltzmann_variances, normal_modes
from cryoanm_lib.molecule.structure import Structure, load_structure
from cryoanm_lib.program.encoders import CHANNELS, Pixels, Representation, SharedEncoder
from cryoanm_lib.program.prior import Prior
from cryoanm_lib.program.program import Guide, Model
from cryoanm_lib.program.rings import REFERENCES, Rings
from cryoanm_lib.settings import Count, Positive, Section

#: The protein of the book, embedded in the library; the expected ranges of metrics are for it.
DEFAULT_STRUCTURE = "adk_open"

Seed = Annotated[int, Field(ge=0, lt=2**32)]
# So bounded that any number of steps may be multiplied by it.
Length = Annotated[float, Field(gt=0, le=1e6)]
# It names a folder.
ExperimentName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
MetricName: TypeAlias = Literal[tuple(latent.metric for latent in LATENTS.values())]  # pyright: ignore[reportInvalidTypeForm]

#: Boltzmann's constant in kcal/(mol K).
BOLTZMANN = 0.0019872041


class PriorSection(Prior):
    """The prior, whose amplitudes may also be those of the network in thermal equilibrium."""

    temperature: Positive | None = Field(None, description="in K: σ_α = √(kT/λ), in place of amplitude_scale")
    spring_constant: Positive = Field(1.0, description="γ in kcal/(mol Å²), with a temperature")

    @property
    def thermal_energy(self) -> float | None:
        """kT in kcal/mol, where there is a temperature."""
        return None if self.temperature is None else BOLTZMANN * self.temperature

    def resolved(self, modes: NormalModes | None) -> Prior:
        """The prior with a number for every mode, given those of a network with γ = 1."""
        settings = self.model_dump(exclude={"temperature", "spring_constant"})
        if self.thermal_energy is not None:
            assert modes is not None, "with a temperature, amplitudes are those of a network's modes"
            variances = boltzmann_variances(self.spring_constant * modes.eigenvalues, self.thermal_energy)
            settings["amplitude_scale"] = tuple(variances.sqrt().tolist())
        return Prior(**settings)


# What is said of an experiment, and does not change its result.
DESCRIPTION = {"title", "task", "recipe", "paper", "paper_says"}


class ModelSection(Section):
    """The forward model, shared by all experiments."""

    modes: Count = Field(1, description="normal modes along which the structure bends")
    cutoff: Positive = Field(DEFAULT_CUTOFF, description="ANM cutoff in Å")
    box_size: Annotated[int, Field(ge=8)] = Field(64, description="N, pixels along an edge of the image")
    pixel_size: Positive = Field(1.0, description="Å per pixel")
    atom_width: Annotated[float, Field(ge=0.1, allow_inf_nan=False)] = Field(
        0.8, description="σ_a of a pseudo-atom, in pixels"
    )
    noise: Positive = Field(0.1, description="σ_n of a pixel")
    projector: Literal["auto", "fourier", "gridded", "separable", "sparse"] = Field(
        "auto", description="how to project; sparse, the paper's, leaves out a hundredth of an atom's peak"
    )

    def forward_model(self, structure: Structure, projector: str | None = None) -> ForwardModel:
        """The forward model of a structure, in float32."""
        modes = self.normal_modes(structure).vectors.float()
        sizes = self.model_dump(include={"box_size", "pixel_size", "atom_width"})
        reference = structure.coordinates.float()
        return ForwardModel(reference, modes, projector=projector or self.projector, **sizes)

    def normal_modes(self, structure: Structure, n_modes: int | None = None) -> NormalModes:
        """The softest modes of a structure, as many as it bends along by default."""
        count, numbers = self.modes if n_modes is None else n_modes, structure.residue_numbers
        return normal_modes(structure.coordinates, count, self.cutoff, residue_numbers=numbers)


class GuideSection(Section):
    """The guide of one experiment."""

    components: Count = Field(2, description="projected normals in the pose's mixture")
    stratified: bool = Field(True, description="sum over the mixture's components instead of sampling one")
    upright: bool = Field(True, description="beside the pose's, networks see the image turned back by it")
    encoder: Literal["rings", "convolutional", "shared"] = Field(
        "rings",
        description="how separate networks see the image; or one convolutional network for all latents",
    )
    image_size: Annotated[int, Field(ge=8, multiple_of=2)] = Field(
        32, description="pixels that the networks see along an edge"
    )
    references: Count = Field(REFERENCES, description="learned references of the pose's network; rings only")
    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        CHANNELS, description="widths of the convolutions, double ones unless shared; not of rings"
    )
    normalised: bool = Field(True, description="normalise groups of channels; convolutional only")
    whole: bool = Field(False, description="networks see the image at its full resolution, whatever K is")
    others: Literal["independent", "learned", "computed"] = Field(
        "computed", description="how the latents beside the pose follow from it; shared only"
    )
    half: bool = Field(False, description="convolve in bfloat16 while training; shared only")

    @model_validator(mode="after")
    def _poolings_fit_the_image(self) -> "GuideSection":
        smallest = 2 ** len(self.channels)
        if self.encoder == "convolutional" and self.image_size % smallest:
            raise ValueError(
                f"image_size = {self.image_size} must be a multiple of {smallest}, since "
                f"{len(self.channels)} poolings halve it"
            )
        return self

    def guide(self, model: Model) -> Guide:
        """The guide of a model, untrained."""
        settings = self.model_dump(include={"components", "stratified", "upright", "whole", "others"})
        return Guide(model, **settings, representation=self.representation())

    def representation(self) -> Representation | SharedEncoder:
        """How the networks see the image, or the one that does."""
        if self.encoder == "rings":
            return Rings(self.image_size, self.references)
        if self.encoder == "shared":
            return SharedEncoder(self.image_size, self.channels, self.half)
        return Pixels(self.image_size, self.channels, self.normalised)


class ExperimentSection(Section):
    """One experiment: which latents are inferred, by which guide, trained how."""

    title: str = Field(description="one line for tables and figures")
    task: ExperimentName | None = Field(None, description="row of the summary; default its own name")
    recipe: Literal["ours", "paper", "between"] = Field("ours", description="whose; its place in that row")
    infer: Annotated[tuple[LatentName, ...], Field(min_length=1)] = Field(
        description="latents inferred; others given"
    )
    model: ModelSection | None = Field(None, description="in place of the profile's model")
    prior: PriorSection | None = Field(None, description="in place of the profile's prior")
    noise: Positive | tuple[Positive, Positive] | None = Field(
        None, description="σ_n in place of the model's; two ends of a range, of which each image has its own"
    )
    test_noise: Positive | None = Field(None, description="σ_n of test images, where training has a range")
    guide: GuideSection = GuideSection()  # pyright: ignore[reportCallIssue] pydantic: all have defaults
    training_images: Count | None = Field(None, description="size of a fixed set; default: new each step")
    batch_size: Count = Field(100, description="images a step")
    window: Count | None = Field(None, description="in place of the profile's window")
    weights: ExperimentName | None = Field(None, description="start from the library's weights of this name")
    stages: tuple[Stage, ...] = Field((), description="the schedule; none only with weights")
    otherwise: tuple[Stage, ...] = Field((), description="the schedule where weights are of other images")
    seed: Seed | None = Field(None, description="in place of the profile's seed")
    more_seeds: tuple[Seed, ...] = Field((), description="run again with these, as <name>_seed_<n>")
    paper: dict[MetricName, Positive] = Field({}, description="values the paper reports, by metric")
    paper_says: str = Field("", description="what the paper reports in words")

    @property
    def every_stage(self) -> dict[str, Stage]:
        """Those of either schedule, by the way to each."""
        schedules = {"stages": self.stages, "otherwise": self.otherwise}
        return {f"{key}[{i}]": stage for key, stages in schedules.items() for i, stage in enumerate(stages)}

    @model_validator(mode="after")
    def _stages_train_what_is_inferred(self) -> "ExperimentSection":
        for key, stage in self.every_stage.items():
            extra = set(stage.train or ()) - set(self.infer)
            if extra:
                raise ValueError(f"{key}.train names {sorted(extra)}, which infer = {self.infer} does not")
        if self.otherwise and self.weights is None:
            raise ValueError("otherwise: without weights there is nothing else than stages: leave it out")
        if len(set(self.infer)) < len(self.infer):
            raise ValueError(f"infer = {self.infer} names a latent twice")
        if not self.stages and self.weights is None:
            raise ValueError("stages: give at least one, or weights that have been trained")
        computed = self.guide.encoder == "shared" and self.guide.others == "computed"
        if self.stages and computed and "pose" not in self.infer:
            raise ValueError(
                f"guide.others = 'computed' leaves nothing to learn of infer = {self.infer}: infer the pose "
                "too, or choose 'learned'"
            )
        for key, stage in self.every_stage.items():
            if computed and stage.train is not None and "pose" not in stage.train:
                raise ValueError(
                    f"{key}.train = {stage.train} has nothing to learn: with guide.others = "
                    "'computed' the pose alone is learned"
                )
        if isinstance(self.noise, tuple) and not self.noise[0] < self.noise[1]:
            raise ValueError(f"noise = {self.noise} is no range: the first end must be the lower one")
        if self.training_images is not None and self.training_images % self.batch_size:
            raise ValueError(
                f"training_images = {self.training_images} is no multiple of batch_size = {self.batch_size}"
            )
        return self


class LengthSection(Section):
    """How long to train, as a factor on the steps of every stage, by recipe."""

    ours: Length = Field(1.0, description="for our recipe")
    paper: Length = Field(1.0, description="for the paper's recipe")
    between: Length = Field(1.0, description="for what lies between them")


class AssessmentSection(Section):
    """A finished experiment refined image by image, and tested beside its guide and the exact posterior."""

    of: ExperimentName = Field(description="the experiment, or a repeat of it")
    title: str = Field(description="one line for tables and figures")
    resolution: Annotated[int, Field(ge=4)] | None = Field(
        None, description="K; default that of the last stage"
    )
    noise: Positive | None = Field(None, description="σ_n of the images; default that of the test images")
    images: Count | None = Field(None, description="the first test images alone")
    exact_images: Annotated[int, Field(ge=0)] | None = Field(
        None, description="in place of the checks'; none for 0"
    )
    guide_images: Count | None = Field(None, description="in place of the checks'")


class CheckSection(Section):
    """How much is spent on the tests of an assessment."""

    draws: Count = Field(199, description="posterior draws an image; 199 make all levels of coverage exact")
    guide_images: Count = Field(200, description="test images, at most, whose guide is tested")
    exact_images: Count = Field(1000, description="test images, at most, whose posterior is computed exactly")


class Defaults(Section):
    """What every run of a profile depends on, where its own section says nothing else."""

    name: str = Field(description="the profile's name, that of its file")
    structure: Annotated[str, Field(min_length=1)] = Field(
        DEFAULT_STRUCTURE, description="embedded name, PDB ID, or path"
    )
    chain: str | None = Field(None, description="author's chain; default the first with Cα")
    residues: str | None = Field(None, description="those of the chain to keep, such as 1-214; default all")
    stride: Count = Field(2, description="every stride-th Cα is a pseudo-atom")
    seed: Seed = Field(1, description="fixes the run")
    deterministic: bool = Field(False, description="train to the same bits each time, also on a GPU; slower")
    test_images: Count = Field(2000, description="images never trained on, for every residual")
    window: Count = Field(100, description="steps between records, and over which a stage settles")
    model: ModelSection = ModelSection()  # pyright: ignore[reportCallIssue] pydantic: all have defaults
    prior: PriorSection = PriorSection()  # pyright: ignore[reportCallIssue] pydantic: all have defaults

    def load_structure(self) -> Structure:
        """The reference structure."""
        return load_structure(self.structure, chain=self.chain, residues=self.residues, stride=self.stride)
