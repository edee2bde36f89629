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

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens.importers.configs import mistyped, unknown_keys
from scoresens.laws.discrete_vp import DiscreteVP
from scoresens.laws.processes import EDM, VE, FlowMatching, Process, Scalar
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
LATENT = {"beta_start": 0.00085, "beta_end": 0.012}
OWN_DEFAULTS: dict[str, dict[str, Any]] = {  # where they are not those of `_Trained`
    "DPMSolverSDEScheduler": LATENT, "HeunDiscreteScheduler": LATENT,
    "KDPM2AncestralDiscreteScheduler": LATENT, "KDPM2DiscreteScheduler": LATENT,
    "LCMScheduler": LATENT | {"beta_schedule": "scaled_linear"},
    "TCDScheduler": LATENT | {"beta_schedule": "scaled_linear"},
    "EDMDPMSolverMultistepScheduler": {"sigma_max": 80.0}, "EDMEulerScheduler": {"sigma_max": 80.0},
    "ScoreSdeVeScheduler": {"sigma_min": 0.01, "sigma_max": 1348.0},
}  # fmt: skip
OF_SAMPLING = {  # keys that change how a pipeline samples, and nothing of how it was trained
    "algorithm_type", "base_image_seq_len", "base_shift", "clip_predicted_image", "clip_sample",
    "clip_sample_range", "correct_steps", "disable_corrector", "dynamic_thresholding_ratio", "eta",
    "euler_at_final", "final_sigmas_type", "flow_shift", "interpolation_type", "lambda_min_clipped",
    "lower_order_final", "max_image_seq_len", "max_shift", "noise_sampler_seed",
    "original_inference_steps", "corrector_order", "predict_x0", "predictor_order", "rho",
    "sample_max_value", "sampling_eps", "set_alpha_to_one", "shift", "shift_terminal",
    "sigma_schedule", "skip_prk_steps", "snr", "solver_order", "solver_p", "solver_type",
    "steps_offset", "stochastic_sampling", "tau_func", "tensor_format", "thresholding",
    "time_shift_type", "timestep_scaling", "timestep_spacing", "timestep_values",
    "use_beta_sigmas", "use_dynamic_shifting", "use_exponential_sigmas", "use_karras_sigmas",
    "use_lu_lambdas", "variance_type",
}  # fmt: skip
PREDICTIONS: dict[str, Callable[[Process, Any], Score]] = {
    "noise": from_noise, "denoiser": from_denoiser, "v": from_v, "velocity": from_velocity,
    "reversed_velocity": from_velocity, "score": lambda process, network: network,
    "preconditioned": from_denoiser, "preconditioned_v": from_denoiser,
}  # fmt: skip
PRECONDITIONED = {"preconditioned", "preconditioned_v"}
OPPOSITE = {"reversed_velocity", "preconditioned_v"}  # the network's output has the other sign
CLOCKS: dict[str, Callable[[Any, Scalar], Any]] = {
    "step": lambda process, t: process.step(t),
    "time": lambda process, t: t,
    "reversed_time": lambda process, t: 1 - t,
    "noise_level": lambda process, t: process.noise_level(t),
    "sigma": lambda process, t: process.sigma(t),
    "log_level": lambda process, t: noise_condition(jnp.asarray(process.noise_level(t))),
}
THEIRS = {"epsilon": "noise", "sample": "denoiser", "v_prediction": "v"}
OF_FLOWS = {"flow_prediction": "velocity", "epsilon": "noise", "sample": "denoiser"}
OF_KARRAS = {"epsilon": "preconditioned", "v_prediction": "preconditioned_v"}
MOST_STEPS = 1_000_000


@register_dataclass
@dataclass(frozen=True)
class Schedule:
    """How a network was trained, and how it is spoken to.

    Args:
        process: the forward process.
        prediction: what the network returns: "noise", "denoiser", "v", "velocity",
            "reversed_velocity" (from noise to data, minus the other), "score", or "preconditioned",
            the inner network F of EDM, D = c_skip x + c_out F; "preconditioned_v" is minus F.
        clock: what it sees for time: "step" (of a `DiscreteVP`), "time", "reversed_time" (1 -
            time), "noise_level" (sigma / alpha), "sigma", or "log_level", log(sigma / alpha) / 4.
        scale: a factor on that.
        sigma_data: standard deviation of the data's entries, for the preconditioned ones.

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


@dataclass(frozen=True)
class _Trained:
    """The keys that say how a network was trained, with the defaults of diffusers."""

    num_train_timesteps: int = 1000
    beta_start: int | float = 1e-4
    beta_end: int | float = 0.02
    beta_schedule: str = "linear"
    trained_betas: list | tuple | np.ndarray | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    predict_epsilon: bool = True
    timestep_type: str = "discrete"
    use_flow_sigmas: bool = False
    invert_sigmas: bool = False
    sigma_min: int | float | None = None
    sigma_max: int | float | None = None
    sigma_data: int | float = 0.5


def schedule(config: Mapping[str, Any]) -> Schedule:
    """The schedule that a `scheduler_config.json` stands for.

    Args:
        config: the file's content. Keys that are absent have the defaults of its scheduler.

    Raises:
        ValueError: for a scheduler, a key, a beta schedule or a prediction type that is not known
            here, values of other types, or betas that are none.
    """
    name, said = _read(config)
    if name in FLOWS or (name in DISCRETE and said.use_flow_sigmas):
        return _flow(name, said)
    if said.prediction_type == "flow_prediction":
        raise ValueError(
            f"the prediction type of {name} is flow_prediction, and use_flow_sigmas is not true: "
            'a flow has both. If the network is one, write "use_flow_sigmas": true'
        )
    for key in ("invert_sigmas", "use_flow_sigmas"):
        if getattr(said, key):
            raise ValueError(f"{key} is true, which is known of flows alone, not of {name}")
    if name in KARRAS:
        return _karras(name, said)
    if name in EXPLODING:
        _one_of(name, "prediction_type", said.prediction_type, ["epsilon"])  # it knows no other
        levels = _level("sigma_min", said.sigma_min), _level("sigma_max", said.sigma_max)
        return Schedule(VE(*levels), "score", "sigma")
    return _discrete(name, said)


def _read(config: Mapping[str, Any]) -> tuple[str, _Trained]:
    """The name of the scheduler, and what the configuration says of the training."""
    if not isinstance(config, Mapping):
        raise ValueError(
            "a schedule is made of the content of a scheduler_config.json, got "
            f"{type(config).__name__}"
        )
    name = config.get("_class_name")
    known = sorted(DISCRETE | FLOWS | KARRAS | EXPLODING)
    if name not in known:
        raise ValueError(f"the scheduler {name!r} is not known here: known are {', '.join(known)}")
    defaults = {entry.name: entry.default for entry in fields(_Trained)}
    defaults |= OWN_DEFAULTS.get(name, {})
    if unknown := unknown_keys(config, defaults.keys() | OF_SAMPLING):
        raise ValueError(
            f"{name} has keys that are not known here: {', '.join(unknown)}. They may say how the "
            "network was trained; those that change its sampling alone may be left out of the file"
        )
    given = {key: config.get(key, default) for key, default in defaults.items()}
    if wrong := next(mistyped(given, _Trained), None):
        raise ValueError(f"the configuration of {name}: {wrong}")
    said = _Trained(**given)
    if not said.predict_epsilon:
        raise ValueError(
            'predict_epsilon is false, an old key: write "prediction_type": "sample" in its place'
        )
    return name, said


def _one_of(name: str, key: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        said = f"the {key.replace('_', ' ')} {value!r} of {name}"
        raise ValueError(f"{said} is not known here: known are {', '.join(known)}")


def _discrete(name: str, said: _Trained) -> Schedule:
    _one_of(name, "prediction_type", said.prediction_type, THEIRS)
    _one_of(name, "timestep_type", said.timestep_type, ["discrete", "continuous"])
    kept = np.cumprod(1 - _betas(said))
    if said.rescale_betas_zero_snr:
        kept = _without_end(kept)
    levels = np.sqrt(1 / kept - 1)
    if said.timestep_type == "continuous" and said.prediction_type == "v_prediction":
        highest = levels[-1] if said.sigma_max is None else said.sigma_max
        return Schedule(EDM(float(highest)), "preconditioned_v", "log_level", sigma_data=1.0)
    return Schedule(DiscreteVP(levels), THEIRS[said.prediction_type], "step")


def _betas(said: _Trained) -> Float[np.ndarray, " T"]:
    """The betas `[T]`, before they are rescaled to end without signal."""
    count, low, high = said.num_train_timesteps, said.beta_start, said.beta_end
    if said.trained_betas is not None:
        found = _numbers("trained_betas", said.trained_betas)
    elif not 2 <= count <= MOST_STEPS:
        raise ValueError(f"num_train_timesteps must be from 2 to {MOST_STEPS}, got {count}")
    elif said.beta_schedule == "linear":
        found = np.linspace(low, high, count)
    elif said.beta_schedule == "scaled_linear":
        found = np.square(np.linspace(max(low, 0) ** 0.5, max(high, 0) ** 0.5, count))
    elif said.beta_schedule == "squaredcos_cap_v2":
        found = _cosine(count)
    elif said.beta_schedule == "sigmoid":
        found = low + (high - low) / (1 + np.exp(-np.linspace(-6, 6, count)))
    else:
        known = "linear, scaled_linear, squaredcos_cap_v2, sigmoid, or trained_betas"
        raise ValueError(
            f"the beta schedule {said.beta_schedule!r} is not known here: known are {known}"
        )
    if found.ndim != 1 or len(found) < 2 or not np.all((found > 0) & (found < 1)):
        raise ValueError(
            "betas must be a row of at least two numbers between 0 and 1, got shape "
            f"{found.shape}" + (f" from {found.min():g} to {found.max():g}" if found.size else "")
        )
    return found


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values, float)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} must be a row of numbers: {error}") from error


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


def _flow(name: str, said: _Trained) -> Schedule:
    """The straight path: its time is the share of noise, and the network sees it in steps; or, with
    inverted sigmas, the share of data, and its velocity is from noise to data."""
    asked, steps = said.prediction_type, float(said.num_train_timesteps)
    if name in FLOWS:  # which know no other prediction than the velocity
        _one_of(name, "prediction_type", asked, ["flow_prediction", "epsilon"])
        asked = "flow_prediction"
    _one_of(name, "prediction_type", asked, OF_FLOWS)
    if not said.invert_sigmas:
        return Schedule(FlowMatching(), OF_FLOWS[asked], "time", scale=steps)
    if asked != "flow_prediction":
        raise ValueError(f"invert_sigmas is known of velocities alone, not of {asked!r}")
    return Schedule(FlowMatching(), "reversed_velocity", "reversed_time", scale=steps)


def _karras(name: str, said: _Trained) -> Schedule:
    _one_of(name, "prediction_type", said.prediction_type, OF_KARRAS)
    prediction = OF_KARRAS[said.prediction_type]
    process = EDM(_level("sigma_max", said.sigma_max))
    return Schedule(process, prediction, "log_level", sigma_data=float(said.sigma_data))


def _level(name: str, value: float | None) -> float:
    if value is None:
        raise ValueError(f"{name} must be a number, got None: leave it out for the default")
    return float(value)
