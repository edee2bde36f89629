"""What a settings file of each command may hold."""

from dataclasses import dataclass, field
from typing import Literal

from scoresens.changes import ChangeSettings
from scoresens.cli.functionals import FunctionalSettings
from scoresens.datasets import DataSettings
from scoresens.models import ModelSettings
from scoresens.training import TrainSettings

Trace = Literal["exact", "hutchinson"]
Base = Literal["data", "model"]
STEPS_TO = (0.04, 0.1, 0.2, 0.4, 1.0)  # of a change, where no masses are named


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """Settings of `scoresens train`."""

    seed: int = 0
    data: DataSettings
    model: ModelSettings
    train: TrainSettings


@dataclass(frozen=True, kw_only=True)
class SampleRun:
    """Settings of `scoresens sample`.

    Args:
        checkpoint: "digits", or the path of a model.safetensors.
        count: how many samples.
        seed: of the noise.
        sampler: the probability flow, or the reverse SDE.
        steps: of the solver, two network evaluations each.
        log_density: how to take the trace for the samples' log-density; left out, it is not
            computed.
    """

    checkpoint: str = "digits"
    count: int = 64
    seed: int = 0
    sampler: Literal["ode", "sde"] = "ode"
    steps: int = 40
    log_density: Trace | None = None

    def __post_init__(self):
        _at_least(1, count=self.count, steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class SensitivityRun:
    """Settings of `scoresens sensitivity`.

    Args:
        data, change: the training data, and what changes in them.
        checkpoint, count, seed, steps: as for `sample`.
        base: whose law the ratio is taken against: the data's (better, where the data are known)
            or the model's own, smoothed by the bandwidth (black box).
        trace: for base = "model": how its log-density takes the trace.
        bandwidth: of the bump on each data point; left out, `default_bandwidth`.
    """

    data: DataSettings
    change: ChangeSettings
    checkpoint: str = "digits"
    count: int = 32
    seed: int = 0
    steps: int = 40
    base: Base = "data"
    trace: Trace = "exact"
    bandwidth: float | None = None

    def __post_init__(self):
        _at_least(1, count=self.count, steps=self.steps)
        _sensible_bandwidth(self.bandwidth)


@dataclass(frozen=True, kw_only=True)
class CounterfactualRun:
    """Settings of `scoresens counterfactual`.

    Args:
        data, change: the training data, and what changes in them.
        masses: how much of the change, a column of the picture each; left out, five up to
            `change.mass`.
        checkpoint, count, seed, steps, base, trace, bandwidth: as for `sensitivity`.
    """

    data: DataSettings
    change: ChangeSettings
    masses: tuple[float, ...] = ()
    checkpoint: str = "digits"
    count: int = 32
    seed: int = 0
    steps: int = 40
    base: Base = "data"
    trace: Trace = "exact"
    bandwidth: float | None = None

    def __post_init__(self):
        _at_least(1, count=self.count, steps=self.steps)
        _sensible_bandwidth(self.bandwidth)
        if not all(0 < mass <= 1 for mass in self.masses):
            raise ValueError(f"masses must lie in (0, 1], got {list(self.masses)}")
        if list(self.masses) != sorted(set(self.masses)):
            raise ValueError(f"masses must rise, got {list(self.masses)}")

    @property
    def ladder(self) -> tuple[float, ...]:
        """The masses, rising."""
        return self.masses or tuple(float(f"{part * self.change.mass:.3g}") for part in STEPS_TO)


@dataclass(frozen=True, kw_only=True)
class AttributeRun:
    """Settings of `scoresens attribute`.

    Args:
        data: the training data.
        functional: the number of each sample that is attributed.
        top: how many of the most helpful and of the most harmful images to name.
        scores: whether to keep the scores of all images, or of those named alone (nothing of the
            data's size is then kept).
        sampler: along the probability flow, or along the reverse SDE, its Brownian path held.
        checkpoint, count, seed, steps, base, trace, bandwidth: as for `sensitivity`.
    """

    data: DataSettings
    functional: FunctionalSettings = field(default_factory=FunctionalSettings)
    top: int = 10
    scores: Literal["all", "top"] = "all"
    checkpoint: str = "digits"
    count: int = 32
    seed: int = 0
    sampler: Literal["ode", "sde"] = "ode"
    steps: int = 40
    base: Base = "data"
    trace: Trace = "exact"
    bandwidth: float | None = None

    def __post_init__(self):
        _at_least(1, count=self.count, steps=self.steps, top=self.top)
        _sensible_bandwidth(self.bandwidth)


@dataclass(frozen=True, kw_only=True)
class ValidateRun:
    """Settings of `scoresens validate`.

    Args:
        data, change: the training data, and what changes in them.
        finetune: how the checkpoint is fine-tuned.
        repeats: pairs of fine-tunings, on changed and on unchanged data, that are averaged.
        checkpoint, count, seed, steps, bandwidth: as for `sensitivity`; count is at least 8.
        resamples: of the bootstrap.
    """

    data: DataSettings
    change: ChangeSettings
    finetune: TrainSettings
    checkpoint: str = "digits"
    count: int = 48
    seed: int = 0
    steps: int = 40
    bandwidth: float | None = None
    repeats: int = 1
    resamples: int = 2000

    def __post_init__(self):
        _at_least(8, count=self.count)
        _at_least(1, steps=self.steps, repeats=self.repeats, resamples=self.resamples)
        _sensible_bandwidth(self.bandwidth)


@dataclass(frozen=True, kw_only=True)
class DemoRun:
    """Options of `scoresens demo`.

    Args:
        class_name: of the digits to add.
        mass: their additional share of the changed data.
        count: how many samples to show.
        seed: of the noise.
    """

    class_name: str = "3"
    mass: float = 0.2
    count: int = 8
    seed: int = 0

    def __post_init__(self):
        _at_least(1, count=self.count)

    @property
    def change(self) -> ChangeSettings:
        """The change of the data that is asked for."""
        return ChangeSettings(kind="add", classes=(self.class_name,), mass=self.mass)


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _sensible_bandwidth(bandwidth: float | None) -> None:
    if bandwidth is not None and not 0 < bandwidth < float("inf"):
        raise ValueError(f"bandwidth must be positive, got {bandwidth}; leave it out for a default")
