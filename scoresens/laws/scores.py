r"""Scores from the networks people have, and back.

A score is any JAX function `score(t, x) = grad log rho_t(x)` of a scalar time and **one** sample.
With `x = alpha x_0 + sigma n` each of the field's outputs is affine in it:

    noise      eps = E[n | x]                      score = -eps / sigma
    denoiser   D   = E[x_0 | x]                    score = (alpha D - x) / sigma^2
    v          v   = alpha eps - sigma D           eps   = (alpha v + sigma x) / (alpha^2 + sigma^2)
    velocity   u   = alpha' D + sigma' eps         eps   = (alpha u - alpha' x)
                                                           / (alpha sigma' - alpha' sigma)

The functions here return `jax.tree_util.Partial`s over module-level functions: pytrees whose leaves
are the network's parameters, which cross `jit` as arguments and trace once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens.laws.measures import Measure
from scoresens.laws.processes import Process, Scalar

Score = Callable[[Scalar, Float[Array, "*shape"]], Float[Array, "*shape"]]
Potential = Callable[[Scalar, Float[Array, "*shape"]], Float[Array, ""]]


def from_noise(process: Process, network: Score) -> Score:
    """The score of a network that predicts the noise, `network(t, x) -> E[n | x]`.

    Args:
        process: the forward process that the network was trained on.
        network: any callable pytree (a flax.nnx or equinox module) or plain function of one sample;
            `docs/models.md` shows each kind.

    Returns:
        `score(t, x)`, in 1 / (units of x). Calling it raises a ValueError if the network returns
            anything but one array of x's shape.

    References:
        Ho et al. 2020, arXiv 2006.11239.
    """
    return Partial(_score_from_noise, process, as_pytree(network))


def from_denoiser(process: Process, network: Score) -> Score:
    """The score of a network that predicts the data, `network(t, x) -> E[x_0 | x]`.

    For a network in the canonical frame (`network(tau, x^)`, as [EDM](arXiv 2206.00364) trains) use
    it with `EDM()`, or with `from_canonical` for another process. Arguments and result as in
    `from_noise`.
    """
    return Partial(_score_from_denoiser, process, as_pytree(network))


def from_v(process: Process, network: Score) -> Score:
    """The score of a network that predicts `v = alpha n - sigma x_0` (Salimans & Ho 2022, arXiv
    2202.00512)."""
    return Partial(_score_from_v, process, as_pytree(network))


def from_velocity(process: Process, network: Score) -> Score:
    """The score of a network that predicts the velocity `alpha' x_0 + sigma' n` (arXiv
    2210.02747)."""
    return Partial(_score_from_velocity, process, as_pytree(network))


def from_canonical(process: Process, denoiser: Score) -> Score:
    """The score, in a process's own frame, of a denoiser of the canonical frame, `denoiser(tau,
    x^)`."""
    return Partial(_score_from_canonical, process, as_pytree(denoiser))


def from_potential(potential: Potential) -> Score:
    """The score of a network that models the log-density, `potential(t, x) -> log rho_t(x) + c(t)`.

    Args:
        potential: any callable pytree or plain function of a scalar time and one sample, in the
            process's own frame; its value is a scalar. What depends on t alone does not matter.

    Returns:
        `score(t, x)`, the potential's gradient in x: one evaluation and its reverse pass.
    """
    return Partial(_score_from_potential, as_pytree(potential))


def exact_score(process: Process, measure: Measure) -> Score:
    """The score of a known law noised by the process: the optimum that training aims at (closed
    form). Of noise that is not Gaussian it is `(alpha D - x) / sigma^2`, which stands for the
    denoiser everywhere here, and is the gradient of no log-density."""
    return Partial(_score_from_canonical, process, Partial(_denoise, measure.under(process)))


@register_dataclass
@dataclass(frozen=True)
class Guided:
    """A guided score, `s_g = s_u + weight (s_c - s_u)`. Made by `guide`."""

    unconditional: Score
    conditional: Score
    weight: Scalar

    def __call__(self, t: Scalar, x: Float[Array, "*shape"]) -> Array:
        plain = _said(self.unconditional, t, x, "score")
        return plain + self.weight * (_said(self.conditional, t, x, "score") - plain)


class Pair(NamedTuple):
    """One thing for each of the two laws of a guided score."""

    unconditional: Any = None
    conditional: Any = None


def guide(unconditional: Score, conditional: Score, weight: Scalar) -> Guided:
    """Classifier-free guidance: the score `s_u + weight (s_c - s_u)` (6.2).

    Args:
        unconditional: the score of the whole law.
        conditional: the score of the law of one condition, which is closed over as data.
        weight: 0 is the unconditional score, 1 the conditional one, above 1 exaggerates.

    Returns:
        A score `(t, x)`. It is that of no noised law; where a verb asks for a perturbation, a
        base or a prior, give it a `Pair`, one for each of the two laws.

    References:
        Ho & Salimans 2022, arXiv 2207.12598 (there the weight is counted from 1).
    """
    _checks.finite("weight", weight)
    return Guided(as_pytree(unconditional), as_pytree(conditional), weight)


def to_noise(process: Process, score: Score) -> Score:
    """`noise(t, x) = -sigma score`: the inverse of `from_noise`."""
    return Partial(_noise_from_score, process, as_pytree(score))


def to_denoiser(process: Process, score: Score) -> Score:
    """`denoiser(t, x) = (x + sigma^2 score) / alpha`: the inverse of `from_denoiser`."""
    return Partial(_denoiser_from_score, process, as_pytree(score))


def to_v(process: Process, score: Score) -> Score:
    """`v(t, x) = alpha eps - sigma D`: the inverse of `from_v`."""
    return Partial(_v_from_score, process, as_pytree(score))


def to_velocity(process: Process, score: Score) -> Score:
    """`velocity(t, x) = f - g^2 score / 2`, the probability flow (1.1): the inverse of
    `from_velocity`."""
    return Partial(_velocity_from_score, process, as_pytree(score))


def canonical_denoiser(
    process: Process, score: Score, tau: Scalar, x: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """D(x^, tau) = x^ + tau^2 s^, the denoiser that a score implies in the canonical frame
    (1.3)."""
    t = process.time(tau)
    alpha = process.alpha(t)
    return x + jnp.square(tau) * alpha * score(t, alpha * x)


def as_pytree(function: Callable) -> Callable:
    """A function that may cross `jit`, with the leaves of a callable pytree that are numbers.

    A plain function is wrapped, and known by its identity: a lambda written anew is another, which
    is compiled anew, for its globals and what it closes over may have changed. A callable pytree
    passes unchanged, unless some of its leaves are no numbers, as the activation of an equinox
    network is or a flag: those become structure.
    """
    if not callable(function):
        raise ValueError(
            f"a score or network must be a function (t, x) -> array like x, got {type(function)}"
        )
    if jax.tree_util.all_leaves([function]):
        return Partial(function)
    leaves, structure = jax.tree_util.tree_flatten(function)
    if all(map(_is_number, leaves)):
        return function
    fixed = tuple(None if _is_number(leaf) else leaf for leaf in leaves)
    return Partial(_Rebuilt(structure, fixed), [leaf for leaf in leaves if _is_number(leaf)])


def _is_number(leaf: Any) -> bool:
    """True for arrays and Python's numbers, False for its flags and for a class such as
    `jnp.float32`."""
    if isinstance(leaf, int | float | complex):
        return not isinstance(leaf, bool)
    return hasattr(leaf, "dtype") and not callable(leaf)


@dataclass(frozen=True)
class _Rebuilt:
    """`rebuilt(numbers, *inputs)` calls a callable pytree whose leaves these numbers are."""

    structure: Any
    fixed: tuple  # a leaf each, None where a number belongs

    def __call__(self, numbers, *inputs):
        numbers = iter(numbers)
        leaves = [next(numbers) if leaf is None else leaf for leaf in self.fixed]
        return self.structure.unflatten(leaves)(*inputs)


def _said(function, t, x, name="network"):
    """What a network or a score returns for one sample: an array of its shape, or an error that
    says so. One of another shape would be stretched over the sample without a word."""
    return _checks.like_sample(name, function(t, x), x)


def _score_from_noise(process, network, t, x):
    return -_said(network, t, x) / process.sigma(t)


def _score_from_denoiser(process, network, t, x):
    return (process.alpha(t) * _said(network, t, x) - x) / process.variance(t)


def _score_from_v(process, network, t, x):
    alpha, sigma = process.alpha(t), process.sigma(t)
    noise = (alpha * _said(network, t, x) + sigma * x) / (jnp.square(alpha) + jnp.square(sigma))
    return -noise / sigma


def _score_from_velocity(process, network, t, x):
    alpha, alpha_rate, sigma, sigma_rate = _scales(process, t, x.dtype)
    noise = (alpha * _said(network, t, x) - alpha_rate * x) / (
        alpha * sigma_rate - alpha_rate * sigma
    )
    return -noise / sigma


def _score_from_canonical(process, denoiser, t, x):
    alpha, tau, hat = process.alpha(t), process.noise_level(t), process.to_canonical(t, x)
    return (_said(denoiser, tau, hat) - hat) / (alpha * jnp.square(tau))


def _score_from_potential(potential, t, x):
    return jax.grad(lambda x: _checks.like_number(potential(t, x), x))(x)


def _denoise(measure, tau, x):
    return measure.denoise(tau, x)


def _noise_from_score(process, score, t, x):
    return -process.sigma(t) * _said(score, t, x, "score")


def _denoiser_from_score(process, score, t, x):
    return (x + process.variance(t) * _said(score, t, x, "score")) / process.alpha(t)


def _v_from_score(process, score, t, x):
    noise = _noise_from_score(process, score, t, x)
    denoised = _denoiser_from_score(process, score, t, x)
    return process.alpha(t) * noise - process.sigma(t) * denoised


def _velocity_from_score(process, score, t, x):
    _, alpha_rate, _, sigma_rate = _scales(process, t, x.dtype)
    noise = _noise_from_score(process, score, t, x)
    return alpha_rate * _denoiser_from_score(process, score, t, x) + sigma_rate * noise


def _scales(process, t, dtype):
    """alpha, alpha', sigma, sigma' at t."""
    t = jnp.asarray(t, dtype)
    alpha, sigma = jax.value_and_grad(process.alpha)(t), jax.value_and_grad(process.sigma)(t)
    return *alpha, *sigma
