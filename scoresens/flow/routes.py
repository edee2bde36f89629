r"""Ways from noise to a sample: the probability flow, and the reverse SDE."""

from dataclasses import dataclass

from jaxtyping import Array, Key, PRNGKeyArray

from scoresens import _checks
from scoresens._pytrees import register_dataclass


class Route:
    """How noise becomes a sample: `Flow()` or `Diffusion(key)`."""


@register_dataclass
@dataclass(frozen=True)
class Flow(Route):
    """The probability flow (1.1): the sample is a function of its noise alone."""


@register_dataclass
@dataclass(frozen=True)
class Diffusion(Route):
    """The reverse SDE (1.2), along Brownian paths that are held fixed while the data change.

    Args:
        key: of the Brownian paths; sample i uses `fold_in(key, i)`, or its own of a row of keys
            `[M]`.
    """

    key: PRNGKeyArray | Key[Array, " M"]

    def __post_init__(self):
        _checks.key_given("Diffusion", self.key, "the Brownian paths are drawn from it")
