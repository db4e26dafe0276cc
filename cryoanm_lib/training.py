"""Stochastic variational inference, stage by stage in resolution: frequency marching."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pyro
from pyro.infer import ELBO, SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor
from tqdm import tqdm

from cryoanm_lib.diagnostics import residuals
from cryoanm_lib.errors import CryoANMError
from cryoanm_lib.fourier import highest_frequency
from cryoanm_lib.likelihood import cropped_noise
from cryoanm_lib.objectives import ForwardKL, StratifiedELBO
from cryoanm_lib.program import CryoProgram, Particles


class TrainingError(CryoANMError):
    """Training cannot go on."""


@dataclass(frozen=True)
class Stage:
    """One step of frequency marching.

    Attributes
    ----------
    resolution : int
        K at which the likelihood is evaluated.
    steps : int
        Gradient steps, at most.
    learning_rate : float
        At the first step of the stage.
    final_learning_rate : float, optional
        Reached geometrically at step `steps`; constant by default.
    objective : str
        "elbo", or "forward_kl" for the cross-entropy of simulated images.
    settle : float, optional
        Move on once the loss above the noise floor falls by less than this fraction over a window of steps.
    train : tuple of str, optional
        Latents whose networks learn; the others are frozen. All by default.
    """

    resolution: int
    steps: int
    learning_rate: float = 1e-3
    final_learning_rate: float | None = None
    objective: str = "elbo"
    settle: float | None = None
    train: tuple[str, ...] | None = None

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the given step of this stage."""
        final = self.learning_rate if self.final_learning_rate is None else self.final_learning_rate
        return self.learning_rate * (final / self.learning_rate) ** (step / self.steps)


@dataclass
class Progress:
    """Where training stands: everything but tensors that a resumed run needs.

    Attributes
    ----------
    stage, step : int
        The stage, and the next step within it.
    total_steps : int
        Steps done in all stages.
    seconds : float
        Wall time spent training.
    losses : list of float
        Loss of each step of the present stage, for the rule that ends it.
    history : list of dict
        One record for each window: stage, K, steps, loss, mean residuals on the test images.
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
    """Trains the guide of one program through a schedule of stages; stops and resumes at any step."""

    def __init__(
        self,
        program: CryoProgram,
        stages: list[Stage],
        draw_batch: Callable[[int], Particles],
        test: Particles,
        window: int = 100,
        show_progress: bool = True,
    ) -> None:
        """Prepare a run.

        Parameters
        ----------
        program : CryoProgram
            Model and guide.
        stages : list of Stage
            The schedule.
        draw_batch : callable
            Returns the images of the next step, given K.
        test : Particles
            Images that are never trained on, for the residuals of the history.
        window : int
            Steps between two records of the history, and the length over which a stage must settle.
        show_progress : bool
            Show a bar with loss, K and residual.
        """
        self.program, self.stages, self.draw_batch, self.test = program, stages, draw_batch, test
        self.window, self.show_progress = window, show_progress
        self.progress = Progress()
        # Pyro keeps parameters in a global store; a run starts from an empty one.
        pyro.clear_param_store()
        self.optimizer = ClippedAdam({"lr": stages[0].learning_rate})

    def _objective(self) -> ELBO:
        """The loss of this stage: the paper's `Trace_ELBO`, or one of ours."""
        if self.stage.objective == "forward_kl":
            return ForwardKL()
        return StratifiedELBO() if self.program.stratified else Trace_ELBO()

    @property
    def stage(self) -> Stage:
        """The stage in progress."""
        return self.stages[self.progress.stage]

    def _trained(self) -> tuple[str, ...]:
        return self.program.inferred if self.stage.train is None else self.stage.train

    def _guide(self, particles: Particles, resolution: int) -> None:
        """The guide, with those of its networks that learn in this stage made known to the optimiser."""
        for name in self._trained():
            pyro.module(name, self.program.encoders[name])
        self.program.guide(particles, resolution)

    def run(self, after_window: Callable[["Trainer"], None] = lambda trainer: None) -> Progress:
        """Train to the end of the schedule; `after_window` is called where a checkpoint may be written."""
        total = sum(stage.steps for stage in self.stages)
        with tqdm(total=total, disable=not self.show_progress, unit="step", mininterval=1.0) as bar:
            bar.update(self.progress.total_steps)
            while self.progress.stage < len(self.stages):
                self._run_window(bar)
                after_window(self)
        return self.progress

    def _run_window(self, bar: tqdm) -> None:
        """Steps up to the next record, the record, and the next stage if this one has settled."""
        progress, stage, started = self.progress, self.stage, time.perf_counter()
        self._freeze()
        svi = SVI(self.program.model, self._guide, self.optimizer, self._objective())
        first = progress.step
        for step in range(first, min(first + self.window, stage.steps)):
            self._set_learning_rate(stage.learning_rate_at(step))
            progress.losses.append(self._step(svi))
            progress.step += 1
            progress.total_steps += 1
            bar.update()
        progress.seconds += time.perf_counter() - started
        answer = self.program.sample_guide(self.test, stage.resolution)
        progress.history.append(self._record(progress.losses[first:], answer))
        shown = ("resolution", "loss", *(f"{name}_residual" for name in self.program.inferred))
        bar.set_postfix({name: f"{progress.history[-1][name]:.4g}" for name in shown})
        if progress.step >= stage.steps or self._settled():
            bar.total -= stage.steps - progress.step
            progress.snapshots.append(answer)
            progress.stage, progress.step, progress.losses = progress.stage + 1, 0, []

    def _step(self, svi: SVI) -> float:
        """One gradient step; the loss of an average image, in nats above the noise floor."""
        resolution = self.stage.resolution
        particles = self.draw_batch(resolution)
        loss = svi.step(particles, resolution)
        if isinstance(svi.loss, Trace_ELBO):
            loss /= len(particles)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {self.progress.total_steps} (stage {self.progress.stage}, "
                f"K = {resolution}): lower the learning rate of this stage, {self.stage.learning_rate:.2g}"
            )
        return loss if self.stage.objective == "forward_kl" else loss - self.noise_floor(resolution)

    def _settled(self) -> bool:
        """Whether the loss fell by less than `settle` from the last window but one to the last."""
        losses, window = self.progress.losses, self.window
        if self.stage.settle is None or len(losses) < 2 * window:
            return False
        before, after = sum(losses[-2 * window : -window]), sum(losses[-window:])
        return before - after < self.stage.settle * abs(before)

    def noise_floor(self, resolution: int) -> float:
        """Expected minus log-likelihood of an image given its own latents: what noise costs, in nats."""
        dof = (2 * highest_frequency(resolution) + 1) ** 2
        sigma = cropped_noise(self.program.noise, resolution, self.program.forward_model.box_size)
        return 0.5 * dof * (1 + math.log(2 * math.pi * sigma**2))

    def _freeze(self) -> None:
        """Gradients and batch statistics for the networks that learn in this stage, and for no others."""
        for name, encoder in self.program.encoders.items():
            encoder.train(name in self._trained()).requires_grad_(name in self._trained())

    def _set_learning_rate(self, learning_rate: float) -> None:
        """Pyro makes one optimiser for each parameter when it is first seen."""
        self.optimizer.pt_optim_args["lr"] = learning_rate
        for optimizer in self.optimizer.optim_objs.values():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

    def _record(self, losses: list[float], answer: dict[str, Tensor]) -> dict:
        """A line of the history."""
        progress, stage = self.progress, self.stage
        found = residuals(answer, self.test.latents)
        return {
            "stage": progress.stage,
            "resolution": stage.resolution,
            "objective": stage.objective,
            "total_steps": progress.total_steps,
            "seconds": progress.seconds,
            "loss": sum(losses) / len(losses),
            **{f"{name}_residual": values.mean().item() for name, values in found.items()},
        }
