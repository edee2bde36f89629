"""What the settings of several commands share, and what their words stand for."""

from dataclasses import dataclass
from typing import Any, Literal

import jax

from scoresens import _checks
from scoresens.datasets.images import DataSettings
from scoresens.flow.routes import Diffusion, Flow, Route
from scoresens.flow.traces import Exact, Hutchinson
from scoresens.models import ModelSettings
from scoresens.studies.changes import ChangeSettings
from scoresens.training.denoising import TrainSettings

Base = Literal["data", "model"]
Sampler = Literal["ode", "sde"]
Trace = Literal["exact"] | int


@dataclass(frozen=True, kw_only=True)
class BumpSettings:
    """Of commands that divide by the law of the data.

    Args:
        bandwidth: of the bump on each data point.
        temperature, width, resolution: of their kernel, see `Points`. Where the last two and the
            bandwidth are left out, `calibrate` finds them; where some are, the bandwidth is
            `default_bandwidth`, the width the bandwidth, and the resolution 0.
        spectral_bias: of what is learnt of a change, see `Points`.
    """

    bandwidth: float | None = None
    temperature: float = 1.0
    width: float | None = None
    resolution: float | None = None
    spectral_bias: float = 0.0

    def __post_init__(self):
        for name in ("bandwidth", "width"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(
                    f"{name} must be positive, got {value}; leave it out for a default"
                )
        _checks.positive("temperature", self.temperature)
        _checks.non_negative("resolution", self.resolution or 0.0)
        _checks.non_negative("spectral_bias", self.spectral_bias)

    @property
    def calibrated(self) -> bool:
        """Whether the network is asked for them: a black box, which smooths its own law, is not."""
        left_out = self.bandwidth is None and self.width is None and self.resolution is None
        return left_out and getattr(self, "base", "data") == "data"

    @property
    def kernel(self) -> dict[str, Any]:
        """Those that are named, as options of `Points`."""
        names = ("temperature", "width", "resolution", "spectral_bias")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True, kw_only=True)
class PathSettings(BumpSettings):
    """Of commands that follow samples, beside their data, to the data's end.

    Args:
        data: the training data.
        count: how many samples.
        seed: of the noise.
        steps: of the solver, two network evaluations each.
        trace: how a black box takes the trace: exactly, or by so many random probes.
    """

    data: DataSettings
    count: int = 32
    seed: int = 0
    steps: int = 40
    trace: Trace = "exact"

    def __post_init__(self):
        super().__post_init__()
        at_least(1, count=self.count, steps=self.steps)
        check_trace(self.trace)


@dataclass(frozen=True, kw_only=True)
class ChangeRun(PathSettings):
    """Of commands about a change of the data.

    Args:
        change: what changes in the data.
    """

    change: ChangeSettings

    @property
    def calibrated(self) -> bool:
        """A model that is added has a density, and wants one to compare it with."""
        return super().calibrated and self.change.kind != "model"


@dataclass(frozen=True, kw_only=True)
class ComparisonRun(ChangeRun):
    """Of experiments that compare predicted changes with real ones.

    Args:
        count: at least 8.
        resamples: of the bootstrap.
    """

    count: int = 48
    resamples: int = 2000

    def __post_init__(self):
        at_least(8, count=self.count)
        at_least(1, resamples=self.resamples)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """Of experiments that train models from scratch.

    Args:
        data: the training data.
        model, train: as for `train`.
        steps: of the sampler, two network evaluations each.
    """

    data: DataSettings
    model: ModelSettings
    train: TrainSettings
    steps: int = 40


def route_of(sampler: Sampler, seed: int) -> Route:
    """The way from noise to a sample that a word stands for."""
    if sampler == "ode":
        return Flow()
    return Diffusion(jax.random.fold_in(jax.random.key(seed), 2))


def trace_of(trace: Trace) -> Exact | Hutchinson:
    """The estimator that "exact", or a number of random probes, stands for."""
    return Exact() if trace == "exact" else Hutchinson(trace)


def at_least(least: int, **values: int) -> None:
    """Refuse values below the least."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_trace(trace: Trace | None) -> None:
    """Refuse fewer than one probe."""
    if isinstance(trace, int) and trace < 1:
        raise ValueError(f'trace must be "exact" or at least 1 random probe, got {trace}')
