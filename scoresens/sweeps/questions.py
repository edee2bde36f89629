"""Sweeps: samples x directions (or data points) x seeds, in blocks, on a mesh of devices.

A sweep asks one question of many samples. It is cut into blocks (`stores.Layout`) that know nothing
of one another: each is one compiled program on the process's own devices,

    shard_map over a mesh ("samples", "directions"):  each device its rows and its directions,
                                                      or its rows and its data points

with no communication inside, but for data points: once, between the paths and the tables of points
(`shards`). Several processes, on one host or on many, take the blocks in turn. What is random
belongs to the number of the sample, `fold_in(key of the seed, number)`, so that no number hangs on
the blocks, the devices or the processes; only roundings do.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from scoresens.flow.routes import Diffusion, Flow, Route
from scoresens.flow.solve import Solve
from scoresens.flow.starts import fold
from scoresens.flow.traces import Hutchinson, TraceEstimator
from scoresens.laws.learned import Base
from scoresens.laws.measures import Measure, Points
from scoresens.laws.perturbations import Perturbation
from scoresens.laws.processes import Process
from scoresens.laws.scores import Score
from scoresens.laws.shards import divided
from scoresens.laws.shards import specs as specs_of
from scoresens.sensitivity.attribution import attribute
from scoresens.sensitivity.functionals import Functional
from scoresens.sensitivity.tables import is_on_host
from scoresens.sensitivity.tangents import sample_sensitivity
from scoresens.sweeps.store import Block, Field, Layout, Store

MOST = 2048  # rows of a block
STREAMED = 16  # of a question whose data are streamed
AXES = ("samples", "directions")
RANKED = ("top_values", "top_indices", "bottom_values", "bottom_indices")


def mesh_of(shape: tuple[int, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of samples x directions over the first of the devices: by default all of this
    process, along the samples.

    Raises:
        ValueError: if there are not so many devices.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    shape = (len(devices), 1) if shape is None else shape
    count = shape[0] * shape[1]
    if count > len(devices):
        raise ValueError(
            f"a mesh of {shape[0]} x {shape[1]} wants more than {len(devices)} devices"
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices[:count])


class Question(NamedTuple):
    """What is asked of every sample: made by `sensitivities` and `attributions`.

    Attributes:
        process: whose prior the noise is drawn from.
        shape: of one sample.
        mesh: whose devices a block is computed on.
        multiple: blocks have a multiple of so many rows.
        draws: whether probes or Brownian paths are drawn, from a key a sample.
        directions: how many there are.
        fields: the dtype, and the dimensions with their sizes after the samples, of each result.
        ask: `(which directions [K], noise [M, *shape], keys [M] or None) -> arrays` by field.
        program: the compiled part of `ask` for M samples and K directions, to be measured; or None.
    """

    process: Process
    shape: tuple[int, ...]
    mesh: Mesh
    multiple: int
    draws: bool
    directions: int
    fields: Mapping[str, tuple[str, tuple[tuple[str, int], ...]]]
    ask: Callable[[np.ndarray, Array, Array | None], Mapping[str, Array]]
    program: Callable[[int, int], Any] | None


def sensitivities(
    process: Process,
    score: Score,
    perturbation: Perturbation,
    *,
    base: Base,
    trace: TraceEstimator = Hutchinson(1),
    prior: Measure | None = None,
    route: Route = Flow(),
    mesh: Mesh | None = None,
    solve: Solve = Solve(),
) -> Question:
    """The question of `sample_sensitivity`: samples, and tangents by direction.

    Args:
        process, score, perturbation, base, trace, prior, solve: as in `sample_sensitivity`.
        route: as there; a sample's Brownian path is drawn from the route's key and its own.
        mesh: of `mesh_of`.
    """
    mesh, shape, total = mesh or mesh_of(), perturbation.shape, len(perturbation)
    across, draws = mesh.shape["directions"], route.noisy or _draws(base, trace)

    def one(perturbation, rest, noise, keys):
        process, score, base, prior, route = rest
        found = sample_sensitivity(
            process, score, perturbation, noise, base=base, trace=trace, prior=prior,
            route=_of_rows(route, keys), key=keys, solve=solve,
        )  # fmt: skip
        return found.x, found.tangent

    def run(perturbation, rest, noise, keys):
        specs = Perturbation(tuple(map(_direction_specs, perturbation.parts)))
        out = (P("samples"), P("samples", "directions"))
        shard = _divided(one, mesh, (specs, P(), P("samples"), P("samples")), out)
        return shard(perturbation, rest, noise, keys)

    compiled, rest = jax.jit(run), (process, score, base, prior, route)

    def ask(which, noise, keys):
        padded = np.pad(which, (0, -len(which) % across), mode="edge")
        x, tangent = compiled(perturbation[padded], rest, noise, keys)
        return {"x": x, "tangent": tangent[:, : len(which)]}

    def program(rows, columns):
        chosen = perturbation[np.arange(columns)]
        return compiled.lower(chosen, rest, *_abstract(shape, rows, draws)).compile()

    sizes, dtype = _axes(shape)
    fields = {"x": (dtype, sizes), "tangent": (dtype, (("direction", total), *sizes))}
    down = mesh.shape["samples"]
    return Question(process, shape, mesh, down, draws, total, fields, ask, program)


def attributions(
    process: Process,
    score: Score,
    data: Points,
    functional: Functional,
    *,
    base: Base,
    trace: TraceEstimator = Hutchinson(1),
    prior: Measure | None = None,
    route: Route = Flow(),
    top: int | None = None,
    mesh: Mesh | None = None,
    solve: Solve = Solve(),
) -> Question:
    """The question of `attribute`, for a scalar functional: the score of every data point, or of
    the `top` largest and smallest.

    Args:
        process, score, data, functional, base, trace, prior, top, solve: as in `attribute`. Data on
            the host (`Points.on_host`) are read block by block, and one device works.
        route: as in `sensitivities`.
        mesh: of `mesh_of`, by default one device for data on the host; devices along its second
            axis divide the data among them.

    Raises:
        ValueError: for a functional that is no scalar, or data on the host with several devices.
    """
    mesh = mesh or mesh_of((1, 1) if is_on_host(data) else None)
    shape, draws = data.shape, route.noisy or _draws(base, trace)
    if is_on_host(data) and mesh.size > 1:
        raise ValueError(f"data on the host are read by one device, the mesh has {mesh.size}")
    _check_scalar(functional, shape)
    names = ("scores",) if top is None else RANKED
    shared = data if mesh.shape["directions"] == 1 else divided(data, mesh, "directions")
    of_data = base is data  # then also of each device's shard
    rest = (process, score, shared, functional, None if of_data else base, prior, route)

    def one(rest, noise, keys):
        process, score, data, functional, base, prior, route = rest
        found = attribute(
            process, score, data, functional, noise, base="data" if of_data else base,
            trace=trace, prior=prior, route=_of_rows(route, keys), key=keys, top=top, solve=solve,
        )  # fmt: skip
        return {name: getattr(found, name) for name in ("x", "value", *names)}

    @jax.jit
    def run(rest, noise, keys):
        specs = (P(), P(), specs_of(shared), P(), P(), P(), P())
        out = {name: P("samples") for name in ("x", "value", *names)}
        out |= {"scores": P("samples", "directions")} if top is None else {}
        return _divided(one, mesh, (specs, P("samples"), P("samples")), out)(rest, noise, keys)

    def ask(which, noise, keys):
        found = (one if is_on_host(data) else run)(rest, noise, keys)
        return found if top else found | {"scores": found["scores"][:, : len(data)]}

    def program(rows, columns):
        return run.lower(rest, *_abstract(shape, rows, draws)).compile()

    ranks = (("data", len(data)),) if top is None else (("rank", top),)
    sizes, dtype = _axes(shape)
    fields: dict[str, Any] = {"x": (dtype, sizes), "value": (dtype, ())}
    fields |= {n: ("int32" if n.endswith("indices") else dtype, ranks) for n in names}
    measured = None if is_on_host(data) else program
    return Question(process, shape, mesh, mesh.size, draws, 1, fields, ask, measured)


def _check_scalar(functional: Functional, shape: tuple[int, ...]) -> None:
    out = jax.eval_shape(functional, jax.ShapeDtypeStruct(shape, jnp.result_type(float))).shape
    if out:
        raise ValueError(
            f"attributions are of a scalar functional, this one returns shape {out} for a sample "
            f"of shape {shape}: sweep one component at a time"
        )


def _divided(rule, mesh, in_specs, out_specs):
    """The rule, each device at its own part."""
    return jax.shard_map(rule, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _of_rows(route: Route, keys: Array | None) -> Route:
    """The route of a block's samples, each on a Brownian path of the route's key and its own."""
    if not isinstance(route, Diffusion) or keys is None:
        return route
    numbers = jax.vmap(lambda key: jax.random.bits(jax.random.fold_in(key, 1)))(keys)
    return Diffusion(jax.vmap(lambda number: jax.random.fold_in(route.key, number))(numbers))


def _draws(base: Base, trace: TraceEstimator) -> bool:
    """Whether probes are drawn: against a measure, no trace is taken."""
    return not isinstance(base, Measure) and trace.needs_key


def _abstract(shape, rows, draws):
    """Noise and keys of so many samples, without their numbers."""
    noise = jax.ShapeDtypeStruct((rows, *shape), jnp.result_type(float))
    return noise, jax.eval_shape(lambda: fold(jax.random.key(0), rows)) if draws else None


# ------------------------------------------------------------------ blocks


def layout_of(
    question: Question,
    *,
    seeds: int,
    samples: int,
    memory: float,
    rows: int | None = None,
    columns: int | None = None,
) -> Layout:
    """How large blocks are, so that one of them fits the memory.

    Args:
        question: of `sensitivities` or `attributions`.
        seeds, samples: how many.
        memory: bytes for one block on all of the process's devices together.
        rows, columns: of a block, if they are not to be chosen.

    Returns:
        The layout. Directions are kept together as far as they fit; rows are a multiple of the
        devices that divide them.

    Raises:
        ValueError: if not even the smallest block fits.

    Notes:
        Compiles the question for few rows and for twice as many, reads from the compiler what a
        further row takes, and looks again at what came of it; 2,048 rows at most. A question that
        streams its data is given 16 rows.
    """
    least, across = question.multiple, question.mesh.shape["directions"]
    wide = min(question.directions, columns or question.directions)
    fit, wide = (rows, wide) if rows else _fitting(question, memory, wide, across)
    whole = max(least, min(fit, samples) // least * least)
    return Layout(seeds, samples, question.directions, whole, wide)


def _fitting(question, memory, columns, across) -> tuple[int, int]:
    """How many samples a block of so many columns may have, and how many columns are left if not
    even the least of them fits."""
    if question.program is None:
        return STREAMED, columns

    def taken(rows, columns):
        return bytes_of(question, rows, -(-columns // across) * across)

    few = 4 * question.multiple
    small, large = (taken(n, columns) for n in (few, 2 * few))
    each = max((large - small) / few, 1.0)
    rows = min(int((memory - (small - few * each)) / each), MOST)
    if rows >= few:  # else that line says little
        over = taken(rows, columns) / memory  # the line is not quite straight
        return int(rows / max(over, 1.0)), columns
    while (small := taken(question.multiple, columns)) > memory:
        if columns <= across:
            raise ValueError(
                f"a block of {question.multiple} samples takes {small / 2**30:.2g} GiB, and "
                f"{memory / 2**30:.2g} are to be used: give more memory, or fewer devices"
            )
        columns = -(-columns // 2)
    return question.multiple, columns


def bytes_of(question: Question, rows: int, columns: int) -> int:
    """What a block of a question that is compiled whole takes beside its arguments, on all devices
    together."""
    assert question.program is not None
    found = question.program(rows, columns).memory_analysis()
    return (found.temp_size_in_bytes + found.output_size_in_bytes) * question.mesh.size


def fields_of(question: Question, layout: Layout) -> dict[str, Field]:
    """The arrays of a store for a question."""
    first = (("seed", layout.seeds), ("sample", layout.samples))
    return {
        name: Field(
            tuple(dim for dim, _ in (*first, *rest)), tuple(n for _, n in (*first, *rest)), dtype
        )
        for name, (dtype, rest) in question.fields.items()
    }


class Ran(NamedTuple):
    """What a process did in one run of a sweep."""

    blocks: int  # made now
    left: int  # of this process's own
    seconds: float


def run(
    question: Question,
    keys: Sequence[Array],
    store: Store,
    *,
    share: tuple[int, int] = (0, 1),
    shown: Callable[[list[Block]], Iterable[Block]] = iter,
    stopping: Callable[[], bool] = lambda: False,
) -> Ran:
    """Makes the blocks that the store lacks.

    Args:
        question: of `sensitivities` or `attributions`.
        keys: a random key for each seed.
        store: where the blocks go; those that are whole there are passed over.
        share: (which, of how many) processes; each takes every n-th block.
        shown: what shows progress over the blocks.
        stopping: asked after every block; if true, the others are left.
    """
    start, made = time.monotonic(), 0
    local = store.layout.blocks()[share[0] :: share[1]]
    lacking = [block for block in local if not store.whole(block)]
    for block in shown(lacking):
        began = time.monotonic()
        found = _block(question, keys[block.seed], block, store.layout)
        store.write(block, found, seconds=round(time.monotonic() - began, 3), process=share[0])
        made += 1
        if stopping():
            break
    return Ran(made, len(lacking) - made, time.monotonic() - start)


def _block(question, key, block, layout):
    """The numbers of one block. It is computed at the full number of rows and columns, the last of
    a row or column too, so that there is one program."""
    begin, rows = block.sample.start, layout.rows
    for_noise, for_probes = jax.random.split(key)
    noise = question.process.sample_prior((rows, *question.shape), key=for_noise, first=begin)
    keys = fold(for_probes, rows, first=begin) if question.draws else None
    which = np.minimum(block.direction.start + np.arange(layout.columns), question.directions - 1)
    kept = {"direction": block.direction.stop - block.direction.start}
    kept["sample"] = block.sample.stop - begin

    def cut(name, part):
        dims = ("sample", *(dim for dim, _ in question.fields[name][1]))
        return np.asarray(part[tuple(slice(kept.get(dim)) for dim in dims)])

    found = question.ask(which, noise, keys)
    return {name: cut(name, part) for name, part in found.items()}


def _axes(shape):
    """The dimensions of one sample with their sizes, and the dtype of results."""
    sizes = tuple((f"axis_{i}", size) for i, size in enumerate(shape))
    return sizes, str(jnp.result_type(float))


def _direction_specs(part):
    """Coefficients are divided by direction, and with them components of which each has its own;
    others are everyone's."""
    divided = {".coefficients"}
    if part.single:
        divided |= {".measure.points", ".index", ".velocity"}

    def spec(path, leaf):
        return P("directions") if jax.tree_util.keystr(path) in divided else P()

    return jax.tree_util.tree_map_with_path(spec, part)
