"""Clocks that benchmarks share."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def in_turns(programs: dict[str, Callable], turns: int) -> dict[str, np.ndarray]:
    """Seconds `[turns]` of each program; compiled before, run in turn."""
    for program in programs.values():
        jax.block_until_ready(program())
    seconds = {name: [] for name in programs}
    for _ in range(turns):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def by_both_clocks(programs: dict[str, Callable], turns: int) -> dict[str, np.ndarray]:
    """Seconds `[turns, 2]` of each program, the wall's and the processor's."""
    for program in programs.values():
        jax.block_until_ready(program())
    seconds: dict[str, list] = {name: [] for name in programs}
    for _ in range(turns):
        for name, program in programs.items():
            start = np.array([time.perf_counter(), time.process_time()])
            jax.block_until_ready(program())
            seconds[name].append(np.array([time.perf_counter(), time.process_time()]) - start)
    return {name: np.array(values) for name, values in seconds.items()}


def matrix_rate(rows: int = 1280, inner: int = 784, columns: int = 2048, turns: int = 20) -> float:
    """Floating-point operations a second of jnp.dot of [rows, inner] by [inner, columns]."""
    product = jax.jit(jnp.dot)
    keys = jax.random.split(jax.random.key(0))  # a card multiplies ones faster than numbers
    a, b = jax.random.normal(keys[0], (rows, inner)), jax.random.normal(keys[1], (inner, columns))
    seconds = in_turns({"product": lambda: product(a, b)}, turns)["product"]
    return 2 * rows * inner * columns / float(np.median(seconds))
