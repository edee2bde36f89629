"""Clear errors at the public door.

Each check says what it expected, what it got, and what to do. Values that are traced (inside `jit`,
`vmap`, `grad`) have no number yet: their shapes and dtypes are checked, their values are not.
Values that are known are looked at now, also where the caller is being traced.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def is_concrete(value: Any) -> bool:
    """True where `value` is a number or an array whose entries can be looked at now."""
    return isinstance(value, bool | int | float | np.generic | np.ndarray | jax.Array) and not (
        isinstance(value, Tracer)
    )


def floating(name: str, value: Any) -> jax.Array:
    """`value` as a floating-point array of JAX's current precision, of float32 at least: in half
    precision times, noise levels and densities would be others."""
    if not hasattr(value, "dtype"):
        value = np.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"{name} holds {value.dtype} where floating-point numbers belong; "
            f"convert it first, for example jnp.asarray({name}, jnp.float32)"
        )
    value = jnp.asarray(value)
    return value.astype(wide(value.dtype))


def wide(dtype: Any) -> np.dtype:
    """The precision that numbers of this one are computed in: float32 or float64."""
    return jnp.promote_types(jax.dtypes.canonicalize_dtype(dtype), jnp.float32)


def floats(name: str, x: Any) -> np.ndarray:
    """`x` as a floating-point array of NumPy, of the precision that it has."""
    x = np.asarray(x)
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"{name} holds {x.dtype} where floating-point numbers belong; convert it first, "
            f"for example {name}.astype(np.float32)"
        )
    return x


def finite(name: str, value: Any) -> None:
    """Refuse NaN and infinity."""
    if not is_concrete(value):
        return
    with jax.ensure_compile_time_eval():
        bad = 0 if bool(_all_finite(value)) else int(_count_bad(value))
    if bad:
        raise ValueError(
            f"{name} has {bad} entries that are NaN or infinite; remove or repair them first"
        )


@jax.jit
def _all_finite(value):
    """By a sum, which is NaN where 0 times a number is: of flags, XLA makes a table."""
    return jnp.isfinite(jnp.sum(0 * jnp.asarray(value)))


@jax.jit
def _count_bad(value):
    return jnp.sum(~jnp.isfinite(jnp.asarray(value)))


def precision(name: str, value: Any) -> None:
    """Refuse what is no precision of a product."""
    if value is None:
        return
    some = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    try:
        hash(value)
        jax.eval_shape(lambda a, b: jnp.matmul(a, b, precision=value), some, some)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f'{name} must be None, "highest", "high", "default" or the name of a '
            f"jax.lax.DotAlgorithmPreset, got {value!r}"
        ) from error


def positive(name: str, value: Any) -> None:
    """Refuse a number that is not finite and greater than zero."""
    if is_concrete(value) and not (np.all(np.isfinite(value)) and np.all(np.asarray(value) > 0)):
        raise ValueError(f"{name} must be a finite number greater than 0, got {value}")


def non_negative(name: str, value: Any) -> None:
    """Refuse a number that is negative or not finite."""
    if is_concrete(value) and not (np.all(np.isfinite(value)) and np.all(np.asarray(value) >= 0)):
        raise ValueError(f"{name} must be a finite number, 0 or greater, got {value}")


def weights(name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Refuse weights of another shape, or that are negative, not finite, or all zero in a row."""
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    finite(name, value)
    if is_concrete(value):
        known = np.asarray(value)
        if np.any(known < 0):
            raise ValueError(f"{name} must be 0 or greater, its smallest entry is {known.min()}")
        if np.any(known.sum(-1) <= 0):
            raise ValueError(f"{name} sums to 0: no point is left to draw from")


def samples(name: str, value: Any, shape: tuple[int, ...] | None = None) -> jax.Array:
    """`value` as a floating batch `[M, *shape]` with at least one entry, all of them finite, of
    float32 at least."""
    value = floating(name, value)
    if value.ndim < 2 or value.shape[0] == 0:
        raise ValueError(
            f"{name} must be a batch [M, *shape] with M >= 1, got shape {tuple(value.shape)}; "
            "add a leading axis to a single sample"
        )
    if shape is not None and tuple(value.shape[1:]) != tuple(shape):
        raise ValueError(
            f"{name} must have shape [M, {', '.join(map(str, shape))}] to match the other "
            f"arguments, got {tuple(value.shape)}"
        )
    finite(name, value)
    return value


def key_given(name: str, key: Any, why: str, *, rows: bool = True) -> None:
    """Refuse what is no random key, saying what needs one.

    Args:
        name, why: of what needs it, and for what.
        key: as `jax.random.key` makes it, or `jax.random.PRNGKey`.
        rows: whether a row of keys `[M]` will do; the older kind makes none.
    """
    needs = f"{name} needs key=jax.random.key(...)"
    if key is None:
        raise ValueError(f"{needs}: {why}")
    if not hasattr(key, "dtype"):
        raise ValueError(f"{needs}, got {key!r}: {why}")
    axes = len(key.shape)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        fits = axes <= rows
    else:
        fits = key.dtype == jnp.uint32 and axes == 1
    if not fits:
        split = ", or a row of them by jax.random.split of such a key" if rows else ""
        raise ValueError(f"{needs}{split}, got {key.dtype} of shape {tuple(key.shape)}: {why}")


def score_shape(score: Any, t: Any, x: Any, name: str = "score") -> None:
    """Refuse a score whose value is not shaped like one sample; costs an abstract evaluation."""
    like_sample(name, jax.eval_shape(score, t, x), x)


def like_sample(name: str, out: Any, x: Any) -> Any:
    """What a score or a network returned for one sample, refused if it is not shaped like it."""
    shape = tuple(np.shape(x))
    if not hasattr(out, "shape") or tuple(out.shape) != shape:
        got = tuple(out.shape) if hasattr(out, "shape") else type(out).__name__
        raise ValueError(
            f"{name}(t, x) must return an array of x's shape {shape} for one sample, got {got}; "
            f"a {name} takes one sample without a batch axis, channels last, and returns one "
            "array, without a learned variance: the library maps over samples"
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"{name}(t, x) must return floating-point numbers, got {out.dtype}")
    return out


def potential_shape(potential: Any, t: Any, x: Any) -> None:
    """Refuse a potential whose value is not one floating number for one sample."""
    like_number(jax.eval_shape(potential, t, x), x)


def like_number(out: Any, x: Any) -> Any:
    """What a potential returned for one sample, refused if it is not one floating number."""
    if not hasattr(out, "shape") or out.shape or not jnp.issubdtype(out.dtype, jnp.floating):
        got = f"{out.dtype}{list(out.shape)}" if hasattr(out, "shape") else type(out).__name__
        raise ValueError(
            f"potential(t, x) must return one floating-point number, the log-density of one sample "
            f"of shape {tuple(np.shape(x))}, got {got}; for a score use score_residual"
        )
    return out


def times(name: str, t: Any, count: int, t_max: Any) -> jax.Array:
    """`t` as floating times `[count]` in [0, t_max]; one time stands for all."""
    t = floating(name, t)
    if t.shape not in ((), (count,)):
        raise ValueError(
            f"{name} must be one time or one a sample, of shape ({count},), got {t.shape}"
        )
    if is_concrete(t) and is_concrete(t_max):
        known = np.asarray(t)
        if not np.all((known >= 0) & (known <= float(t_max) * (1 + 1e-6))):
            raise ValueError(
                f"{name} must lie between 0 (data) and t_max = {t_max} (noise), got "
                f"{known.min()} to {known.max()}"
            )
    return jnp.broadcast_to(t, (count,))
