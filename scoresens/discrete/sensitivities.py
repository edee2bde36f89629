r"""What a change of the data does to scores, samples and log-probabilities of symbols.

Toward `chi = sum_j c_j (nu_j - rho)` the concrete score of a law changes by

    (11.2)  ds(x->z) = s(x->z) ( r(z) - r(x) ) = sum_j c_j r_j(x) ( s_j(x->z) - s(x->z) ),
            r = sum_j c_j r_j,   r_j = nu_j,t / rho_t

a softmax-weighted sum over the points, with s_j the concrete score of point j alone. Of the
denoiser, which says the score (`denoisers`), it is `dp(u) = sum_j c_j r_j ( p_j(u) - p(u) )`.

A network is not its data's law. As in the continuous world (6.3) it is changed **relative to the
data**: by the factor that the data's own denoiser p^ changes by, in the weights of the changed data
and with the same flips. Of any size, and to first order,

    p_new(u) = p(u) p^'(u) / p^(u), normalised over u at each position
    d log p  = e - sum_u p(u) e(u),   e(u) = sum_j c_j r^_j ( p^_j(u) / p^(u) - 1 )

exact where the model is the data's law, and always a law.

Paths of symbols are piecewise constant, so that a sample's derivative is that of its
log-probability (`records`), with the record held fixed: of a path `sum_jumps d log s - int sum_z
Q_t(z, x) ds dt`. With `omega = dg / d log p` at each place, centred by p, all points are read off
at once:

    d log P / d eps_k = sum_r r^_k(x_r) sum_iu omega_riu p^_k(u)_i / p^(u)_i

and the last sum is linear in the one-hots of the point: a table of kernels and a matrix product.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from scoresens.discrete._symbols import check_bumped, check_fits, check_process, check_time
from scoresens.discrete.denoisers import Denoiser, normalised, ratios, safe_log
from scoresens.discrete.perturbations import (
    Perturbation,
    changed,
    check_fits_data,
    check_perturbation,
)
from scoresens.discrete.processes import Process
from scoresens.discrete.records import Record, check_record, over_samples
from scoresens.discrete.sequences import Sequences
from scoresens.laws.processes import Scalar
from scoresens.laws.scores import as_pytree


class Attribution(NamedTuple):
    """What N data points do to the log-probabilities of M records, per unit of mass moved to each
    point."""

    scores: Float[Array, "M N"] | None  # nats; None where top was asked for
    top_values: Float[Array, "M k"] | None  # largest first
    top_indices: Int[Array, "M k"] | None
    bottom_values: Float[Array, "M k"] | None  # smallest first
    bottom_indices: Int[Array, "M k"] | None


def score_sensitivity(
    process: Process,
    denoiser: Denoiser,
    data: Sequences,
    perturbation: Perturbation,
    t: Scalar,
    x: Int[Array, "M d"],
) -> Float[Array, "M K d S"]:
    """Derivatives of the concrete score at (t, x) with respect to the data's law (11.2).

    Args:
        process: the noise.
        denoiser: `denoiser(t, x) -> log p(y_i = u | x)` (`from_denoiser`, `from_concrete_score`).
        data: the data set, with flips.
        perturbation: K directions (`add`, `remove`, `reweight`).
        t: scalar time in (0, t_max].
        x: `[M, d]` noised sequences.

    Returns:
        `d s(x->z) / d mass`, for each position and symbol of z.

    Raises:
        ValueError: sequences, alphabets, times that do not fit; data without flips.

    Notes:
        One network evaluation and one pass over the data and over the points that change.
    """
    _check(process, data)
    check_fits_data(data, perturbation)
    x = process.checked("x", x, data.length)
    check_time(t, process.t_max)
    return _score_change(process, as_pytree(denoiser), data, perturbation, jnp.asarray(t), x)


def sensitivity(
    process: Process,
    denoiser: Denoiser,
    data: Sequences,
    perturbation: Perturbation,
    record: Record,
) -> Float[Array, "M K"]:
    """Derivatives of records' log-probabilities with respect to the data's law.

    Args:
        process, denoiser, data, perturbation: as in `score_sensitivity`.
        record: of `sample` or `sample_exact` (how a sample came about), or of `noised`.

    Returns:
        `d log P / d mass`, nats.

    Raises:
        ValueError: sequences or alphabets that do not fit; data without flips.

    Notes:
        One network evaluation and its gradient a place of the record, one pass over the data, and
        one over the points that change.
    """
    _check(process, data)
    check_fits_data(data, perturbation)
    check_record(record)
    given = process, as_pytree(denoiser), data, perturbation.points, record
    return _influences(*given) @ perturbation.coefficients.T


def attribute(
    process: Process,
    denoiser: Denoiser,
    data: Sequences,
    record: Record,
    *,
    top: int | None = None,
) -> Attribution:
    """The sensitivity of records' log-probabilities to the weight of every data point.

    Args:
        process, denoiser, data, record: as in `sensitivity`.
        top: None returns all scores; k the k largest and the k smallest of each record.

    Returns:
        Attribution: `scores [M, N]`, nats per unit of mass: `chi_k = delta_k - rho`, so that a
            set's attribution is the sum over its points.

    Raises:
        ValueError: as `sensitivity`; a `top` above N.

    Notes:
        One network evaluation and its gradient a place, whatever N is; tables of
        `2 N d (1 + 2 A)` operations a place, in blocks of points.
    """
    _check(process, data)
    check_record(record)
    if top is not None and not (isinstance(top, int) and 1 <= top <= len(data)):
        raise ValueError(
            f"top must be a whole number from 1 to the data's {len(data)} points, got {top!r}"
        )
    given = process, as_pytree(denoiser), data, data.points, record
    if top is None:
        return Attribution(_influences(*given), None, None, None, None)
    return Attribution(None, *_influences(*given, top=top))


def counterfactual(
    process: Process,
    denoiser: Denoiser,
    data: Sequences,
    perturbation: Perturbation,
    mass: Scalar,
) -> Denoiser:
    """The denoiser of the model that was never trained: on `rho + mass chi`.

    Args:
        process, denoiser, data: as in `score_sensitivity`.
        perturbation: one direction (`perturbation[:1]` of several).
        mass: how much of it.

    Returns:
        `denoiser(t, x)`, of which to `sample`, and to ask for the `log_probability` of records;
        its `concrete_score` is the counterfactual one.

    Raises:
        ValueError: as `score_sensitivity`; several directions, or a mass at which a weight of the
            changed data is negative.

    Notes:
        One network evaluation and one pass over the data.
    """
    _check(process, data)
    check_perturbation(perturbation)
    if len(perturbation) != 1:
        raise ValueError(
            f"counterfactual takes one direction, got {len(perturbation)}: choose one by "
            "perturbation[k : k + 1]"
        )
    union, weights = changed(data, perturbation, mass)
    rows = jnp.concatenate([union.normalized_weights[None], weights])
    return Partial(_relative, process, as_pytree(denoiser), union, rows)


# ------------------------------------------------------------------ kernels, compiled once a shape


def _relative(process, denoiser, union, rows, t, x):
    tallies = union.posterior(process, t, x, rows).tally
    own, new = safe_log(union.cleaned(process, t, x, tallies))
    return normalised(denoiser(t, x) + (new - own))


@jax.jit
def _score_change(process, denoiser, data, perturbation, t, x):
    points = data.replaced(perturbation.points, None)

    def one(x):
        log_p, seen = denoiser(t, x), data.posterior(process, t, x)
        clean = data.cleaned(process, t, x, seen.tally)
        sums = points.weighted_sums(process, t, x, seen.log_density, perturbation.coefficients)
        change = _over(data.cleaned(process, t, x, sums[1]), clean) - sums[0][:, None, None]
        change = change - jnp.sum(jnp.exp(log_p) * change, -1, keepdims=True)
        push = jax.linearize(lambda log_p: ratios(process, t, x, log_p), log_p)[1]
        return jax.vmap(push)(change)

    return over_samples(one, x, 1)


@functools.partial(jax.jit, static_argnames="top")
def _influences(process, denoiser, data, points, record, top=None):
    points = data.replaced(points, None)

    def one(visits):
        def at(visit):
            log_p, seen = denoiser(visit.t, visit.x), data.posterior(process, visit.t, visit.x)
            omega = jax.grad(lambda log_p: record.value(process, visit, log_p))(log_p)
            omega = omega - jnp.exp(log_p) * jnp.sum(omega, -1, keepdims=True)
            return seen.log_density, _pulled(process, data, visit, omega, seen.tally)

        gain, table = jax.vmap(at)(visits)
        found = points.influences(process, visits.t, visits.x, gain, table)
        if top is None:
            return found
        return *jax.lax.top_k(found, top), *_bottom_k(found, top)

    visits = record.visits(process)
    return over_samples(one, visits, visits.t.shape[1])


def _pulled(process, data, visit, omega, tally):
    """`sum_u omega_iu p^_k(u)_i / p^(u)_i` by the symbol that point k has at position i."""
    clean = data.cleaned(process, visit.t, visit.x, tally)
    pull = jax.linear_transpose(lambda q: data.cleaned(process, visit.t, visit.x, q), tally)
    return pull(_over(omega, clean))[0]


def _bottom_k(found, count):
    values, indices = jax.lax.top_k(-found, count)
    return -values, indices


def _over(numbers, clean):
    """Over the data's own probabilities; 0 where those are 0, of what is known."""
    some = clean > jnp.finfo(clean.dtype).tiny
    return jnp.where(some, numbers / jnp.where(some, clean, 1), 0)


def _check(process, data):
    check_process(process, Process)
    check_fits(process, data)
    check_bumped(data)
