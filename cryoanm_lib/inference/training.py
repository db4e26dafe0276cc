"""Stochastic variational inference, stage by stage in resolution: frequency marching."""

import contextlib
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pyro
import torch
from pydantic import Field, model_validator
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor
from tqdm import tqdm

from cryoanm_lib.checks.residuals import FLIP_DEGREES, TWO_SIDED_WEIGHT, opposite_weight, residuals
from cryoanm_lib.errors import CryoANMError, TrainingError
from cryoanm_lib.imaging.latents import LatentName
from cryoanm_lib.inference.amortised import draw_from, together
from cryoanm_lib.inference.captured import Captured, overwrite
from cryoanm_lib.inference.clipped_adam import TogetherClippedAdam
from cryoanm_lib.inference.divergence import first_not_finite
from cryoanm_lib.numerics.batching import is_out_of_memory
from cryoanm_lib.numerics.fourier import degrees_of_freedom
from cryoanm_lib.particles.particles import Particles, Simulated
from cryoanm_lib.particles.source import FreshImages, Source
from cryoanm_lib.program.elbo import ForwardKL, SampledELBO, StratifiedELBO
from cryoanm_lib.program.program import Guide
from cryoanm_lib.settings import Count, Positive, Section

#: Images count as explained when the loss is above the noise floor by less than this many nats for each of
#: their independent values: a quarter of a nat is a residual with 1.5 times the variance of the noise.
EXPLAINED = 0.25


class Stage(Section):
    """One stage of the schedule: a step of frequency marching."""

    resolution: Annotated[int, Field(ge=4, multiple_of=2)] = Field(description="K of the likelihood, even")
    steps: Count = Field(description="gradient steps, at most")
    learning_rate: Positive = Field(1e-3, description="at the first step")
    final_learning_rate: Positive | None = Field(None, description="at the last step, reached geometrically")
    objective: Literal["elbo", "forward_kl"] = Field("elbo", description="what is minimised")
    clip_norm: Positive | None = Field(
        None, description="norm to which a longer gradient of all networks together is shortened"
    )
    settle: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="end the stage when the images are explained to 1.5 times the variance of the noise, and "
        "the loss falls by less than this fraction over a window",
    )
    train: Annotated[tuple[LatentName, ...], Field(min_length=1)] | None = Field(
        None, description="latents whose networks learn; default all"
    )

    @model_validator(mode="after")
    def _only_the_elbo_settles(self) -> "Stage":
        if self.settle is not None and self.objective != "elbo":
            raise ValueError(
                "settle compares the loss with the noise floor, which only objective = 'elbo' has"
            )
        return self

    def lengthened(self, factor: float) -> "Stage":
        """The same stage with another number of steps, at least one."""
        return self.model_copy(update={"steps": max(1, round(factor * self.steps))})

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the given step of this stage."""
        final = self.learning_rate if self.final_learning_rate is None else self.final_learning_rate
        return self.learning_rate * (final / self.learning_rate) ** (step / self.steps)


@dataclass
class Progress:
    """Where training stands: all that a resumed run needs beside weights, optimiser and random state.

    Attributes
    ----------
    stage, step : int
        The stage, and the next step within it.
    total_steps : int
        Steps done in all stages.
    seconds : float
        Wall time spent training.
    losses : list of float
        Mean loss of an image at each step of the present stage, for the rule that ends it; for the ELBO in
        nats above the noise floor.
    history : list of dict
        One record for each window: stage, K, steps, loss, mean residuals on the test images, and for the pose
        the share that is flipped, the weight of opposite components, and the share of images that have one.
    snapshots : list of dict of Tensor
        What the guide says of the test images at the end of each stage.
    """

    stage: int = 0
    step: int = 0
    total_steps: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    history: list[dict] = field(default_factory=list)
    snapshots: list[dict[str, Tensor]] = field(default_factory=list)


class Trainer:
    """Trains a guide through a schedule of stages; can stop and resume after any window.

    Parameters
    ----------
    guide : Guide
        With its model.
    stages : list of Stage
        The schedule.
    source : Source
        Draws the images of a step.
    test : Simulated
        Images that are never trained on, for the residuals of the history.
    window : int
        Steps between two records of the history, and the length over which a stage must settle.
    show_progress : bool
        Show a bar with loss, K and residual.
    """

    def __init__(
        self,
        guide: Guide,
        stages: list[Stage],
        source: Source,
        test: Simulated,
        window: int = 100,
        show_progress: bool = True,
    ) -> None:
        self.guide, self.stages, self.source, self.test = guide, stages, source, test
        self.window, self.show_progress = window, show_progress
        self.progress = Progress()
        self.truth = {name: value.cpu() for name, value in test.truth.items()}
        # Pyro's Adam, which is torch's with each number of a gradient kept within ±10.
        self.optimizer = TogetherClippedAdam(guide.encoders.parameters())
        self.device = test.coefficients.device
        self._recorded: tuple[int, Callable[[], float | Tensor]] | None = None

    def _objective(self) -> Trace_ELBO | StratifiedELBO:
        """The loss of this stage: the paper's `Trace_ELBO`, off the CPU its twin, or one of ours."""
        if self.stage.objective == "forward_kl":
            return ForwardKL()
        if self.guide.stratified:
            return StratifiedELBO()
        return SampledELBO() if self._waits else Trace_ELBO()

    @property
    def _waits(self) -> bool:
        """Whether a question to the device where training runs would be waited for."""
        return self.device.type != "cpu"

    @property
    def stage(self) -> Stage:
        """The stage in progress."""
        return self.stages[self.progress.stage]

    def _networks(self) -> tuple[str, ...]:
        """Those that learn in this stage."""
        latents = self.guide.model.inferred if self.stage.train is None else self.stage.train
        return self.guide.family.networks_of(latents)

    def _model(self, particles: Particles, resolution: int) -> None:
        """The model, its log-densities divided by the number of images."""
        with poutine.scale(scale=1.0 / len(particles)):
            self.guide.model.model(particles, resolution)

    def _guide(self, particles: Particles, resolution: int) -> None:
        """The guide, scaled alike."""
        # What is not learned needs no gradient, and where the answer is known, no sample.
        only = self.guide.family.learned if self.stage.objective == "forward_kl" else None
        with poutine.scale(scale=1.0 / len(particles)):
            self.guide.guide(particles, resolution, only)

    def run(self, after_window: Callable[["Trainer"], None] = lambda trainer: None) -> Progress:
        """Train to the end of the schedule; `after_window` is called where a checkpoint may be written."""
        total = sum(stage.steps for stage in self.stages)
        with tqdm(total=total, disable=not self.show_progress, unit="step", mininterval=1.0) as bar:
            bar.update(self.progress.total_steps)
            while self.progress.stage < len(self.stages):
                self._run_window(bar)
                after_window(self)
        if not self.stages and not self.progress.snapshots:
            # Trained weights are asked as they are, at full resolution.
            whole = self.guide.model.forward_model.box_size
            self.progress.snapshots.append(draw_from(self.guide, self.test, whole))
        return self.progress

    def _run_window(self, bar: tqdm) -> None:
        """Steps up to the next record, the record, and the next stage if this one has settled."""
        progress, stage, started = self.progress, self.stage, time.perf_counter()
        first = progress.step
        self.take_steps(min(self.window, stage.steps - first), bar.update)
        progress.seconds += time.perf_counter() - started
        # The last step may have spoilt the weights after its own loss was fine: nothing of it must be kept.
        if not all(weight.isfinite().all() for weight in self.guide.encoders.state_dict().values()):
            raise self._diverged("a step left the networks unusable", self.test[:1])
        try:
            answer = draw_from(self.guide, self.test, stage.resolution)
        except ValueError as error:  # they are finite, and what they say is not
            raise self._diverged(str(error).splitlines()[0], self.test[:1]) from error
        progress.history.append(self._record(progress.losses[first:], answer))
        shown = ("resolution", "loss", *(f"{name}_residual" for name in self.guide.model.inferred))
        bar.set_postfix({name: f"{progress.history[-1][name]:.4g}" for name in shown})
        if progress.step >= stage.steps or self._settled():
            bar.total -= stage.steps - progress.step
            progress.snapshots.append(answer)
            progress.stage, progress.step, progress.losses = progress.stage + 1, 0, []

    def take_steps(self, steps: int, after_step: Callable[[], object] = lambda: None) -> None:
        """Take so many steps of the present stage, whose end is not looked for."""
        self._freeze()
        step, losses = self._recording() if self.device.type == "cuda" else self._step, []
        for _ in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = self.stage.learning_rate_at(self.progress.step)
            losses.append(step())
            self.progress.step += 1
            self.progress.total_steps += 1
            after_step()
        if self._waits and losses:  # once, when all of them are due
            losses = torch.stack(losses).tolist()
        self.progress.losses += self._recorded_losses(losses)

    def _recording(self) -> Callable[[], float | Tensor]:
        """A step of this stage as a CUDA graph, recorded at its first; as ever where that is impossible."""
        stage = self.progress.stage
        if self._recorded is None or self._recorded[0] != stage:
            self._recorded = None  # makes room
            try:
                self._recorded = stage, self._record_step()
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                warnings.warn(f"stage {stage} cannot be recorded as a CUDA graph: {reason}", stacklevel=2)
                self.optimizer.zero_grad()
                self._recorded = stage, self._step
        return self._recorded[1]

    def _record_step(self) -> Callable[[], Tensor]:
        """A step whose images, loss and gradients are replayed from a recording."""
        resolution = self.stage.resolution
        # New images are drawn inside the recording, kept ones are put where it reads them.
        kept = None if isinstance(self.source, FreshImages) else self._images()
        if kept is not None and kept.noise[:1] is not kept.noise:
            raise RuntimeError("each kept image has a noise of its own, which a recording would not follow")

        def compute() -> Tensor:
            return self._leave_gradients(self._images() if kept is None else kept, resolution)

        # A check of arguments is a question to the device: without recording they are checked.
        with pyro.validation_enabled(False):
            recorded = Captured(compute, self._parameters())

        def step() -> Tensor:
            if kept is not None:
                overwrite(kept, self._images())
            loss = recorded()
            self._shorten_gradients()
            self.optimizer.step()
            return loss

        return step

    def _images(self) -> Particles:
        """The images of this step."""
        resolution = self.stage.resolution
        kept = max(resolution, self.guide.resolution_seen(resolution))
        return self.source(kept, self.progress.total_steps)

    def _step(self) -> float | Tensor:
        """One gradient step; the mean loss of an image before it."""
        # Checks of arguments are questions: off the CPU the first step of a stage asks them for all.
        unasked = self._waits and self.progress.step
        with pyro.validation_enabled(False) if unasked else contextlib.nullcontext():
            return self._guarded_step()

    def _guarded_step(self) -> float | Tensor:
        """The same; what goes wrong is said with the step and the remedy."""
        resolution, particles = self.stage.resolution, self._images()
        try:
            loss = self._descend(particles, resolution)
        except CryoANMError:
            raise
        except ValueError as error:  # Pyro refuses the parameters of a distribution
            raise self._diverged(str(error).splitlines()[0], particles) from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            size = min(len(particles), self._at_a_time(particles))
            raise TrainingError(
                f"{size} images of a step at K = {resolution} do not fit into memory: lower the guide's "
                f"channels or image_size, or the experiment's batch_size to {max(1, size // 2)}"
            ) from error
        if self._waits:
            return loss
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss.item()}", particles)
        return loss.item()

    def _descend(self, particles: Particles, resolution: int) -> Tensor:
        """Move the networks by one gradient, and say what the loss was before.

        One image of which the guide is sure, and wrong, has a gradient that is large beyond measure: as a
        whole, and shortened, it does no harm.
        """
        loss = self._leave_gradients(particles, resolution)
        self._shorten_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def _leave_gradients(self, particles: Particles, resolution: int) -> Tensor:
        """The loss, its gradients left with the networks, of one part of the images after another."""
        objective, count, at_a_time = self._objective(), len(particles), self._at_a_time(particles)
        total = torch.zeros((), device=self.device)
        for start in range(0, count, at_a_time):
            part = particles[start : start + at_a_time]
            mean = objective.differentiable_loss(self._model, self._guide, part, resolution)
            share = mean * (len(part) / count)
            share.backward()
            total = total + share.detach()
        return total

    def _at_a_time(self, particles: Particles) -> int:
        """How many of them networks look at together; off the CPU all."""
        return len(particles) if self._waits else together(self.guide, self.device)

    def _shorten_gradients(self) -> None:
        """Shorten those of all networks together to the norm of this stage."""
        if self.stage.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters(), self.stage.clip_norm)

    def _parameters(self) -> list[torch.nn.Parameter]:
        """Weights of the networks that learn in this stage."""
        networks = [self.guide.encoders[name] for name in self._networks()]
        return [parameter for network in networks for parameter in network.parameters()]

    def _recorded_losses(self, losses: list[float]) -> list[float]:
        """Losses as they are kept: for the ELBO in nats above the noise floor."""
        for number, loss in enumerate(losses):
            if not math.isfinite(loss):
                step = self.progress.total_steps - len(losses) + number
                raise self._diverged(f"the loss of step {step} is {loss}", self.test[:1])
        compared = self.stage.objective == "elbo"
        floor = self.noise_floor(self.stage.resolution) if compared else 0.0
        return [loss - floor for loss in losses]

    def _diverged(self, what: str, particles: Particles) -> TrainingError:
        bad = first_not_finite(self.guide, particles, self.stage.resolution)
        where = "all tensors are finite" if bad is None else f"the first tensor that is not finite: {bad}"
        return TrainingError(
            f"training diverged at step {self.progress.total_steps} (stage {self.progress.stage}, "
            f"K = {self.stage.resolution}): {what}; {where}: lower the learning rate of this stage, "
            f"{self.stage.learning_rate:.2g}"
        )

    def _settled(self) -> bool:
        """Whether the images are explained, and the loss has stopped falling from one window to the next.

        A network that has found no pose also stops falling: a plateau at a high loss is not the end of a
        stage but the place where it must go on.
        """
        losses, window = self.progress.losses, self.window
        if self.stage.settle is None or len(losses) < 2 * window:
            return False
        before, after = sum(losses[-2 * window : -window]) / window, sum(losses[-window:]) / window
        explained = after < EXPLAINED * degrees_of_freedom(self.stage.resolution)
        return explained and before - after < self.stage.settle * before

    def noise_floor(self, resolution: int) -> float:
        """Expected minus log-likelihood of an image given its own latents: what noise costs, in nats."""
        constant = self.guide.model.noise.log_normaliser(resolution).item()
        return 0.5 * degrees_of_freedom(resolution) + constant

    def _freeze(self) -> None:
        """Gradients and batch statistics for the networks that learn in this stage, and for no others."""
        for name, encoder in self.guide.encoders.items():
            encoder.train(name in self._networks()).requires_grad_(name in self._networks())

    def _record(self, losses: list[float], answer: dict[str, Tensor]) -> dict:
        """A line of the history."""
        progress, stage = self.progress, self.stage
        found = residuals(answer, self.truth, self.guide.model.prior.latents)
        sides = {}
        if "pose" in found:
            opposite = opposite_weight(answer)
            sides = {
                "pose_flipped_fraction": (found["pose"] > FLIP_DEGREES).double().mean().item(),
                "pose_opposite_weight": opposite.mean().item(),
                "pose_two_sided_fraction": (opposite >= TWO_SIDED_WEIGHT).double().mean().item(),
            }
        return {
            "stage": progress.stage,
            "resolution": stage.resolution,
            "objective": stage.objective,
            "total_steps": progress.total_steps,
            "seconds": progress.seconds,
            "loss": sum(losses) / len(losses),
            **{f"{name}_residual": values.mean().item() for name, values in found.items()},
            **sides,
        }
