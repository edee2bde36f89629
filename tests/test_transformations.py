"""Laws 11 and 12: precisions, jit, vmap, grad, devices, and how often a score is traced."""

import functools

import chex
import diffrax
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

import scoresens as ss

PROCESS, NOISE = laws.between_levels(ss.VP())
KEY = jax.random.key(0)
COARSE = ss.Solve(steps=12, tau_min=0.1)
FORWARD = ss.Solve(steps=12, tau_min=0.1, adjoint=diffrax.ForwardMode())


def measure(weights):
    """LAW with other weights."""
    _, means, covariances = laws.LAW
    return ss.GaussianMixture(weights, jnp.asarray(means), jnp.asarray(covariances))


WEIGHTS = jnp.asarray(laws.LAW.weights)


def samples(noise, weights, solve=COARSE):
    return ss.sample_ode(PROCESS, ss.exact_score(PROCESS, measure(weights)), noise, solve=solve).x


def tangents(noise, weights, solve=COARSE):
    return ss.sample_sensitivity(
        PROCESS,
        ss.exact_score(PROCESS, measure(weights)),
        laws.changes()["replace"][0],
        noise,
        base=laws.data_set(),
        solve=solve,
    ).tangent


def influences(noise, weights, solve=COARSE):
    return ss.attribute(
        PROCESS,
        ss.exact_score(PROCESS, measure(weights)),
        laws.data_set(),
        laws.first_and_square,
        noise,
        solve=solve,
    ).scores


VERBS = {"sample_ode": samples, "sample_sensitivity": tangents, "attribute": influences}


# ------------------------------------------------------------------ law 12


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in VERBS if name != "sample_ode"]


@pytest.fixture(scope="module", params=["sample_ode", *SLOW])
def verb(request):
    return VERBS[request.param]


def test_jit_and_vmap(verb):
    """Inside jit, and mapped over further axes, the numbers are those of the plain call."""
    plain = verb(NOISE, WEIGHTS)
    laws.close(jax.jit(verb)(NOISE, WEIGHTS), plain, absolute=1e-10)
    mapped = jax.vmap(lambda weights: verb(NOISE, weights))(jnp.stack([WEIGHTS, WEIGHTS[::-1]]))
    laws.close(mapped[0], plain, absolute=1e-10)
    laws.close(mapped[1], verb(NOISE, WEIGHTS[::-1]), absolute=1e-10)


@pytest.mark.parametrize("law", ["flow", "SDE"])
def test_times_of_euler_inside_jit(law):
    """Known there, and so checked there."""
    route = ss.Flow() if law == "flow" else ss.Diffusion(KEY)
    times, score = jnp.array([PROCESS.t_max, 0.3, 0.2]), ss.exact_score(PROCESS, laws.mixture())

    def ask(noise, times):
        return ss.sample_euler(PROCESS, score, noise, times, route=route).x

    plain = ask(NOISE, times)
    laws.close(jax.jit(lambda noise: ask(noise, times))(NOISE), plain, absolute=1e-10)
    laws.close(jax.jit(ask)(NOISE, times), plain, absolute=1e-10)
    rising = times[::-1]
    with pytest.raises(ValueError, match="times must fall"):
        jax.jit(lambda noise: ask(noise, rising))(NOISE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["toward", "remove", "reweight", "replace", "move"])
def test_checks_inside_jit(kind):
    """A finite change and a score's derivative, with numbers that are known there and with numbers
    that are not."""
    (change, _), data = laws.changes()[kind], laws.data_set()
    score, x = ss.exact_score(PROCESS, data), NOISE / 20

    def answers(noise, mass, t, change):
        given = {"mass": mass, "base": data, "solve": EULER}
        after = ss.counterfactual(PROCESS, score, change, noise, **given).x
        slope = ss.score_sensitivity(PROCESS, score, change, t, x, base=data).tangent
        return jnp.concatenate([after, slope])

    plain = answers(NOISE, 0.3, 0.5, change)
    laws.close(jax.jit(answers)(NOISE, 0.3, 0.5, change), plain, absolute=1e-10)
    laws.close(jax.jit(lambda x: answers(x, 0.3, 0.5, change))(NOISE), plain, absolute=1e-10)
    made = jax.jit(lambda x: answers(x, 0.3, 0.5, laws.changes()[kind][0]))
    laws.close(made(NOISE), plain, absolute=1e-10)


@pytest.mark.slow
def test_gradients_in_both_modes(verb):
    """Reverse through the path, with respect to noise and the law's weights, against central
    differences (1e-6: their rounding) and against forward mode."""
    rng = np.random.default_rng(0)
    toward = (jnp.asarray(rng.normal(size=NOISE.shape)), jnp.array([0.2, -0.1]))
    seed = rng.normal(size=verb(NOISE, WEIGHTS).shape)

    def value(noise, weights, solve=COARSE):
        return jnp.sum(seed * verb(noise, weights, solve))

    gradients = jax.grad(value, (0, 1))(NOISE, WEIGHTS)
    found = sum(jnp.vdot(g, v) for g, v in zip(gradients, toward, strict=True))
    step = 1e-5
    ends = [value(NOISE + s * toward[0], WEIGHTS + s * toward[1]) for s in (step, -step)]
    scale = np.sqrt(sum(float(jnp.vdot(g, g)) for g in gradients))
    laws.close(found, (ends[0] - ends[1]) / (2 * step), absolute=1e-6 * scale)
    forward = functools.partial(value, solve=FORWARD)
    laws.close(jax.jvp(forward, (NOISE, WEIGHTS), toward)[1], found, absolute=1e-10 * scale)


ZEROED = jnp.array([0.0, 0.3, 0.2, 0.0, 0.5, 0.4])  # of DATA's points


@functools.partial(jax.jit, static_argnames="solve")
def of_weighted_data(weights, mass, solve=COARSE):
    """Every verb's answer, the data's law being score and base."""
    data = laws.data_set().with_weights(weights)
    given, score = {"base": data, "solve": solve}, ss.exact_score(PROCESS, data)
    mask = np.array([False, True, False, True, False, False])
    x = PROCESS.from_canonical(0.5, NOISE / 20)
    change = ss.remove(data, mask) + ss.add(jnp.asarray(laws.DATA.new[None]))
    pixel = ss.functionals.pixel(0)
    return {
        "sample": ss.sample_ode(PROCESS, score, NOISE, trace=ss.Exact(), solve=solve)[:2],
        "score": ss.score_sensitivity(PROCESS, score, change, 0.5, x, base=data)[:2],
        "tangent": ss.sample_sensitivity(PROCESS, score, change, NOISE, **given).tangent,
        "attribution": ss.attribute(PROCESS, score, data, pixel, NOISE, **given).scores,
        "removed": ss.counterfactual(
            PROCESS, score, ss.remove(data, mask), NOISE, mass=mass, **given
        ).x,
    }


@pytest.mark.slow
def test_gradients_in_weights_that_are_zero_through_every_verb():
    """And in the mass of a removal of all that there is, whose weights end at zero, against
    one-sided differences of second order, good to 1e-6 of the largest."""
    toward = (jnp.array([0.7, -0.2, 0.1, 0.4, 0.3, 0.1]), -0.5)
    end = (ZEROED, 1.0)

    def at(step):
        return of_weighted_data(*(a + step * v for a, v in zip(end, toward, strict=True)))

    of_end = functools.partial(of_weighted_data, solve=FORWARD)
    _, forward = jax.jvp(of_end, end, toward)
    _, pull = jax.vjp(of_weighted_data, *end)
    step = 1e-5
    expected = jax.tree.map(
        lambda f0, f1, f2: (4 * f1 - 3 * f0 - f2) / (2 * step), *map(at, (0, step, 2 * step))
    )
    rng = np.random.default_rng(1)
    for name, slope in expected.items():
        scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slope))
        for found, leaf in zip(jax.tree.leaves(forward[name]), jax.tree.leaves(slope), strict=True):
            laws.close(found, leaf, absolute=1e-6 * scale)
        seed = jax.tree.map(jnp.zeros_like, expected)
        seed[name] = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), slope)
        back = sum(jnp.vdot(g, v) for g, v in zip(pull(seed), toward, strict=True))
        dotted = sum(map(jnp.vdot, *map(jax.tree.leaves, (seed[name], forward[name]))))
        laws.close(back, dotted, absolute=1e-9 * scale * 100)


def network(scale, t, x):
    return -scale * x / (1 + t**2)


WATCHED = [network]  # what runs in its place: the programs know `counted`, not this


def counted(scale, t, x):
    return WATCHED[-1](scale, t, x)


def plain_counted(t, x):
    return counted(1.0, t, x)


EULER = ss.Solve(solver=diffrax.Euler(), steps=2, tau_min=0.1)
CALLS = {
    "sample_ode": lambda score, noise: ss.sample_ode(PROCESS, score, noise, solve=EULER),
    "log_density": lambda score, noise: ss.sample_ode(
        PROCESS, score, noise, trace=ss.Hutchinson(), key=KEY, solve=EULER
    ),
    "sample_sde": lambda score, noise: ss.sample_sde(PROCESS, score, noise, key=KEY, solve=EULER),
    "sample_sensitivity": lambda score, noise: ss.sample_sensitivity(
        PROCESS, score, laws.changes()["add"][0], noise, key=KEY, solve=EULER
    ),
    "attribute": lambda score, noise: ss.attribute(
        PROCESS, score, laws.data_set(), ss.functionals.pixel(0), noise, solve=EULER
    ),
    "loss_sensitivity": lambda score, noise: ss.loss_sensitivity(
        PROCESS, score, laws.data_set(), noise, levels=jnp.ones(1), key=KEY, solve=EULER
    ),
    "counterfactual": lambda score, noise: ss.counterfactual(
        PROCESS,
        score,
        laws.changes()["add"][0],
        noise,
        mass=float(noise[0, 0]) ** 2 / 1e4,
        base=laws.data_set(),
        solve=EULER,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_repeated_calls_trace_once(name, monkeypatch):
    """With other noise, other parameters of the score, and other masses: after the first call only
    the shape check at the door, one abstract evaluation, looks at the score."""
    call = CALLS[name]
    call(Partial(counted, 1.0), NOISE)
    call(plain_counted, NOISE)
    chex.clear_trace_counter()  # of the other cases
    monkeypatch.setattr(f"{__name__}.WATCHED", [chex.assert_max_traces(network, 4)])
    for scale in (1.1, 1.2, 1.3):
        call(Partial(counted, scale), scale * NOISE)
    call(plain_counted, 2 * NOISE)


@pytest.fixture(scope="module")
def mesh():
    assert jax.device_count() == 8
    return Mesh(np.array(jax.devices()), ("samples",))


@pytest.fixture(scope="module")
def many():
    return (
        laws.TOP
        * jnp.asarray(np.random.default_rng(1).normal(size=(16, 2)))
        * float(PROCESS.alpha(PROCESS.t_max))
    )


def test_samples_placed_on_eight_devices(verb, mesh, many):
    """Sharding is the caller's: arrays laid over devices give one device's numbers, and stay
    there."""
    placed = jax.device_put(many, NamedSharding(mesh, P("samples")))
    found = jax.jit(verb)(placed, WEIGHTS)
    laws.close(found, verb(many, WEIGHTS), absolute=1e-10)
    assert len(found.sharding.device_set) == 8


def test_samples_mapped_over_eight_devices(verb, mesh, many):
    mapped = jax.shard_map(
        verb, mesh=mesh, in_specs=(P("samples"), P()), out_specs=P("samples"), check_vma=False
    )
    laws.close(jax.jit(mapped)(many, WEIGHTS), verb(many, WEIGHTS), absolute=1e-10)


# ------------------------------------------------------------------ law 11


def given(dtype):
    """The same numbers in one precision."""
    cast = functools.partial(jnp.asarray, dtype=dtype)
    law = ss.GaussianMixture(*map(cast, laws.LAW))
    data = ss.Points(cast(laws.DATA.points), cast(laws.DATA.weights), laws.DATA.bandwidth)
    change = ss.replace(data, [2], cast(laws.DATA.new[None]))
    x = laws.LAW.sample(np.random.default_rng(2), 4)
    return law, data, change, cast(np.asarray(NOISE)), cast(x)


@jax.jit
def answers(law, data, change, noise, x):
    """Every kind of answer."""
    score, of_data = ss.exact_score(PROCESS, law), ss.exact_score(PROCESS, data)
    solve = ss.Solve(tau_min=0.05)
    path = ss.sample_ode(PROCESS, score, noise, trace=ss.Exact(), prior=law, solve=solve)
    moved = ss.sample_sensitivity(PROCESS, of_data, change, noise, base=data, solve=solve)
    slope = ss.score_sensitivity(PROCESS, of_data, change, 0.3, x, base=data)
    noisy = ss.sample_sde(PROCESS, score, noise, key=KEY, solve=solve)
    pixel = ss.functionals.pixel(0)
    return {
        "x": path.x,
        "log_density": path.log_density,
        "tangent": moved.tangent,
        "score tangent": slope.tangent,
        "attribution": ss.attribute(PROCESS, of_data, data, pixel, noise, solve=solve).scores,
        "SDE": noisy.x,
    }


def after(law, data, change, noise, x):
    """And of a finite change, which is checked before it is compiled."""
    score, solve = ss.exact_score(PROCESS, data), ss.Solve(tau_min=0.05)
    return ss.counterfactual(PROCESS, score, change, noise, mass=0.5, base=data, solve=solve).x


# A rounding is 6e-8 and a path adds 40 steps of them, relative to the largest entry: 2e-6, and as
# much again for what a step itself rounds. Measured: 8e-7.
BUDGET = 1e-5


@pytest.mark.slow
def test_float32_stays_float32():
    """Among 64-bit numbers, no answer is widened."""
    found = jax.eval_shape(answers, *given(np.float32))
    assert {name: leaf.dtype for name, leaf in found.items()} == dict.fromkeys(found, np.float32)
    assert after(*given(np.float32)).dtype == np.float32


@pytest.mark.slow
def test_float32_agrees_with_float64():
    """With 64-bit numbers switched off, and with float32 arrays among them. The SDE's draws are
    others in another precision."""

    def both(*given):
        return answers(*given) | {"counterfactual": after(*given)}

    double = both(*given(np.float64))
    for wide in (False, True):
        with jax.enable_x64(wide):
            single = both(*given(np.float32))
        for name in double.keys() - {"SDE"}:
            assert single[name].dtype == np.float32
            laws.close(single[name], double[name], relative=BUDGET)


@pytest.mark.slow
@pytest.mark.parametrize("half", [jnp.bfloat16])
def test_half_precision_is_widened_at_the_door(half):
    """Numbers of half precision have the answers of the same numbers in float32: process times in
    half precision would move tau_max, 80, to 62."""

    def widened(leaf):
        return leaf.astype(jnp.float32) if jnp.result_type(leaf) == half else leaf

    short = given(half)
    single = jax.tree.map(widened, short)
    assert short[-1].dtype == half
    found, expected = answers(*short), answers(*single)
    for name, leaf in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], leaf)
    np.testing.assert_array_equal(after(*short), after(*single))
    noise, times = short[-1], jnp.array([80.0, 1.0])
    euler = ss.sample_euler(ss.EDM(), plain_counted, noise, times).x
    np.testing.assert_array_equal(
        euler, ss.sample_euler(ss.EDM(), plain_counted, noise.astype(jnp.float32), times).x
    )


@pytest.mark.as_people_run
def test_numbers_are_as_wide_as_asked(request):
    narrow = request.config.getoption("--as-people-run")
    assert jnp.ones(1).dtype == (np.float32 if narrow else np.float64)
    assert jax.device_count() == (1 if narrow else 8)
