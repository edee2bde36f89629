r"""The numerics of a path: its settings, its grid, and the integration of one sample's state.

The only file that calls diffrax. Paths on a fixed grid of an explicit rule of an order up to 3,
Heun's among them, are walked here (`walk`), by diffrax's table of the rule. Fixed grids are Karras
et al.'s (2022, arXiv 2206.00364, eq. 5),

    tau_i = (tau_max^(1/rho) + i/steps (tau_min^(1/rho) - tau_max^(1/rho)))^rho,

the times to step to; with tolerances a PID controller chooses the steps.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, cast

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from scoresens import _checks
from scoresens.laws.bumps import over_blocks
from scoresens.laws.processes import Scalar

FLAGS = 2**24  # numbers that are looked at side by side for NaN


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
        adjoint: how diffrax differentiates the paths that it solves, adaptive ones and those of an
            order above 3; `diffrax.ForwardMode()` for forward-mode derivatives of these.
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
    grid_error: Float[Array, " M"] | None = None  # of the log-densities followed, nats: more steps
    trace_error: Float[Array, " M"] | None = None  # the same, of the trace: more probes


def integrate(
    vector_field: Callable,
    args: PyTree,
    state: PyTree,
    start: Scalar,
    end: Scalar,
    solve: Solve,
    *,
    count: Callable | None = None,
) -> tuple:
    """One sample's state carried by `d state/dtau = vector_field(tau, state, args)` from start to
    end.

    Args:
        count: `(tau, state, args) -> flags`, taken at the end of every step.

    Returns:
        The state at the end, the number of steps, and whether the solver got there; then, with
        `count`, at how many steps each flag was up.
    """
    leaves, shape = jax.tree.flatten(state)  # diffrax stumbles over empty parts of a tree

    def field(tau, leaves, args):
        rates = jax.tree.leaves(vector_field(tau, shape.unflatten(leaves), args))
        return [rate.astype(leaf.dtype) for rate, leaf in zip(rates, leaves, strict=True)]

    saves = [diffrax.SubSaveAt(t1=True)]
    if count is not None:

        def flags(tau, leaves, args):  # as numbers, which are infinite where no step was
            return jnp.asarray(count(tau, shape.unflatten(leaves), args), float)

        saves.append(diffrax.SubSaveAt(steps=True, fn=flags))
    final, *seen, steps, solved = _diffeqsolve(field, args, leaves, start, end, solve, saves)
    state = shape.unflatten(final)
    if count is None:
        return state, steps, solved
    counts = jnp.sum(jnp.where(jnp.isfinite(seen[0]), seen[0], 0), 0).astype(int)
    return state, steps, solved, counts


def over_samples(function: Callable, solve: Solve, *arrays: PyTree) -> PyTree:
    """`function` mapped over the leading axis, at most `solve.batch_size` samples at a time."""
    return in_batches(function, solve.batch_size, *arrays)


def in_batches(function: Callable, batch_size: int, *arrays: PyTree) -> PyTree:
    """`function` mapped over the leading axis, at most `batch_size` rows side by side.

    All batches are of one size, the last begins early: one program, whose results are written where
    they stay (`lax.map` with a batch size has a second program for what is left over, and a copy of
    all results to join them).
    """
    count, mapped = jax.tree.leaves(arrays)[0].shape[0], jax.vmap(function)
    if count <= batch_size:
        return mapped(*arrays)

    def add(found, block):
        return jax.tree.map(block.put, found, mapped(*jax.tree.map(block.rows, arrays)))

    whole = jax.eval_shape(mapped, *arrays)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), whole)
    parts = -(-count // batch_size)
    return over_blocks(add, empty, count, -(-count // parts))


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
            "finite on the whole path; or a density ratio overflowed, of what the base's law has "
            "next to nothing of where paths go: with base=None take base=data, with base=data give "
            "the points a bandwidth, or leave those of weight 0 out "
            "(Solve(throw=False) returns what there is, with .stats)"
        )


def stats_of(
    result: PyTree,
    steps: Int[Array, " M"],
    solved: Bool[Array, " M"],
    errors: tuple[Array, Array] | None = None,
) -> Stats:
    """Stats of M samples whose results are the leaves of `result`."""
    flags = [_finite(leaf) for leaf in jax.tree.leaves(result)]
    finite = functools.reduce(jnp.logical_and, flags)
    return Stats(steps, solved, finite, *(errors or (None, None)))


@jax.jit
def _finite(leaf):
    """Whether all numbers of each row are finite, a few rows at a time: XLA makes a table of their
    flags."""
    rows = leaf.reshape(len(leaf), -1)
    few = max(1, FLAGS // max(1, rows.shape[1]))
    return in_batches(lambda row: jnp.all(jnp.isfinite(row)), few, rows)


class Tableau(NamedTuple):
    """An explicit Runge-Kutta rule: stage j is at `c[j]` of the step, reached by weights `a[j]`."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


def tableau(solve: Solve) -> Tableau:
    """The solver's rule, for paths that need its stages; refuses what has no fixed stages."""
    if solve.adaptive:
        raise ValueError(
            "the reverse SDE and attribution run on the fixed grid: leave rtol and atol out"
        )
    if isinstance(solve.solver, diffrax.Euler):
        return Tableau((0.0,), ((),), (1.0,))
    table = _explicit(solve.solver)
    if table is None:
        raise ValueError(
            "the reverse SDE and attribution need an explicit Runge-Kutta solver, such as "
            f"diffrax.Heun() or diffrax.Tsit5(), got {type(solve.solver).__name__}"
        )
    rows = ((), *(tuple(map(float, row)) for row in table.a_lower or ()))
    return Tableau((0.0, *map(float, table.c)), rows, tuple(map(float, table.b_sol)))


def by_nodes(solve: Solve) -> bool:
    """Whether log-densities are better followed from node to node (`flow._nodes`, order 4) than by
    the solver itself: on fixed grids of explicit rules of an order up to 3."""
    euler = isinstance(solve.solver, diffrax.Euler)
    if solve.adaptive or not (euler or _explicit(solve.solver)):
        return False
    return cast(int, solve.solver.order(cast(Any, None))) <= 3


def _explicit(solver):
    """The table of an explicit Runge-Kutta solver, else None."""
    table = getattr(solver, "tableau", None)
    explicit = isinstance(table, diffrax.ButcherTableau) and not table.implicit
    return table if explicit else None


def walk(
    evaluate: Callable,
    state: tuple,
    before: PyTree,
    nodes: Array,
    solve: Solve,
    *,
    kicks: Array | None = None,
    taps: PyTree = None,
    to_last: bool = False,
) -> tuple[tuple, PyTree, PyTree]:
    """One sample's state carried over the nodes of a grid, with what was seen at each stage.

        k_j = (t_{i+1} - t_i) rate(y_j) + kick_i,    y_j = y_i + sum_l a_jl k_l

    Args:
        evaluate: `(t, state, before, tap, j) -> (rates, memory, seen)`; `before` is the memory of
            the last node passed, `tap` this stage's own slice of `taps`, `j` its number in the
            step: 0 is the node itself.
        state: a tuple; kicks act on its first part.
        before: a memory for the first node to begin with.
        nodes: `[S + 1]`.
        kicks: `[S, *shape]`, noise increments.
        taps: leaves `[S, stages, ...]`, what is injected at each stage: the gradient with respect
            to them is the discrete adjoint. Each step is checkpointed.
        to_last: evaluate at the last node too, by a step of no length: one more evaluation a stage,
            where a third copy of the networks would take longer to compile than to run.

    Returns:
        The state at the end, the memory of the last step's first node, all that was seen, `[S,
        stages, ...]`.
    """

    table = tableau(solve)

    @jax.checkpoint
    def step(carry, given):
        state, before = carry
        start, size, kick, tap = given
        gains, seen = [], []
        for j, (c, row) in enumerate(zip(table.c, table.a, strict=True)):
            here = _combine(state, row, gains)
            own = jax.tree.map(lambda leaf, j=j: leaf[j], tap)
            rates, memory, sight = evaluate(start + c * size, here, before, own, j)
            gain = jax.tree.map(lambda rate, y: jnp.asarray(size * rate, y.dtype), rates, state)
            gains.append(gain if kick is None else (gain[0] + kick, *gain[1:]))
            seen.append(sight)
            if j == 0:
                before = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), memory, before)
        return (_combine(state, table.b, gains), before), _stack(seen)

    if to_last:
        nodes = jnp.append(nodes, nodes[-1])
        kicks = None if kicks is None else jnp.concatenate([kicks, jnp.zeros_like(kicks[:1])])
    given = (nodes[:-1], jnp.diff(nodes), kicks, taps)
    (state, before), seen = jax.lax.scan(step, (state, before), given)
    return state, before, seen


def _combine(state, weights, gains):
    """state + sum_l weights_l gains_l, skipping the weights that are 0."""
    for weight, gain in zip(weights, gains, strict=True):
        if weight != 0:
            state = jax.tree.map(lambda y, k, w=weight: y + w * k, state, gain)
    return state


def _stack(parts):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)


def _diffeqsolve(vector_field, args, state, start, end, solve, saves):
    if solve.adaptive:
        controller = diffrax.PIDController(rtol=solve.rtol, atol=solve.atol)
        nodes, max_steps = (start, end), solve.max_steps
    else:
        nodes, max_steps = grid(start, end, solve), solve.steps
        controller = diffrax.StepTo(ts=nodes)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field),
        solve.solver,
        nodes[0],
        nodes[-1],
        None,
        state,
        args,
        saveat=diffrax.SaveAt(subs=saves),
        stepsize_controller=controller,
        adjoint=solve.adjoint,
        max_steps=max_steps,
        throw=False,
    )
    final, *seen = cast(tuple, solution.ys)
    final = jax.tree.map(lambda leaf: leaf[-1], final)
    solved = solution.result == diffrax.RESULTS.successful
    return final, *seen, solution.stats["num_steps"], solved


def pace(tau: Scalar, start: Scalar, end: Scalar, solve: Solve) -> Array:
    """d log tau / d i at a level of the grid from start to end, i the number of the node."""
    bend = 1 / solve.rho
    return solve.rho * (end**bend - start**bend) / (solve.steps * jnp.asarray(tau) ** bend)


def grid(start: Scalar, end: Scalar, solve: Solve) -> Array:
    """`steps + 1` noise levels from start to end, evenly spaced in tau^(1/rho)."""
    start = jnp.asarray(start)
    end = jnp.asarray(end, start.dtype)
    bent = jnp.linspace(start ** (1 / solve.rho), end ** (1 / solve.rho), solve.steps + 1)
    return (bent**solve.rho).at[0].set(start).at[-1].set(end)
