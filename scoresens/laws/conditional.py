r"""Any noising kernel that a conditional velocity transports.

Let z be a data point (or a pair of them), `K_t(x | z)` any noising kernel and `u_t(x | z)` a
velocity that transports it. The marginal velocity, which flow matching learns, and its derivative
under a change of the data's law with components nu_j are

    (11.1)  v = E[u_t(x | z) | x],    dv = sum_j c_j r_j (v_j - v),    r_j = nu_{j,t} / rho_t
            dx/dt = v,    d log rho_t / dt = -div v

With the **stand-in** `D = x - t v` for a denoiser this is the flow of the canonical frame at noise
level t, (1.1) with (3.1), word for word: `dx/dt = (x - D) / t`, `-div v = (tr J_D - d) / t`, and D
is linear in the law's components as v is. So paths, log-densities along them, sensitivities,
changed laws and attribution are those of every process; what differs is the kernel (`Conditional`)
and that D_j is a function of the place.

A flow states two methods, `log_kernel` and `velocity`. What needs the gradient of log rho_t, or
mixes noise levels of one law (smoothed bases, other models), is refused.

References: Lipman et al. 2022, arXiv 2210.02747; Albergo et al. 2023, arXiv 2303.08797.
"""

import abc
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scoresens._products import Precision, contracted
from scoresens._pytrees import register_dataclass
from scoresens._types import Scalar
from scoresens.laws.kernels import LOG_2PI, Kernel, Resolved
from scoresens.laws.processes import Process

ROOM = 2**22  # numbers of a table of places by points by dimensions


class ConditionalFlow(Process):
    """A process of one's own: how a data point z becomes x by time t.

    Abstract: `t_max`, `log_kernel`, `velocity`, and `draw_prior`, `prior_log_density` where there
    is a prior. Points and places are flat there. The clock of its paths is t; a network of its
    velocity becomes a score by `from_velocity`.
    """

    is_gaussian = False  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    is_scalar = False

    @abc.abstractmethod
    def log_kernel(
        self, t: Scalar, x: Float[Array, " d"], z: Float[Array, " n"], bandwidth: Scalar
    ) -> Float[Array, ""]:
        """log K_t(x | z), nats, of a point z that is a bump of this bandwidth."""

    @abc.abstractmethod
    def velocity(
        self, t: Scalar, x: Float[Array, " d"], z: Float[Array, " n"], bandwidth: Scalar
    ) -> Float[Array, " d"]:
        """u_t(x | z), which transports that kernel."""

    def sample_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of x, of data points of this shape; refuses those of another."""
        return shape

    def check_points(self, points: Any) -> None:
        """Refuses values that no data of this flow have."""

    @property
    def noise(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        raise ValueError(
            f"{type(self).__name__} is no process x = alpha x_0 + sigma n: calibrate, "
            "loss_sensitivity and noised draws are of those"
        )

    def kernel_of(self, kernel, bandwidth, points):
        if isinstance(kernel, Conditional):
            return kernel, bandwidth
        if isinstance(kernel, Resolved):
            raise ValueError(
                f"{type(self).__name__} has kernels of its own, no temperature, width, resolution "
                "or spectral bias: give Points with a bandwidth alone"
            )
        self.sample_shape(points.shape[1:])
        self.check_points(points)
        return Conditional(self, bandwidth), 0.0

    def log_alpha(self, t):
        return jnp.zeros_like(t)

    def sigma(self, t):
        return jnp.asarray(t)

    def variance(self, t):
        return jnp.square(t)

    def time(self, tau):
        return jnp.asarray(tau)


@register_dataclass
@dataclass(frozen=True)
class Conditional(Kernel):
    """The kernel of a `ConditionalFlow`, for points that are bumps of a bandwidth."""

    flow: ConditionalFlow
    bandwidth: Scalar = 0.0

    def spread(self, bandwidth, tau):
        return jnp.square(tau)  # tells `Conditioned` the time

    def evaluate(self, squares, spread, size):
        raise NotImplementedError("the kernel of a conditional flow is no function of distance")

    def gain(self, squares, spread, over, size):
        """Log-kernels are nats already; this makes gains of them."""
        return 0.5 * size * (jnp.log(spread - over) + LOG_2PI) + jnp.zeros_like(squares)

    def sample_shape(self, shape):
        return self.flow.sample_shape(shape)

    def centre(self, shape):
        return jnp.zeros(math.prod(self.sample_shape(shape)))

    def block(self, points, precision):
        return Conditioned(points, self, precision)


@register_dataclass
@dataclass(frozen=True)
class Conditioned:
    """B points of a conditional flow, in the place of `bumps.Bumps`. Places have leading axes R."""

    points: Float[Array, "B n"]
    kernel: Conditional
    precision: Precision = field(metadata={"static": True})

    def log_kernels(self, places: Any) -> Float[Array, "*R B"]:
        """log K_t(x | z) of each place and point."""
        return self._of_rows(lambda t, x, _: self._each(self.kernel.flow.log_kernel, t, x), places)

    def summed(self, terms: Float[Array, "*S B"], places: Any) -> Float[Array, "*S d"]:
        """Sums of the stand-ins D_j times rows of terms, any number at each place."""

        def one(t, x, terms):
            return contracted("...b,bd->...d", terms, self._stand_ins(t, x), self.precision)

        return self._of_rows(one, places, terms)

    def along(self, levers: Float[Array, "*S d"], places: Any) -> Float[Array, "*S B"]:
        """Products of levers, any number at each place, and the stand-ins D_j."""

        def one(t, x, levers):
            return contracted("...d,bd->...b", levers, self._stand_ins(t, x), self.precision)

        return self._of_rows(one, places, levers)

    def means(self, places: Any) -> Float[Array, "B d"]:
        """The stand-ins D_j at one place."""
        return self._stand_ins(jnp.sqrt(places.spread), places.x)

    def _stand_ins(self, t, x):
        return x - t * self._each(self.kernel.flow.velocity, t, x)

    def _each(self, method, t, x):
        return jax.vmap(lambda z: method(t, x, z, self.kernel.bandwidth))(self.points)

    def _of_rows(self, one, places, given=None):
        """`one(t, x, given)` at each place, as many at a time as there is room for."""
        leading = places.spread.shape
        if not leading:
            return one(jnp.sqrt(places.spread), places.x, given)
        rows = jnp.sqrt(places.spread), places.x, given
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(leading) :]), rows)
        most = max(1, ROOM // (len(self.points) * places.x.shape[-1]))
        found = jax.lax.map(lambda row: one(*row), flat, batch_size=min(most, len(flat[0])))
        return found.reshape(*leading, *found.shape[1:])
