"""Scores from what networks predict, and back."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss
from scoresens.laws.scores import canonical_denoiser

X = jnp.array([0.7, -0.3])
PAIRS = {
    "noise": (ss.from_noise, ss.to_noise),
    "denoiser": (ss.from_denoiser, ss.to_denoiser),
    "v": (ss.from_v, ss.to_v),
    "velocity": (ss.from_velocity, ss.to_velocity),
}


@pytest.fixture(scope="module", params=laws.PROCESSES)
def process(request):
    return laws.PROCESSES[request.param]


def oracle(process, t):
    """Score and E[x_0 | x], E[n | x] of LAW at X, from the oracle."""
    alpha, sigma = laws.scales(process, t)
    score = laws.LAW.noised(alpha, sigma).score(np.asarray(X)[None])[0]
    denoised = laws.LAW.denoised(sigma / alpha, np.asarray(X)[None] / alpha)[0]
    return score, denoised, (np.asarray(X) - alpha * denoised) / sigma


def predictions(process, t):
    """What an ideal network of each kind says: conditional means of x_0 and n, and their sums."""
    _, denoised, noise = oracle(process, t)
    alpha, sigma = laws.scales(process, t)
    step = 1e-6 * process.t_max
    rates = [
        (float(f(t + step)) - float(f(t - step))) / (2 * step)
        for f in (process.alpha, process.sigma)
    ]
    return {
        "noise": noise,
        "denoiser": denoised,
        "v": alpha * noise - sigma * denoised,
        "velocity": rates[0] * denoised + rates[1] * noise,
    }


# velocity's oracle takes finite differences of alpha and sigma, good to 1e-8 of them
TOLERANCE = {"noise": 1e-11, "denoiser": 1e-11, "v": 1e-11, "velocity": 1e-6}


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("part", [0.1, 0.5])
def test_from_an_ideal_network(process, kind, part):
    t = part * process.t_max
    ideal = jnp.asarray(predictions(process, t)[kind])
    found = PAIRS[kind][0](process, lambda t, x: ideal)(t, X)
    laws.close(found, oracle(process, t)[0], relative=TOLERANCE[kind])


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("part", [0.1, 0.5])
def test_to_what_an_ideal_network_says(process, kind, part):
    t = part * process.t_max
    found = PAIRS[kind][1](process, ss.exact_score(process, laws.mixture()))(t, X)
    laws.close(found, predictions(process, t)[kind], relative=TOLERANCE[kind])


@pytest.mark.parametrize("kind", PAIRS)
def test_from_and_to_are_inverse(process, kind):
    come, go = PAIRS[kind]
    t = 0.3 * process.t_max
    exact = ss.exact_score(process, laws.mixture())
    laws.close(come(process, go(process, exact))(t, X), exact(t, X), relative=1e-11)
    laws.close(go(process, come(process, exact))(t, X), exact(t, X), relative=1e-11)


@pytest.mark.parametrize("part", [0.02, 0.3, 0.9])
def test_exact_score(process, part):
    t = part * process.t_max
    found = ss.exact_score(process, laws.mixture())(t, X)
    laws.close(found, oracle(process, t)[0], relative=1e-10)  # (D - x) / tau^2 at tau of 0.002


def test_velocity_is_that_of_the_probability_flow(process):
    """(1.1): f - g^2 s / 2."""
    t = 0.3 * process.t_max
    score = ss.exact_score(process, laws.mixture())
    expected = process.drift(t, X) - process.diffusion(t) ** 2 * oracle(process, t)[0] / 2
    laws.close(ss.to_velocity(process, score)(t, X), expected, relative=1e-10)


def test_canonical_denoiser_of_a_score_and_back(process):
    t = 0.3 * process.t_max
    tau, hat = process.noise_level(t), process.to_canonical(t, X)
    measure = laws.mixture()
    found = canonical_denoiser(process, ss.exact_score(process, measure), tau, hat)
    laws.close(found, oracle(process, t)[1], relative=1e-10)
    score = ss.from_canonical(process, lambda tau, x: measure.denoise(tau, x))
    laws.close(score(t, X), oracle(process, t)[0], relative=1e-10)


# ------------------------------------------------------------------ outputs that do not fit

IMAGE = jnp.ones((2, 3, 2))
WRAPPERS = {name: come for name, (come, _) in PAIRS.items()} | {"canonical": ss.from_canonical}
OUTPUTS = {
    "a number": (lambda x: 0.5, "float"),
    "a scalar": (lambda x: x.sum(), r"\(\)"),
    "one channel": (lambda x: x[..., :1], r"\(2, 3, 1\)"),
    "a learned variance": (lambda x: jnp.concatenate([x, x], -1), r"\(2, 3, 4\)"),
    "channels first": (lambda x: jnp.moveaxis(x, -1, 0), r"\(2, 2, 3\)"),
    "a batch": (lambda x: x[None], r"\(1, 2, 3, 2\)"),
    "a tuple": (lambda x: (x, x), "tuple"),
    "a dictionary": (lambda x: {"sample": x}, "dict"),
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_what_is_not_like_the_sample_is_refused(output):
    """By every wrapper, in the same words: to stretch it over the sample is a wrong score."""
    change, got = OUTPUTS[output]
    must = rf"\(t, x\) must return an array of x's shape \(2, 3, 2\) for one sample, got {got};"
    for wrap in WRAPPERS.values():
        with pytest.raises(ValueError, match=f"network{must}"):
            wrap(ss.EDM(), lambda t, x: change(x))(1.0, IMAGE)
    for _, back in PAIRS.values():
        with pytest.raises(ValueError, match=f"score{must}"):
            back(ss.EDM(), lambda t, x: change(x))(1.0, IMAGE)
    for pair in (
        (lambda t, x: change(x), lambda t, x: x),
        (lambda t, x: x, lambda t, x: change(x)),
    ):
        with pytest.raises(ValueError, match=f"score{must}"):
            ss.guide(*pair, 2.0)(1.0, IMAGE)


def test_whole_numbers_are_no_output():
    for wrap in WRAPPERS.values():
        with pytest.raises(
            ValueError, match=r"network.*must return floating-point numbers, got int"
        ):
            wrap(ss.EDM(), lambda t, x: x.astype(int))(1.0, IMAGE)


@pytest.mark.parametrize("value", [lambda x: x[:1, 0, 0], lambda x: (x.sum(),), lambda x: 1])
def test_a_potential_that_is_no_number_is_refused(value):
    with pytest.raises(
        ValueError, match=r"potential\(t, x\) must return one floating-point number"
    ):
        ss.from_potential(lambda t, x: value(x))(1.0, IMAGE)


def test_a_score_crosses_jit_with_its_parameters():
    """A Partial over module functions: leaves are parameters, and a new one traces nothing anew."""
    traces = []

    @jax.jit
    def value(score, t, x):
        traces.append(None)
        return score(t, x)

    for mass in (0.0, 0.5, 1.0):
        score = ss.exact_score(ss.VP(), laws.mixture(mass))
        laws.close(value(score, 0.3, X), score(0.3, X), relative=1e-12)
    assert len(traces) == 1
