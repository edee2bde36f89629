"""What a settings file of each command may hold."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from scoresens.cli.functionals import FunctionalSettings
from scoresens.datasets.images import DataSettings
from scoresens.models import ModelSettings
from scoresens.studies.changes import ChangeSettings
from scoresens.studies.halves import HalvesSettings
from scoresens.training.denoising import TrainSettings
from scoresens.training.residual import RegularizedSettings

Trace = Literal["exact", "hutchinson"]
Base = Literal["data", "model"]
Law = Literal["blob", "circles2", "checker"]
STEPS_TO = (0.04, 0.1, 0.2, 0.4, 1.0)  # of a change, where no masses are named
LEVELS = (0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 2.0, 4.0, 10.0, 20.0)  # of noise, where none are named


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
        after: numbers of fine-tuning steps, rising, after which to look as well as at the end.
        repeats: pairs of fine-tunings, on changed and on unchanged data, that are averaged.
        checkpoint, count, seed, steps, bandwidth: as for `sensitivity`; count is at least 8.
        probes: random probes of the black boxes' traces; left out, the trace is exact.
        resamples: of the bootstrap.
    """

    experiment: Literal["finetune"] = "finetune"
    data: DataSettings
    change: ChangeSettings
    finetune: TrainSettings
    after: tuple[int, ...] = ()
    checkpoint: str = "digits"
    count: int = 48
    seed: int = 0
    steps: int = 40
    bandwidth: float | None = None
    probes: int | None = None
    repeats: int = 1
    resamples: int = 2000

    def __post_init__(self):
        _at_least(8, count=self.count)
        _at_least(1, steps=self.steps, repeats=self.repeats, resamples=self.resamples)
        _sensible_bandwidth(self.bandwidth)
        _sensible_probes(self.probes)
        steps = (*self.after, self.finetune.steps)
        if list(steps) != sorted(set(steps)) or steps[0] < 1:
            raise ValueError(
                f"after must rise from 1 or more to below the {self.finetune.steps} steps of "
                f"finetune, got {list(self.after)}"
            )


@dataclass(frozen=True, kw_only=True)
class HalvesRun:
    """Settings of `scoresens validate` with experiment = "halves".

    Args:
        data: the images that models are trained on, but for those held out.
        model, train: as for `train`.
        halves: how many halves, seeds and queries.
        steps: of the sampler, two network evaluations each.
        probes: as for experiment = "finetune".
        resamples: of the bootstrap.
    """

    experiment: Literal["halves"] = "halves"
    data: DataSettings
    model: ModelSettings
    train: TrainSettings
    halves: HalvesSettings = field(default_factory=HalvesSettings)
    steps: int = 40
    probes: int | None = None
    resamples: int = 300

    def __post_init__(self):
        _at_least(1, steps=self.steps, resamples=self.resamples)
        _sensible_probes(self.probes)


@dataclass(frozen=True, kw_only=True)
class RetrainRun:
    """Settings of `scoresens validate` with experiment = "retrain".

    Args:
        data, change: the training data, and what changes in them.
        model, train: as for `train`.
        seeds: trainings on changed and on unchanged data, each pair of one seed.
        count, seed, steps, bandwidth, probes, resamples: as for experiment = "finetune".
    """

    experiment: Literal["retrain"] = "retrain"
    data: DataSettings
    change: ChangeSettings
    model: ModelSettings
    train: TrainSettings
    seeds: int = 3
    count: int = 48
    seed: int = 0
    steps: int = 40
    bandwidth: float | None = None
    probes: int | None = None
    resamples: int = 2000

    def __post_init__(self):
        _at_least(8, count=self.count)
        _at_least(1, steps=self.steps, seeds=self.seeds, resamples=self.resamples)
        _sensible_bandwidth(self.bandwidth)
        _sensible_probes(self.probes)


@dataclass(frozen=True, kw_only=True)
class RemovalRun:
    """Settings of `scoresens validate` with experiment = "removal".

    Args:
        data: the training data.
        model, train: as for `train`.
        queries: samples, each with images of its own left out.
        shares: of the images that are left out, rising.
        seeds: trainings of each.
        levels: noise levels of the loss at a sample.
        seed, steps, bandwidth, resamples: as for experiment = "finetune".
    """

    experiment: Literal["removal"] = "removal"
    data: DataSettings
    model: ModelSettings
    train: TrainSettings
    queries: int = 8
    shares: tuple[float, ...] = (0.005, 0.01, 0.05, 0.1)
    seeds: int = 1
    levels: int = 32
    seed: int = 0
    steps: int = 40
    bandwidth: float | None = None
    resamples: int = 1000

    def __post_init__(self):
        _at_least(2, queries=self.queries)
        _at_least(1, seeds=self.seeds, levels=self.levels, steps=self.steps)
        _at_least(1, resamples=self.resamples)
        _sensible_bandwidth(self.bandwidth)
        if not self.shares or list(self.shares) != sorted(set(self.shares)):
            raise ValueError(f"shares must rise, got {list(self.shares)}")
        if not (self.shares[0] > 0 and self.shares[-1] < 1):
            raise ValueError(f"shares must lie between 0 and 1, got {list(self.shares)}")


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


@dataclass(frozen=True, kw_only=True)
class ConvertRun:
    """Options of `scoresens convert`.

    Args:
        kind: where the model comes from.
        source: a pipeline's folder or its name on the hub; a pickle; or package.module:function.
        size: pixels a side, where a pipeline does not say.
        label: of the class that is conditioned on.
        conditioning: a .npy file with what else the network sees, such as the embedding of a text.
        exported: go through torch also where a network of JAX is at hand.
        trust_pickle: run what the pickle's author wrote.
        scheduler: for torch, a scheduler_config.json that says how the module was trained.
        process, predicts, sees, scale: the same, said here; see `scoresens.importers.Schedule`.
        shape: of one sample, channels last, for torch.
        weights: a safetensors file to fill the torch module with.
    """

    kind: Literal["diffusers", "edm", "torch"]
    source: str
    size: int | None = None
    label: int | None = None
    conditioning: Path | None = None
    exported: bool = False
    trust_pickle: bool = False
    scheduler: Path | None = None
    process: str = "EDM"
    predicts: str = "denoiser"
    sees: str = "noise_level"
    scale: float = 1.0
    shape: tuple[int, ...] = ()
    weights: Path | None = None

    def __post_init__(self):
        if self.kind == "torch" and not self.shape:
            raise ValueError("a torch module needs --shape, of one sample, such as --shape 32 32 3")
        if self.kind == "torch" and ":" not in self.source:
            raise ValueError(
                f"a torch module is named package.module:function, got {self.source!r}"
            )
        if self.shape and min(self.shape) < 1:
            raise ValueError(f"shape must be of numbers of at least 1, got {self.shape}")


@dataclass(frozen=True, kw_only=True)
class DirectionSettings:
    """Directions of a sweep.

    Args:
        classes: whether each class of the data is a direction, toward more of it.
        images: how many of the first images are directions, each toward more of it.
    """

    classes: bool = True
    images: int = 0


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """Settings of `scoresens sweep`.

    Args:
        question: "attribution" (of every image, or the top ones), or "sensitivity" (along the
            directions).
        data: the training data.
        stream: read the data in blocks from a .npy file, a Zarr array or a folder of images, for
            data larger than memory.
        functional, top: of attributions; without top, the scores of all images are kept.
        directions: of sensitivities.
        samples: how many a seed.
        seeds: of the noise, one after another.
        memory: GiB for one block; left out, half of what is free.
        rows, columns: samples and directions a block, instead.
        mesh: devices along samples, and along directions or data points; left out, all along
            samples.
        checkpoint, steps, base, trace, bandwidth: as for `sensitivity`.
    """

    question: Literal["attribution", "sensitivity"] = "attribution"
    data: DataSettings
    stream: bool = False
    functional: FunctionalSettings = field(default_factory=FunctionalSettings)
    top: int | None = None
    directions: DirectionSettings = field(default_factory=DirectionSettings)
    samples: int = 256
    seeds: tuple[int, ...] = (0,)
    memory: float | None = None
    rows: int | None = None
    columns: int | None = None
    mesh: tuple[int, ...] = ()
    checkpoint: str = "digits"
    steps: int = 40
    base: Base = "data"
    trace: Trace = "hutchinson"
    bandwidth: float | None = None

    def __post_init__(self):
        _at_least(1, samples=self.samples, steps=self.steps, seeds=len(self.seeds))
        for name in ("top", "rows", "columns"):
            if getattr(self, name) is not None:
                _at_least(1, **{name: getattr(self, name)})
        _sensible_bandwidth(self.bandwidth)
        if self.memory is not None and not self.memory > 0:
            raise ValueError(f"memory must be more than 0 GiB, got {self.memory}")
        if self.mesh and (len(self.mesh) != 2 or min(self.mesh) < 1):
            raise ValueError(f"mesh is [along samples, along directions], got {list(self.mesh)}")
        if self.stream and self.question != "attribution":
            raise ValueError("stream goes with question = 'attribution'")
        if self.stream and (self.data.classes or self.data.count or self.data.size):
            raise ValueError("stream reads the data as they are: leave out classes, count and size")
        if self.stream and self.functional.kind not in ("itself", "closeness", "pixel"):
            raise ValueError("stream goes with functional kind itself, closeness or pixel")


@dataclass(frozen=True, kw_only=True)
class StatusRun:
    """Options of `scoresens status`.

    Args:
        folder: of a sweep.
    """

    folder: Path


@dataclass(frozen=True, kw_only=True)
class GapRun:
    """Settings of `scoresens gap`.

    Args:
        networks: a folder of networks to look at; left out, networks are trained.
        laws: of the data that networks are trained on.
        weights: of the residual while training, a network each.
        train: how to train; `residual_weight` comes from weights.
        samples: of each induced law.
        seed: of training, noise, Brownian paths, residual points and resamples.
        bins: points along a side of the square on which scores are looked up.
    """

    networks: Path | None = None
    laws: tuple[Law, ...] = ()
    weights: tuple[float, ...] = (0.0, 0.1, 1.0, 10.0)
    train: RegularizedSettings = field(default_factory=RegularizedSettings)
    samples: int = 100_000
    seed: int = 0
    bins: int = 320

    def __post_init__(self):
        if (self.networks is None) != bool(self.laws):
            raise ValueError(
                "name either laws to train networks on, such as laws = ['blob'], or networks, a "
                "folder that holds some"
            )
        _at_least(1, samples=self.samples)
        _at_least(4, bins=self.bins)
        for name, values in (("laws", self.laws), ("weights", self.weights)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must differ, got {list(values)}")
        if not self.weights or not all(0 <= weight < math.inf for weight in self.weights):
            raise ValueError(f"weights must be 0 or greater, got {list(self.weights)}")
        if self.train.residual_weight != RegularizedSettings().residual_weight:
            raise ValueError("train.residual_weight comes from weights: leave it out")


@dataclass(frozen=True, kw_only=True)
class ResidualRun:
    """Settings of `scoresens residual`.

    Args:
        data: what is noised; the data that the checkpoint was trained on.
        checkpoint: "digits", or the path of a model.safetensors.
        levels: noise levels tau, rising.
        count: noised data points a level.
        seed: of their choice, noise and probes.
        trace: exact, or by a random probe a point.
    """

    data: DataSettings = field(default_factory=lambda: DataSettings("digits"))
    checkpoint: str = "digits"
    levels: tuple[float, ...] = LEVELS
    count: int = 32
    seed: int = 0
    trace: Trace = "exact"

    def __post_init__(self):
        _at_least(2, count=self.count)
        if not self.levels or not 0 < self.levels[0] < math.inf:
            raise ValueError(f"levels must be positive, got {list(self.levels)}")
        if list(self.levels) != sorted(set(self.levels)):
            raise ValueError(f"levels must rise, got {list(self.levels)}")


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _sensible_bandwidth(bandwidth: float | None) -> None:
    if bandwidth is not None and not 0 < bandwidth < float("inf"):
        raise ValueError(f"bandwidth must be positive, got {bandwidth}; leave it out for a default")


def _sensible_probes(probes: int | None) -> None:
    if probes is not None and probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}; leave it out for exact traces")
