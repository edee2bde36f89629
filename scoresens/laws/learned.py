r"""Another diffusion model as a law: `nu` in a perturbation toward what that model has learned.

A model's denoiser is known everywhere, its log-density along a path alone, where it rides beside
the sample: for a curve dx/dtau = u in the canonical frame (1.3),

    (3.2)  d log nu/dtau = (tr J_D - d) / tau + (u - v_nu).s_nu

So a `Learned` law is no measure; at each stage of a path the verbs put in its stead what is `Known`
of it there.

A model's law **smoothed** by h, with every point a bump, is met at level tau as the law itself at
`tau_h = sqrt(tau^2 + h^2)`, and its denoiser is

    (6.5)  D_h(x, tau) = (h^2 x + tau^2 D(x, tau_h)) / tau_h^2

So are a sampler's own model and its density ratios, where the `base` is `Smoothed(h)`.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Array, Float

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens.laws.kernels import check_comparable, level_of, smoothed_mean
from scoresens.laws.measures import Law, Measure, Posterior, bandwidth_or
from scoresens.laws.noises import Gaussian
from scoresens.laws.processes import Process, Scalar, check_gaussian
from scoresens.laws.scores import Score, as_pytree, canonical_denoiser


@register_dataclass
@dataclass(frozen=True)
class Learned(Law):
    """The law of another diffusion model.

    Args:
        process: the process that it was trained on.
        score: `score(t, x)` of one sample in that process's frame.
        sample_shape: shape of one sample.
        prior: the law whose noised log-density its own begins with, as `prior` of
            `sample_ode`; None is its process's prior, which must end at the noise level where the
            path begins.
        bandwidth: h of its smoothing; 0 takes over that of the law it is added to.
    """

    process: Process
    score: Score
    sample_shape: tuple[int, ...] = field(metadata={"static": True})
    prior: Measure | None = None
    bandwidth: Scalar = 0.0

    def __post_init__(self):
        object.__setattr__(self, "score", as_pytree(self.score))
        _checks.non_negative("bandwidth", self.bandwidth)

    @property
    def shape(self):
        return self.sample_shape

    def denoise(self, tau, x):
        level = level_of(self.bandwidth, tau)
        denoised = canonical_denoiser(self.process, self.score, level, x)
        return smoothed_mean(self.bandwidth, tau, x, denoised)

    def bumped_like(self, base):
        check_comparable(base.kernel)
        return replace(self, bandwidth=bandwidth_or(self.bandwidth, base.bandwidth))

    def under(self, process):
        for each in (self.process, process):
            check_gaussian(each, "a Learned law")
        return self


@register_dataclass
@dataclass(frozen=True)
class Known(Measure):
    """What is known of a law at one place and one noise level: a single component."""

    gain: Float[Array, ""]
    mean: Float[Array, "*shape"]

    @property
    def shape(self):
        return self.mean.shape

    def posterior(self, tau, x):
        return Posterior(self.gain, self.mean)


@register_dataclass
@dataclass(frozen=True)
class Smoothed:
    """As a `base`: the model's own law, smoothed by a Gaussian of standard deviation `bandwidth`.

    The black box's better half: density ratios are taken between laws blurred alike, those of
    `base=data` with the model in the data's place. Without data, half the median nearest-neighbour
    distance of the model's own samples (`default_bandwidth`) is a bandwidth to begin with.

    Notes:
        One more network evaluation a stage than `base=None`, at noise level
        `sqrt(tau^2 + bandwidth^2)`, with the trace's products there.
    """

    bandwidth: Scalar

    kernel = Gaussian()  # of what is added to it
    precision = None

    def __post_init__(self):
        _checks.positive("Smoothed.bandwidth", self.bandwidth)


Base = Measure | Smoothed | None  # whose law ratios are taken against; None: the model's own


def check_base(base: Any, kinds: Any = Base) -> None:
    """Refuse a base that is no law, such as bare images.

    Args:
        base: what was given.
        kinds: of bases that are taken, where not all are.
    """
    if not isinstance(base, kinds):
        raise ValueError(f"base must be a measure, such as Points(images), got {type(base)}")
