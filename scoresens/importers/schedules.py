"""The processes that diffusers' scheduler configurations stand for.

A scheduler's file names how its network was trained: the betas of T steps, or a flow, or a range of
noise levels, and what the network predicts. How it *samples* (its solver, its number of steps, its
spacing) is left out: that is `Solve` here.

    beta_k                          alphas_cumprod_k = prod_{j <= k} (1 - beta_j)
    tau_k = sqrt(1 / alphas_cumprod_k - 1)

References: Ho et al. 2020, arXiv 2006.11239; Nichol & Dhariwal 2021, arXiv 2102.09672 (cosine);
Lin et al. 2023, arXiv 2305.08891 (zero terminal signal-to-noise ratio); Lipman et al. 2022, arXiv
2210.02747 (flow matching); Karras et al. 2022, arXiv 2206.00364 (EDM).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens.laws.processes import EDM, VE, DiscreteVP, FlowMatching, Process, Scalar
from scoresens.laws.scores import Score, from_denoiser, from_noise, from_v, from_velocity
from scoresens.models.preconditioning import noise_condition

DISCRETE = {
    "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler",
    "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler",
    "LMSDiscreteScheduler", "PNDMScheduler", "RePaintScheduler", "SASolverScheduler",
    "TCDScheduler", "UniPCMultistepScheduler",
}  # fmt: skip
FLOWS = {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"}
KARRAS = {"EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"}
EXPLODING = {"ScoreSdeVeScheduler"}
PREDICTIONS: dict[str, Callable[[Process, Any], Score]] = {
    "noise": from_noise, "denoiser": from_denoiser, "v": from_v, "velocity": from_velocity,
    "score": lambda process, network: network, "preconditioned": from_denoiser,
}  # fmt: skip
CLOCKS: dict[str, Callable[[Any, Scalar], Any]] = {
    "step": lambda process, t: process.step(t),
    "time": lambda process, t: t,
    "noise_level": lambda process, t: process.noise_level(t),
    "sigma": lambda process, t: process.sigma(t),
    "log_level": lambda process, t: noise_condition(jnp.asarray(process.noise_level(t))),
}
THEIRS = {"epsilon": "noise", "sample": "denoiser", "v_prediction": "v"}


@register_dataclass
@dataclass(frozen=True)
class Schedule:
    """How a network was trained, and how it is spoken to.

    Args:
        process: the forward process.
        prediction: what the network returns: "noise", "denoiser", "v", "velocity", "score", or
            "preconditioned", the inner network of EDM.
        clock: what it sees for time: "step" (of a `DiscreteVP`), "time", "noise_level" (sigma /
            alpha), "sigma", or "log_level", log(sigma / alpha) / 4.
        scale: a factor on that.
        sigma_data: standard deviation of the data's entries, for "preconditioned".

    Raises:
        ValueError: for another prediction or clock, or a prediction or clock of another process.
    """

    process: Process
    prediction: str = field(metadata={"static": True})
    clock: str = field(metadata={"static": True})
    scale: float = field(default=1.0, metadata={"static": True})
    sigma_data: float = field(default=0.5, metadata={"static": True})

    def __post_init__(self):
        for name, known in (("prediction", PREDICTIONS), ("clock", CLOCKS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Schedule.{name} must be one of {', '.join(known)}, "
                    f"got {getattr(self, name)!r}"
                )
        if self.clock == "step" and not isinstance(self.process, DiscreteVP):
            raise ValueError(
                f"the clock 'step' is of a DiscreteVP, got a {type(self.process).__name__}"
            )
        _checks.positive("Schedule.scale", self.scale)
        _checks.positive("Schedule.sigma_data", self.sigma_data)


def schedule(config: Mapping[str, Any]) -> Schedule:
    """The schedule that a `scheduler_config.json` stands for.

    Args:
        config: the file's content.

    Raises:
        ValueError: for a scheduler, a beta schedule or a prediction type that is not known here, or
            betas that are none.
    """
    name = config.get("_class_name")
    if name in DISCRETE:
        flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
        return _flow(config) if flow else _discrete(config)
    if name in FLOWS:
        return _flow(config)
    if name in KARRAS:
        return _karras(config)
    if name in EXPLODING:
        sigmas = config.get("sigma_min", 0.01), config.get("sigma_max", 1348.0)
        return Schedule(VE(*sigmas), "score", "sigma")
    known = ", ".join(sorted(DISCRETE | FLOWS | KARRAS | EXPLODING))
    raise ValueError(f"the scheduler {name!r} is not known here: known are {known}")


def _discrete(config: Mapping[str, Any]) -> Schedule:
    asked = config.get("prediction_type", "epsilon")
    if asked not in THEIRS:
        raise ValueError(
            f"the prediction type {asked!r} is not known here: known are {', '.join(THEIRS)}"
        )
    kept = np.cumprod(1 - betas(config))
    if config.get("rescale_betas_zero_snr", False):
        kept = _without_end(kept)
    return Schedule(DiscreteVP(np.sqrt(1 / kept - 1)), THEIRS[asked], "step")


def betas(config: Mapping[str, Any]) -> Float[np.ndarray, " T"]:
    """The betas `[T]`, before they are rescaled to end without signal."""
    given = config.get("trained_betas")
    if given is not None:
        found = np.asarray(given, float)
    else:
        count, kind = config.get("num_train_timesteps", 1000), config.get("beta_schedule", "linear")
        low, high = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
        if kind == "linear":
            found = np.linspace(low, high, count)
        elif kind == "scaled_linear":
            found = np.square(np.linspace(low**0.5, high**0.5, count))
        elif kind == "squaredcos_cap_v2":
            found = _cosine(count)
        elif kind == "sigmoid":
            found = low + (high - low) / (1 + np.exp(-np.linspace(-6, 6, count)))
        else:
            known = "linear, scaled_linear, squaredcos_cap_v2, sigmoid, or trained_betas"
            raise ValueError(f"the beta schedule {kind!r} is not known here: known are {known}")
    if found.ndim != 1 or len(found) < 2 or not np.all((found > 0) & (found < 1)):
        raise ValueError(
            f"betas must be a row of at least two numbers between 0 and 1, got shape {found.shape} "
            f"from {found.min():g} to {found.max():g}"
        )
    return found


def _cosine(count: int) -> np.ndarray:
    """Each beta capped at 0.999, of alphas_cumprod = cos^2 with the offset 0.008."""
    times = np.arange(count + 1) / count
    kept = np.square(np.cos((times + 0.008) / 1.008 * np.pi / 2))
    return np.minimum(1 - kept[1:] / kept[:-1], 0.999)


def _without_end(kept: np.ndarray) -> np.ndarray:
    """alphas_cumprod shifted and scaled so that the last step has no signal, and that step left
    out, for its noise-to-signal ratio is infinite."""
    root = np.sqrt(kept)
    return np.square((root - root[-1]) * root[0] / (root[0] - root[-1]))[:-1]


def _flow(config: Mapping[str, Any]) -> Schedule:
    """The straight path: its time is the share of noise, and the network sees it in steps."""
    steps = config.get("num_train_timesteps", 1000)
    return Schedule(FlowMatching(), "velocity", "time", scale=float(steps))


def _karras(config: Mapping[str, Any]) -> Schedule:
    asked = config.get("prediction_type", "epsilon")
    if asked != "epsilon":
        raise ValueError(
            f"the prediction type {asked!r} of {config['_class_name']} is not known here: known is "
            "epsilon, the preconditioning of EDM"
        )
    process = EDM(config.get("sigma_max", 80.0))
    return Schedule(
        process, "preconditioned", "log_level", sigma_data=config.get("sigma_data", 0.5)
    )
