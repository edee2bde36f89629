"""A score of a network that was trained elsewhere: how it was trained, the network, and its labels.

    score(t, x) = from_<prediction>(process, (t, x) -> network(clock(t), x, *conditioning))

The conditioning (a class label, the embedding of a text) is part of the pytree, so that another
label is another argument of `jit` and not another program.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from scoresens._pytrees import register_dataclass
from scoresens.importers.program import Program
from scoresens.importers.schedules import Schedule
from scoresens.importers.unet2d import UNet2D
from scoresens.laws.processes import Process, Scalar
from scoresens.laws.scores import Score, from_denoiser, from_noise, from_v, from_velocity
from scoresens.models.preconditioning import noise_condition, preconditioned

FROM = {
    "noise": from_noise,
    "denoiser": from_denoiser,
    "v": from_v,
    "velocity": from_velocity,
    "score": lambda process, network: network,
    "preconditioned": from_denoiser,
}


@register_dataclass
@dataclass(frozen=True)
class Foreign:
    """A network that was trained elsewhere, as a score.

    Args:
        schedule: how it was trained, and how it is spoken to.
        network: any callable pytree, `network(time, x, *conditioning) -> [*shape]`, of one sample.
        shape: of one sample.
        conditioning: what else the network sees, without batch axis; see `given`.

    Raises:
        ValueError: if the network does not return an array of that shape.

    Notes:
        A pytree: the parameters, the process and the conditioning are its leaves.
    """

    schedule: Schedule
    network: Callable
    shape: tuple[int, ...] = field(metadata={"static": True})
    conditioning: tuple[Array, ...] = ()

    def __post_init__(self):
        x = jax.ShapeDtypeStruct(self.shape, jnp.result_type(float))
        out = jax.eval_shape(self.network, jnp.asarray(0.5), x, *self.conditioning)
        if out.shape != self.shape:
            raise ValueError(
                f"the network returns {out.shape} for a sample of shape {self.shape}; a network of "
                "learned variance returns twice the channels: keep the first half"
            )

    @property
    def process(self) -> Process:
        """The forward process that the network was trained on."""
        return self.schedule.process

    @property
    def score(self) -> Score:
        """`score(t, x)` in the process's own frame, for one sample: one network evaluation."""
        return FROM[self.schedule.prediction](self.process, self._seen())

    def given(self, *conditioning: ArrayLike) -> "Foreign":
        """The same network under other conditioning, such as a class label or the embedding of a
        text: one array each, without batch axis."""
        return replace(self, conditioning=tuple(jnp.asarray(c) for c in conditioning))

    def _seen(self) -> Score:
        preconditioned = self.schedule.prediction == "preconditioned"
        rule = _preconditioned if preconditioned else _network
        return Partial(rule, self.schedule, self.network, self.conditioning)


@register_dataclass
@dataclass(frozen=True)
class Exported:
    """A `Program` of inputs (x, time, *conditioning), as a network of one sample.

    Args:
        program: as exported at a batch of one.
        channels_last: whether samples are `[*space, C]` here; the program takes `[C, *space]`.
        channels: how many of the channels that the program returns are kept; the others are the
            learned variance.
    """

    program: Program
    channels_last: bool = field(metadata={"static": True})
    channels: int = field(metadata={"static": True})

    def __call__(self, time: Scalar, x: Float[Array, "*shape"], *conditioning: Array) -> Array:
        x_in, time_in, *others = (wanted.shape for wanted in self.program.inputs)
        moved = jnp.moveaxis(x, -1, 0) if self.channels_last else x
        rest = [jnp.reshape(c, shape) for c, shape in zip(conditioning, others, strict=True)]
        time = jnp.reshape(jnp.asarray(time), time_in)
        out = self.program(moved.reshape(x_in), time, *rest)[0]
        if out.shape[0] not in (self.channels, 2 * self.channels):
            raise ValueError(
                f"the network returns {out.shape[0]} channels for samples of {self.channels}: a "
                "score returns as many, or twice as many where it learned its variance"
            )
        out = out[: self.channels]
        return jnp.moveaxis(out, 0, -1) if self.channels_last else out


@register_dataclass
@dataclass(frozen=True)
class Native:
    """A network that is built here from the configuration of another library.

    Args:
        network: `network(time, x, *conditioning)` of one sample, channels last.
        config: the JSON of its configuration.
        channels: as for `Exported`.
    """

    network: UNet2D
    config: str = field(metadata={"static": True})
    channels: int = field(metadata={"static": True})

    def __call__(self, time: Scalar, x: Float[Array, "*shape"], *conditioning: Array) -> Array:
        return self.network(time, x, *conditioning)[..., : self.channels]


# ------------------------------------------------------------------ what the network sees


def _network(schedule, network, conditioning, t, x):
    return network(_clock(schedule, t), x, *conditioning)


def _preconditioned(schedule, network, conditioning, t, x):
    """EDM's D = c_skip x + c_out F(c_noise, c_in x)."""
    tau, seen = schedule.process.noise_level(t), _clock(schedule, t)
    return preconditioned(
        lambda x: network(seen, x, *conditioning), schedule.sigma_data, jnp.asarray(tau, x.dtype), x
    )


def _clock(schedule: Schedule, t: Scalar) -> Any:
    process = schedule.process
    if schedule.clock == "step":
        seen = process.step(t)  # pyright: ignore[reportAttributeAccessIssue]
    elif schedule.clock == "time":
        seen = t
    elif schedule.clock == "sigma":
        seen = process.sigma(t)
    else:
        seen = process.noise_level(t)
        if schedule.clock == "log_level":
            seen = noise_condition(jnp.asarray(seen))
    return schedule.scale * jnp.asarray(seen)
