"""A score of a network that was trained elsewhere: how it was trained, the network, and its labels.

    score(t, x) = from_<prediction>(process, (t, x) -> network(clock(t), x, *conditioning))

The conditioning (a class label, the embedding of a text) is part of the pytree, so that another
label is another argument of `jit` and not another program.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens.importers.program import Program
from scoresens.importers.schedules import CLOCKS, OPPOSITE, PRECONDITIONED, PREDICTIONS, Schedule
from scoresens.importers.unet2d import UNet2D
from scoresens.laws.processes import Process, Scalar
from scoresens.laws.scores import Score
from scoresens.models.preconditioning import preconditioned


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
        ValueError: if the network does not return an array of that shape, or does not take this
            conditioning.

    Notes:
        A pytree: the parameters, the process and the conditioning are its leaves.
    """

    schedule: Schedule
    network: Callable
    shape: tuple[int, ...] = field(metadata={"static": True})
    conditioning: tuple[Array, ...] = ()

    def __post_init__(self):
        x = jax.ShapeDtypeStruct(self.shape, jnp.result_type(float))

        def asked(t, x):  # of this conditioning, whose values are known to the network's checks
            return self.network(t, x, *self.conditioning)

        _checks.score_shape(asked, jnp.asarray(0.5), x, "network")

    @property
    def process(self) -> Process:
        """The forward process that the network was trained on."""
        return self.schedule.process

    @property
    def score(self) -> Score:
        """`score(t, x)` in the process's own frame, for one sample: one network evaluation."""
        seen = Partial(_seen, self.schedule, self.network, self.conditioning)
        return PREDICTIONS[self.schedule.prediction](self.process, seen)

    def given(self, *conditioning: ArrayLike) -> "Foreign":
        """The same network under other conditioning, such as a class label or the embedding of a
        text: one array each, without batch axis."""
        return replace(self, conditioning=tuple(jnp.asarray(c) for c in conditioning))


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
        given = _fitting(conditioning, others)
        rest = [jnp.reshape(c, shape) for c, shape in zip(given, others, strict=True)]
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


def _fitting(conditioning, others):
    """The conditioning, if there is as much of it as the program takes."""
    if list(map(jnp.size, conditioning)) != list(map(math.prod, others)):
        expected, got = [list(o[1:]) for o in others], [list(jnp.shape(c)) for c in conditioning]
        raise ValueError(
            f"the network takes conditioning of shapes {expected}, got {got}: one array each, "
            "without batch axis"
        )
    return conditioning


def _seen(schedule, network, conditioning, t, x):
    """What the network predicts, or EDM's D = c_skip x + c_out F(c_noise, c_in x) of it."""
    clock = schedule.scale * jnp.asarray(CLOCKS[schedule.clock](schedule.process, t))
    sign = -1 if schedule.prediction in OPPOSITE else 1

    def predicted(x):
        return sign * network(clock, x, *conditioning)

    if schedule.prediction not in PRECONDITIONED:
        return predicted(x)
    tau = jnp.asarray(schedule.process.noise_level(t), x.dtype)
    return preconditioned(predicted, schedule.sigma_data, tau, x)
