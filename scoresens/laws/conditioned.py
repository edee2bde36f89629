r"""The law of data given a linear measurement of them: a Bayesian inverse problem in closed form.

Of `m = A x + s n` and a law of bumps `sum_k w_k N(y_k, h^2 I)`, with `S = s^2 I + h^2 A A^T`,

    w_k' ~ w_k N(m; A y_k, S),      y_k' = y_k + h^2 A^T S^-1 (m - A y_k)
    V = h^2 I - h^4 A^T S^-1 A      the covariance of every bump

the posterior over the data's points, noised in closed form like any law. As x_t tells of m through
x_0 alone, its score and the law's own differ by what guides a sampler to the measurement,

    grad log p_t(m | x) = grad log rho'_t - grad log rho_t

which added to a network's score is (6.3), the change of data from rho to rho' at mass 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from scoresens import _checks
from scoresens._products import product
from scoresens.laws.kernels import LOG_2PI
from scoresens.laws.measures import GaussianMixture, Mixture, Points
from scoresens.laws.noises import Gaussian
from scoresens.laws.processes import Scalar


class Conditioned(NamedTuple):
    """Data given a measurement of them."""

    law: Mixture  # as many components as points: `Points` without a bandwidth, else Gaussians
    log_evidence: Float[Array, ""]  # log p(m), nats


def condition(
    data: Points,
    operator: Float[ArrayLike, "r d"],
    measurement: Float[ArrayLike, " r"],
    noise: Scalar,
) -> Conditioned:
    """The law of the data given `measurement = operator x + noise n`, n of a standard normal law.

    Args:
        data: the points, Dirac masses or bumps of their bandwidth.
        operator: `[r, d]`, d the flattened size of a point.
        measurement: `[r]`.
        noise: its standard deviation s, > 0.

    Raises:
        ValueError: shapes that do not fit, NaN, a noise that is not positive, or points whose
            kernels are no Gaussian densities.

    Notes:
        Cost: `N r d`, and of bumps one decomposition `[d, d]`; but the Gaussians hold `N d^2`
        numbers and cost as many operations at a place. In many dimensions give Points no
        bandwidth: the law then is theirs with other weights, which `reweight` and `attribute` take.
        The posterior over a finite set is no better than its nearest point where the measurement
        is sharper than the data are dense.

    References:
        Bishop 2006, Pattern Recognition and Machine Learning, section 2.3.3.
    """
    points, operator, measurement = _checked(data, operator, measurement, noise)
    bump, own = jnp.square(data.bandwidth), product(operator, operator.T)
    spread = jnp.square(noise) * jnp.eye(len(measurement)) + bump * own
    root = jnp.linalg.cholesky(spread)
    left = measurement - product(points, operator.T)
    seen = jax.scipy.linalg.solve_triangular(root, left.T, lower=True)
    logs = -0.5 * (jnp.sum(jnp.square(seen), 0) + len(measurement) * LOG_2PI)
    logs = logs - jnp.sum(jnp.log(jnp.diag(root))) + jnp.log(data.normalized_weights)
    evidence = jax.nn.logsumexp(logs)
    weights = jnp.exp(logs - evidence)
    if _checks.is_concrete(data.bandwidth) and float(data.bandwidth) == 0:
        return Conditioned(data.with_weights(weights), evidence)
    lever = jax.scipy.linalg.solve_triangular(root, operator, lower=True)
    means = points + bump * product(seen.T, lever)
    covariance = bump * jnp.eye(operator.shape[1]) - jnp.square(bump) * product(lever.T, lever)
    variances, axes = jnp.linalg.eigh(covariance)  # once, for it is every bump's
    count = len(points)
    law = GaussianMixture._with(
        weights,
        means.reshape(count, *data.shape),
        jnp.broadcast_to(jnp.maximum(variances, 0), (count, *variances.shape)),
        jnp.broadcast_to(axes, (count, *axes.shape)),
    )
    return Conditioned(law, evidence)


def _checked(data, operator, measurement, noise):
    if not isinstance(data, Points):
        raise ValueError(f"data must be Points(...), got {type(data).__name__}")
    if not isinstance(data.kernel, Gaussian):
        raise ValueError(
            "condition needs points whose noise is Gaussian, without temperature, width, "
            f"resolution or bias; this kernel is {type(data.kernel).__name__}: take data.sharp()"
        )
    points = jnp.asarray(data.points).reshape(len(data), -1)
    operator = _checks.samples("operator", operator, points.shape[1:])
    measurement = _checks.floating("measurement", measurement)
    if measurement.shape != operator.shape[:1]:
        raise ValueError(
            f"measurement must have shape ({len(operator)},), a number for each row of the "
            f"operator, got {measurement.shape}"
        )
    _checks.finite("measurement", measurement)
    _checks.positive("noise", noise)
    return points, operator, measurement
