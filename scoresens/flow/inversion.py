r"""From images back to the noise, and the route, that make them.

Along the probability flow a noise is all there is to find: `encode` climbs to it. Along the reverse
SDE (1.2), `dz = D dw + dB_w` with `z = x^ / tau^2`, `w = 1 / tau^2`, an image is made by a noise
and the kicks of every step. Noise the image itself, from the data end up,

    x_i = x_{i+1} + sqrt(tau_i^2 - tau_{i+1}^2) n_i,      x_S the image,      z_i = w_i x_i

and let each kick be what the sampler's own step wants to go from z_i to z_{i+1}. By Euler's rule it
is what the step leaves, `z_{i+1} - z_i - D dw`. By others the later stages see the kick as well: it
is the fixed point of adding to it what is left, which draws nearer by a half or better at each
turn where the denoiser contracts. The route then ends at the image, to rounding.

References: Huberman-Spiegelglas et al. 2023, arXiv 2304.06140; Nie et al. 2023, arXiv 2311.01410.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scoresens import _checks
from scoresens._pytrees import register_dataclass
from scoresens.flow.diffusion import Brownian
from scoresens.flow.routes import Diffusion, Flow, Reverse, Route
from scoresens.flow.sampling import encode
from scoresens.flow.solve import Solve, Stats, grid, over_samples, stats_of, walk
from scoresens.flow.starts import checked_start, kick_key, lowest_level, noise_end
from scoresens.laws.processes import Process, check_gaussian
from scoresens.laws.scores import Score, canonical_denoiser

ROUNDS = 60  # of adding to a kick what is left
ROUNDING = 16  # roundings of the state, at which nothing is left


@register_dataclass
@dataclass(frozen=True)
class Replay(Reverse):
    """The reverse SDE along kicks that are given. Made by `invert`.

    Args:
        kicks: `[M, steps, *shape]`, increments of z (1.2), of the grid of one `Solve`.
    """

    kicks: Float[Array, "..."]

    def of_samples(self, count):
        if len(self.kicks) != count:
            raise ValueError(
                f"the route replays the kicks of {len(self.kicks)} samples, got the noise of "
                f"{count}: give the noise that invert returned with it"
            )
        return self

    def brownian(self, process, noise, solve):
        hat, tau = noise_end(process, noise)
        if self.kicks.shape != (solve.steps, *noise.shape):
            raise ValueError(
                f"the route replays kicks of shape {self.kicks.shape}, and this path has "
                f"{(solve.steps, *noise.shape)}: give the solve that invert was given"
            )
        clock = grid(tau, lowest_level(process, solve), solve) ** -2
        return Brownian(clock[0] * hat, clock, self.kicks)


class Inversion(NamedTuple):
    """What makes M images: any verb takes the noise with the route."""

    noise: Float[Array, "M *shape"]  # in the process's frame, at t_max
    route: Route
    stats: Stats


def invert(
    process: Process,
    score: Score,
    images: Float[Array, "M *shape"],
    *,
    route: Route = Flow(),
    solve: Solve = Solve(),
) -> Inversion:
    """The noise, and the route, that a score makes given images with.

    Args:
        process: the forward process.
        score: `score(t, x)` of one sample.
        images: `[M, *shape]` data, taken to be at noise level `solve.tau_min`.
        route: `Flow()`, which climbs the probability flow; or `Diffusion(key)`, which draws a
            noising of each image and finds the kicks of its way back, as DDPM inversion does.
        solve: the numerics, which the verbs that go down again must be given too; along the SDE
            the grid must be fixed, the solver an explicit Runge-Kutta one.

    Returns:
        Inversion: `noise [M, *shape]` and `route` for `sample`, `sample_sensitivity`,
            `counterfactual`, `attribute`: along the flow the way back ends at the image up to the
            solver's error, along the SDE to rounding.

    Raises:
        ValueError: shapes, dtypes or a score that do not fit, another route.
        FloatingPointError: kicks that were not found, or results that are not finite (outside
            `jit`).

    Notes:
        Cost: of the flow, that of `encode`. Of the SDE with `diffrax.Euler()` two or three network
        evaluations a step, with Heun's rule up to some forty in float32 and a hundred in float64.
        Between two modes, where the denoiser expands, Heun's kicks may not be found: Euler's
        always are. Kicks found so are no fresh Brownian path's: they hold the image.

    References:
        Huberman-Spiegelglas et al. 2023, arXiv 2304.06140; Nie et al. 2023, arXiv 2311.01410.
    """
    if isinstance(route, Flow):
        found = encode(process, score, images, solve=solve)
        return Inversion(found.x, route, found.stats)
    if not isinstance(route, Diffusion):
        raise ValueError(f"invert takes route=Flow() or Diffusion(key), got {type(route).__name__}")
    images, score = checked_start(process, score, images, name="images")
    check_gaussian(process, "the reverse SDE")
    noise, kicks, stats = _invert(process, score, images, route.of_samples(len(images)), solve)
    _raise_if_not_found(solve, stats)
    return Inversion(noise, Replay(kicks), stats)


@functools.partial(jax.jit, static_argnames="solve")
def _invert(process, score, images, route, solve):
    def drive(w, state, before, tap, stage):
        (z,) = state
        return (canonical_denoiser(process, score, w**-0.5, z / w),), before, None

    def one(image, route):
        noise, clock, wanted = _noised(process, image, route.key, solve)

        def step(z, given):
            target, ends = given
            allowed = ROUNDING * jnp.finfo(z.dtype).eps * jnp.max(jnp.abs(target))

            def reached(kick):
                return walk(drive, (z,), (), ends, solve, kicks=kick[None])[0][0]

            def nearer(carry):
                kick, left, rounds = carry
                kick = kick + left
                return kick, target - reached(kick), rounds + 1

            def more(carry):
                _, left, rounds = carry
                return (jnp.max(jnp.abs(left)) > allowed) & (rounds < ROUNDS)

            none = jnp.zeros_like(z)
            kick, left, _ = jax.lax.while_loop(more, nearer, (none, target - reached(none), 0))
            return target - left, (kick, jnp.max(jnp.abs(left)) <= allowed)

        ends = jnp.stack([clock[:-1], clock[1:]], 1)
        _, (kicks, found) = jax.lax.scan(step, wanted[0], (wanted[1:], ends))
        return noise, kicks, found[-1]

    noise, kicks, found = over_samples(one, solve, images, route)
    return noise, kicks, stats_of((noise, kicks), jnp.full(len(images), solve.steps), found)


def _noised(process, image, key, solve):
    """A noising of one image: its noise, the clock of the SDE's grid, and z at each node."""
    top = process.noise_level(jnp.asarray(process.t_max, image.dtype))
    levels = grid(top, lowest_level(process, solve), solve)
    unit = jax.vmap(lambda i: jax.random.normal(kick_key(key, i), image.shape, image.dtype))
    steps = jnp.sqrt(levels[:-1] ** 2 - levels[1:] ** 2)
    rises = jax.vmap(jnp.multiply)(steps, unit(jnp.arange(solve.steps)))
    path = image + jnp.cumsum(rises[::-1], 0)[::-1]
    noise = process.from_canonical(jnp.asarray(process.t_max, image.dtype), path[0])
    path = jnp.concatenate([noise_end(process, noise)[0][None], path[1:], image[None]])
    return noise, levels**-2, jax.vmap(jnp.multiply)(levels**-2, path)


def _raise_if_not_found(solve, stats):
    if not solve.throw or not _checks.is_concrete(stats.finite):
        return
    if bad := int(jnp.sum(~(stats.solved & stats.finite))):
        raise FloatingPointError(
            f"the kicks of {bad} of {len(stats.solved)} images were not found: take "
            "Solve(solver=diffrax.Euler()), whose kicks always are, or more steps, and check that "
            "the score is finite on the whole path (Solve(throw=False) returns what there is)"
        )
