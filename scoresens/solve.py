r"""The numerics of a path: its settings, its grid, and the integration of one sample's state.

The only file that calls diffrax. Fixed grids are Karras et al.'s (2022, arXiv 2206.00364, eq. 5),

    tau_i = (tau_max^(1/rho) + i/steps (tau_min^(1/rho) - tau_max^(1/rho)))^rho,

given to diffrax as the times to step to; with tolerances a PID controller chooses the steps.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from scoresens import _checks
from scoresens.processes import Scalar


@dataclass(frozen=True)
class Solve:
    """Numerics of a path: grid, solver, tolerances. All fields are static; a new value compiles
    anew.

    Args:
        steps: number of steps of the fixed grid.
        rho: bend of the grid, `tau_i = (tau_max^(1/rho) + i/steps (tau_min^(1/rho) -
            tau_max^(1/rho)))^rho` (Karras et al. 2022, eq. 5).
        tau_min: noise level at the data end, > 0.
        solver: a diffrax solver. Heun's two evaluations a step are the field's standard.
        rtol, atol: given both, steps adapt to them and the grid is not used.
        max_steps: where an adaptive solve gives up.
        batch_size: samples solved side by side; more run one batch after another.
        throw: raise when a solve fails or a result is not finite; False returns what there is, with
            `stats`.
        adjoint: how diffrax differentiates the path; `diffrax.ForwardMode()` for forward-mode
            derivatives.
    """

    steps: int = 40
    rho: float = 7.0
    tau_min: float = 0.002
    solver: diffrax.AbstractSolver = diffrax.Heun()  # noqa: RUF009 (immutable)
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 4096
    batch_size: int = 256
    throw: bool = True
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint()  # noqa: RUF009

    def __post_init__(self):
        for name in ("steps", "max_steps", "batch_size"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"Solve.{name} must be a whole number >= 1, got {value!r}")
        for name in ("rho", "tau_min"):
            _checks.positive(f"Solve.{name}", getattr(self, name))
        if (self.rtol is None) != (self.atol is None):
            raise ValueError("Solve takes rtol and atol together, or neither for the fixed grid")

    @property
    def adaptive(self) -> bool:
        """True where tolerances choose the steps."""
        return self.rtol is not None


# Settings alone: no leaf, all of it the key of a compilation.
jax.tree_util.register_dataclass(
    Solve, data_fields=[], meta_fields=[setting.name for setting in fields(Solve)]
)


class Stats(NamedTuple):
    """What happened to each sample's path."""

    steps: Int[Array, " M"]  # steps taken, rejected ones included
    solved: Bool[Array, " M"]  # the solver reached the end
    finite: Bool[Array, " M"]  # every number of the result is finite


def integrate(
    vector_field: Callable, args: PyTree, state: PyTree, start: Scalar, end: Scalar, solve: Solve
) -> tuple[PyTree, Int[Array, ""], Bool[Array, ""]]:
    """One sample's state carried by `d state/dtau = vector_field(tau, state, args)` from start to
    end.

    Returns:
        The state at the end, the number of steps, and whether the solver got there.
    """
    return _diffeqsolve(diffrax.ODETerm(vector_field), args, state, start, end, solve)


def over_samples(function: Callable, solve: Solve, *arrays: PyTree) -> PyTree:
    """`function` mapped over the leading axis, at most `solve.batch_size` samples at a time."""
    count = jax.tree.leaves(arrays)[0].shape[0]
    if count <= solve.batch_size:
        return jax.vmap(function)(*arrays)
    return jax.lax.map(lambda row: function(*row), arrays, batch_size=solve.batch_size)


def raise_if_failed(solve: Solve, stats: Stats) -> None:
    """Say which samples failed and what to do; silent inside `jit`, where nothing can be known."""
    if not solve.throw or not _checks.is_concrete(stats.finite):
        return
    unsolved, bad = int(jnp.sum(~stats.solved)), int(jnp.sum(~stats.finite))
    if unsolved:
        raise FloatingPointError(
            f"{unsolved} of {len(stats.solved)} paths did not reach their end in {solve.max_steps} "
            "steps: loosen rtol and atol, raise max_steps, or use the fixed grid "
            "(Solve(throw=False) returns what there is, with .stats)"
        )
    if bad:
        raise FloatingPointError(
            f"{bad} of {len(stats.finite)} results hold NaN or infinity: check that the score is "
            "finite on the whole path; with base=None a density ratio may have overflowed, which "
            "base=data avoids (Solve(throw=False) returns what there is, with .stats)"
        )


def stats_of(result: PyTree, steps: Int[Array, " M"], solved: Bool[Array, " M"]) -> Stats:
    """Stats of M samples whose results are the leaves of `result`."""
    flags = [
        jnp.all(jnp.isfinite(leaf.reshape(len(steps), -1)), -1) for leaf in jax.tree.leaves(result)
    ]
    return Stats(steps, solved, functools.reduce(jnp.logical_and, flags))


def integrate_noisy(
    vector_field: Callable,
    args: PyTree,
    state: Array,
    clock: Array,
    key: PRNGKeyArray,
    solve: Solve,
) -> tuple[Array, Int[Array, ""], Bool[Array, ""]]:
    """One sample's state under `d state = vector_field dw + dB_w` on the nodes of a rising clock w.

    The Brownian path is fixed by `key` and the nodes. Returns as `integrate`.
    """
    brownian = _GridBrownian(clock[0], clock[-1], clock, key, state.shape)
    terms = diffrax.MultiTerm(
        diffrax.ODETerm(vector_field), diffrax.ControlTerm(_unit_diffusion, brownian)
    )
    return _on_grid(terms, args, state, clock, solve)


class _GridBrownian(diffrax.AbstractPath):
    """A Brownian path known at the nodes of a grid: increment i is drawn from `fold_in(key, i)`.

    diffrax's own either refuse to be differentiated or, in float32, cannot tell the first steps of
    a clock that runs from 1e-4 to 2e5 apart.
    """

    t0: Array
    t1: Array
    clock: Array
    key: Array
    shape: tuple[int, ...] = eqx.field(static=True)

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        step = jnp.argmin(jnp.abs(self.clock - t0))
        unit = jax.random.normal(jax.random.fold_in(self.key, step), self.shape, self.clock.dtype)
        return jnp.sqrt(t1 - t0) * unit


def _diffeqsolve(term, args, state, start, end, solve):
    if not solve.adaptive:
        return _on_grid(term, args, state, grid(start, end, solve), solve)
    return _solve(
        term,
        args,
        state,
        start,
        end,
        diffrax.PIDController(rtol=solve.rtol, atol=solve.atol),
        solve.max_steps,
        solve,
    )


def _on_grid(term, args, state, nodes, solve):
    return _solve(
        term, args, state, nodes[0], nodes[-1], diffrax.StepTo(ts=nodes), solve.steps, solve
    )


def _solve(term, args, state, start, end, controller, max_steps, solve):
    solution = diffrax.diffeqsolve(
        term,
        solve.solver,
        start,
        end,
        None,
        state,
        args,
        saveat=diffrax.SaveAt(t1=True),
        stepsize_controller=controller,
        adjoint=solve.adjoint,
        max_steps=max_steps,
        throw=False,
    )
    final = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
    return final, solution.stats["num_steps"], solution.result == diffrax.RESULTS.successful


def grid(start: Scalar, end: Scalar, solve: Solve) -> Array:
    """`steps + 1` noise levels from start to end, evenly spaced in tau^(1/rho)."""
    start = jnp.asarray(start)
    end = jnp.asarray(end, start.dtype)
    bent = jnp.linspace(start ** (1 / solve.rho), end ** (1 / solve.rho), solve.steps + 1)
    return (bent**solve.rho).at[0].set(start).at[-1].set(end)


def _unit_diffusion(clock, x, args):
    return lineax.IdentityLinearOperator(jax.eval_shape(lambda: x))
