"""Clear errors at the public door, for symbols."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scoresens import _checks


def symbols(name: str, x: Any, states: int, length: int | None = None) -> jax.Array:
    """`x` as a batch `[M, d]` of integers from 0 to below `states`."""
    x = x if hasattr(x, "dtype") else np.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(
            f"{name} holds {x.dtype} where symbols belong, integers from 0 to {states - 1}; "
            f"convert it first, for example {name}.astype(int)"
        )
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(
            f"{name} must be a batch [M, d] of M >= 1 sequences of d >= 1 symbols, got shape "
            f"{tuple(x.shape)}; add a leading axis to a single sequence, flatten images"
        )
    if length is not None and x.shape[1] != length:
        raise ValueError(
            f"{name} must have shape [M, {length}] to match the other arguments, got "
            f"{tuple(x.shape)}"
        )
    if _checks.is_concrete(x):
        known = np.asarray(x)
        if known.min() < 0 or known.max() >= states:
            raise ValueError(
                f"{name} holds symbols {known.min()} to {known.max()}, outside the alphabet "
                f"0 to {states - 1}; number them from 0, or make the alphabet larger"
            )
    return jnp.asarray(x, jnp.int32)


def check_alphabet(alphabet: Any) -> None:
    """Refuse what is no number of symbols."""
    if not isinstance(alphabet, numbers.Integral) or alphabet < 2:
        raise ValueError(f"alphabet must be a whole number of symbols, 2 or more, got {alphabet!r}")


def check_residue(residue: Any) -> None:
    """Refuse what is no probability between 0 and 1."""
    if not (isinstance(residue, float | int) and 0 < residue < 1):
        raise ValueError(f"residue must lie above 0 and below 1, got {residue!r}")


def check_flip(flip: Any) -> None:
    """Refuse what is no probability below 1."""
    if _checks.is_concrete(flip) and not (np.ndim(flip) == 0 and 0 <= flip < 1):
        raise ValueError(f"flip must be one probability, 0 or above and below 1, got {flip}")


def check_time(t: Any, t_max: float) -> None:
    """Refuse a time outside (0, t_max]."""
    if _checks.is_concrete(t) and not (np.ndim(t) == 0 and 0 < t <= t_max):
        raise ValueError(
            f"t must be one time above 0 (data) and up to t_max = {t_max} (noise), got {t}"
        )


def check_process(process: Any, kind: type) -> None:
    """Refuse a process of the continuous world, which has the same names."""
    if not isinstance(process, kind):
        raise ValueError(
            f"process must be discrete.Uniform or discrete.Masked, got {type(process).__name__}"
        )


def check_fits(process: Any, data: Any) -> None:
    """Refuse a process of another alphabet than the data's."""
    if process.alphabet != data.alphabet:
        raise ValueError(
            f"the process is of an alphabet of {process.alphabet} symbols, the data of "
            f"{data.alphabet}: make both of the same"
        )


def check_sequence(x: Any, states: int, length: int) -> None:
    """Refuse what is no single noised sequence `[length]`."""
    if tuple(np.shape(x)) != (length,):
        raise ValueError(
            f"expected one sequence of shape ({length},), got {tuple(np.shape(x))}: map over a "
            "batch with jax.vmap"
        )
    symbols("x", jnp.asarray(x)[None], states)


def check_bumped(data: Any) -> None:
    """Refuse data without flips, whose law may be 0 where a network's is not."""
    if _checks.is_concrete(data.flip) and data.flip == 0:
        raise ValueError(
            "the data need flips, for a network is changed as their law is, which without is 0 "
            "where no point is: Sequences(points, alphabet, flip=0.1)"
        )
