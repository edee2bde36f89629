"""(7.3), (7.4) and (7.5): first on grids, then as estimated from samples."""

import functools

import grid_oracle
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss

LINE = ss.OU(theta=1.0, g=1.0, t_max=grid_oracle.T)
KEY = jax.random.key(5)
WAVES = grid_oracle.random_waves(20, 0)


@functools.cache
def solved(index):
    return grid_oracle.solve_line(WAVES[index])


@pytest.mark.slow
@pytest.mark.parametrize("index", range(20))
def test_the_laws_of_the_gap_on_grids(index):
    """Twenty wrong potentials: the identity to 1 %, and every inequality in its direction."""
    on = solved(index)
    laws.close(on.identity, on.energy, relative=0.01)
    assert on.energy < on.bound
    assert on.w2 < on.w2_first < on.w2_last


WIDE = max(range(20), key=lambda i: WAVES[i].height * WAVES[i].wave)


@pytest.mark.slow
def test_certificate_from_samples():
    """Within 4 standard errors of the grids, for the potential that is most wrong; the growth,
    which samples see from below, to 5 %."""
    on = solved(WIDE)
    noise = LINE.sample_prior((2000, 1), key=jax.random.key(0))
    found = ss.gap_certificate(
        LINE, WAVES[WIDE].potential, noise, key=KEY, solve=ss.Solve(steps=80)
    )
    _within(found.energy, on.bound)
    terms = (found.residual_reverse, found.residual_forward, found.prior_start, found.prior_end)
    sum_of_terms = sum(s * t.value for s, t in zip((1, -1, 1, -1), terms, strict=True))
    laws.close(sum_of_terms, found.energy.value, absolute=1e-12)
    stretch = found.w2.value / jnp.sqrt(found.energy.value)
    laws.close(stretch, on.w2_last / np.sqrt(on.bound), relative=0.05)
    assert int(found.kept) == 2000 and float(found.w2.high) > on.w2


@pytest.mark.slow
def test_gap_from_samples():
    """Both sides of (7.3), within 4 standard errors and the bias of 64 paths (2 %)."""
    on = solved(WIDE)
    noise = LINE.sample_prior((816, 1), key=jax.random.key(0))
    found = ss.ode_sde_gap(
        LINE, WAVES[WIDE].potential, noise, key=KEY, paths=64, solve=ss.Solve(steps=50)
    )
    _within(found.energy, on.energy, slack=0.02 * on.energy)
    _within(found.identity, on.energy, slack=0.02 * on.energy)
    laws.close(found.w2, on.w2_first, relative=0.1)


def _within(estimate, truth, slack=0.0):
    error = (float(estimate.high) - float(estimate.low)) / (2 * 1.96)
    assert error > 0
    assert abs(float(estimate.value) - truth) < 4 * error + slack


@pytest.mark.slow
def test_a_function_of_time_cancels():
    """(7.4) as a whole, path by path: rounding, over 100 nodes; the trapezoid is exact for what is
    linear in t."""
    wave = WAVES[0]
    noise = LINE.sample_prior((50, 1), key=jax.random.key(0))
    ask = functools.partial(ss.gap_certificate, LINE, key=KEY, solve=ss.Solve(steps=40))
    plain = ask(wave.potential, noise=noise)
    shifted = ask(lambda t, x: wave.potential(t, x) + 3 * t - 2, noise=noise)
    laws.close(shifted.energy.value, plain.energy.value, absolute=1e-10)
    assert abs(float(shifted.residual_reverse.value - plain.residual_reverse.value)) > 1


@pytest.mark.slow
def test_exact_potentials_have_no_gap():
    """In two dimensions, but for the prior, which is e^-t_max of the data's scale from the noised
    law."""
    process = ss.OU(theta=1.0, g=1.0, t_max=6.0)
    measure = laws.mixture()
    noise = process.sample_prior((64, 2), key=jax.random.key(0))
    found = ss.gap_certificate(
        process,
        lambda t, x: measure.noised_log_density(process, t, x),
        noise,
        key=KEY,
        solve=ss.Solve(steps=40),
    )
    laws.close(found.residual_reverse.value, 0.0, absolute=1e-9)
    assert abs(float(found.energy.value)) < 0.02


@pytest.mark.slow
def test_probes_leave_the_certificate_unbiased():
    wave, noise = WAVES[1], LINE.sample_prior((30, 1), key=jax.random.key(0))
    ask = functools.partial(ss.gap_certificate, LINE, wave.potential, noise, key=KEY)
    solve = ss.Solve(steps=20)
    exact = ask(solve=solve)
    one = ask(solve=solve, trace=ss.Hutchinson())  # on a line every probe is exact
    laws.close(one.energy.value, exact.energy.value, absolute=1e-9)


def cliff(t, x):
    """A potential that throws samples from beyond 2 to infinity."""
    return -jnp.vdot(x, x) + 0.3 * jnp.sin(x[0]) + jnp.where(jnp.abs(x[0]) > 2, 1e3 * x[0] ** 4, 0)


def test_paths_that_leave_are_left_out():
    noise = jnp.linspace(-2.5, 2.5, 20)[:, None]
    found = ss.gap_certificate(LINE, cliff, noise, key=KEY, solve=ss.Solve(steps=20))
    assert 2 <= int(found.kept) < 20 and bool(jnp.isfinite(found.energy.value))
    with pytest.raises(FloatingPointError, match="fewer than two paths"):
        ss.gap_certificate(LINE, cliff, 3 + jnp.abs(noise), key=KEY, solve=ss.Solve(steps=20))


@pytest.mark.parametrize("verb", [ss.gap_certificate, functools.partial(ss.ode_sde_gap, paths=4)])
def test_gaps_within_jit(verb):
    """The same numbers, some paths left out; where none stays, none, and `kept` says so."""

    def ask(noise):
        return verb(LINE, cliff, noise, key=KEY, solve=ss.Solve(steps=4))

    noise, compiled = jnp.linspace(-2.5, 2.5, 20)[:, None], jax.jit(ask)
    found, expected = compiled(noise), ask(noise)
    assert 2 <= int(found.kept) < 20
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        laws.close(one, other, relative=1e-9)
    nowhere = compiled(10 + jnp.abs(noise))
    assert int(nowhere.kept) == 0 and bool(jnp.isnan(nowhere.energy.value))


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("verb", "noise", "options", "words"),
    [
        (ss.gap_certificate, jnp.ones((1, 1)), {}, "two samples or more"),
        (ss.ode_sde_gap, jnp.ones((30, 1)), {}, "at least 202"),
        (ss.ode_sde_gap, jnp.ones((300, 1)), {"paths": 6}, "multiple of 4"),
        (ss.gap_certificate, jnp.ones((4, 1)), {"key": None}, "needs key"),
    ],
)
def test_bad_gaps(verb, noise, options, words):
    with pytest.raises(ValueError, match=words):
        verb(LINE, WAVES[0].potential, noise, **{"key": KEY, **options})


def test_a_gap_asks_for_a_potential():
    with pytest.raises(ValueError, match="one floating-point number"):
        ss.gap_certificate(LINE, lambda t, x: -x, jnp.ones((4, 1)), key=KEY)
