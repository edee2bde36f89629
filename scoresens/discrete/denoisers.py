r"""What people's networks say of clean symbols, and concrete scores.

A denoiser here is any JAX function `denoiser(t, x) -> log p(y_i = u | x)`, `[d, A]` for one noised
sequence x: the logarithm of the probability of each symbol u of the data at each position i. It
says the concrete score, and is said by it, at every time above 0:

    s(x->z)_i = sum_u p(y_i = u | x) k_t(z|u) / k_t(x_i|u)
    p(y_i = u | x) = k_t(x_i|u) (s_u - (1 - kappa) pi(u) sum_z s_z) / kappa

(the second is the first, solved for p: (1 - kappa) pi + kappa times the unit matrix is inverted by
hand). Masked, a position that is not hidden is known: p is 1 there, whatever a network says.

The functions return `jax.tree_util.Partial`s over module-level functions: pytrees whose leaves are
the network's parameters, which cross `jit` as arguments and trace once. Logarithms of 0 are taken
to be those of the smallest number (-87 in float32).
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from scoresens._products import product
from scoresens.discrete._symbols import check_fits, check_process
from scoresens.discrete.processes import Masked, Process, Table
from scoresens.discrete.sequences import Sequences
from scoresens.laws.processes import Scalar
from scoresens.laws.scores import as_pytree

Denoiser = Callable[[Scalar, Int[Array, " d"]], Table]
ConcreteScore = Callable[[Scalar, Int[Array, " d"]], Float[Array, "d S"]]


def from_denoiser(process: Process, network: Denoiser, *, probabilities: bool = False) -> Denoiser:
    """The denoiser of a network that predicts clean symbols.

    Args:
        process: the noise that the network was trained on.
        network: `network(t, x) -> [d, A]` of one sequence `[d]`: logits, which log-probabilities
            are too; any callable pytree (a flax.nnx or equinox module) or plain function.
        probabilities: whether it says probabilities instead.

    Returns:
        `denoiser(t, x)`, normalised log-probabilities `[d, A]`. Calling it raises a ValueError if
            the network returns anything but one array of this shape.
    """
    check_process(process, Process)
    read = _from_probabilities if probabilities else _from_logits
    return Partial(read, process, as_pytree(network))


def from_concrete_score(process: Process, network: ConcreteScore) -> Denoiser:
    """The denoiser of a network that predicts the concrete score.

    Args:
        process: the noise that the network was trained on.
        network: `network(t, x) -> s(x->z)`, `[d, S]` of one sequence, ratios and not logarithms;
            what it says of z = x is not read.

    Returns:
        `denoiser(t, x)`, as `from_denoiser`. Exact for scores of a law; what is no law's (a
            negative probability, a sum that is not 1) is set to 0 and normalised.
    """
    check_process(process, Process)
    return Partial(_from_ratios, process, as_pytree(network))


def exact_denoiser(process: Process, data: Sequences) -> Denoiser:
    """The denoiser of a data set itself, in closed form."""
    check_process(process, Process)
    check_fits(process, data)
    return Partial(_exact, process, data)


def concrete_score(process: Process, denoiser: Denoiser) -> ConcreteScore:
    """`score(t, x) -> s(x->z)`, `[d, S]`, of a denoiser; 1 where z = x."""
    return Partial(_ratios, process, as_pytree(denoiser))


# ------------------------------------------------------------------ at one place


def ratios(process: Process, t: Scalar, x: Int[Array, " d"], log_p: Table) -> Float[Array, "d S"]:
    """s(x->z) of the log-probabilities at x."""
    return product(_over_seen(process, t, x, log_p), process.kernel(t))


def leap(
    process: Process, s: Scalar, t: Scalar, x: Int[Array, " d"], log_p: Table
) -> Float[Array, "d S"]:
    """The law of each position's symbol at s < t given x at t, all clean symbols as independent as
    the log-probabilities know them: `sum_u p(u|x) k_s(z|u) k_{t|s}(x_i|z) / k_t(x_i|u)`."""
    back = product(_over_seen(process, t, x, log_p), process.kernel(s))
    return back * process.between(s, t).T[x]


def normalised(log_p: Table) -> Table:
    """Logits as log-probabilities, no less than that of the smallest number."""
    found = jax.nn.log_softmax(log_p)
    return jnp.maximum(found, jnp.log(jnp.finfo(found.dtype).tiny))


def safe_log(p: Array) -> Array:
    """Logarithms of probabilities, those of 0 as of the smallest number."""
    return jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))


def _over_seen(process, t, x, log_p):
    """p(u|x) / k_t(x_i|u); 0 where no symbol can have become x_i."""
    seen = process.seen(t, x)
    return jnp.where(seen > 0, jnp.exp(log_p) / jnp.where(seen > 0, seen, 1), 0)


def _from_logits(process, network, t, x):
    out = network(t, x)
    return _known(process, x, _fitting(out, (len(x), process.alphabet), "log-probabilities"))


def _from_probabilities(process, network, t, x):
    out = _fitting(network(t, x), (len(x), process.alphabet), "probabilities")
    return _known(process, x, safe_log(out))


def _from_ratios(process, network, t, x):
    out = _fitting(network(t, x), (len(x), process.states), "ratios s(x->z)")
    out = out.at[jnp.arange(len(x)), x].set(1.0)
    kept, size = process.kept(t), process.alphabet
    noise = (1 - kept) * process.noise[:size] * jnp.sum(out, -1, keepdims=True)
    back = jnp.maximum((out[:, :size] - noise) / kept, 0)
    return _known(process, x, safe_log(process.seen(t, x) * back))


def _exact(process, data, t, x):
    return _known(process, x, safe_log(data.denoise(process, t, x)))


def _ratios(process, denoiser, t, x):
    return ratios(process, t, x, denoiser(t, x))


def _known(process, x, log_p):
    """Normalised, and what is not hidden is known."""
    if not isinstance(process, Masked):
        return normalised(log_p)
    sure = jax.nn.one_hot(x, process.alphabet, dtype=log_p.dtype)
    hidden = (x == process.alphabet)[:, None]
    return normalised(jnp.where(hidden, log_p, safe_log(sure)))


def _fitting(out: Any, shape: tuple[int, int], what: str) -> Array:
    """What a network returned for one sequence, refused if it is no table of this shape."""
    got = tuple(out.shape) if hasattr(out, "shape") else type(out).__name__
    if got != shape:
        raise ValueError(
            f"network(t, x) must return {what} of shape {shape} for one sequence, got {got}; a "
            "network takes one sequence without a batch axis: the library maps over samples"
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"network(t, x) must return floating-point numbers, got {out.dtype}")
    return cast(Array, out)
