"""Noised laws against naive sums of scipy's densities."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import oracles
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal

import scoresens as ss
from scoresens.datasets.streams import Stream
from scoresens.laws import Law, _reading, bumps
from scoresens.laws.learned import Known

rng = np.random.default_rng(0)
POINTS, WEIGHTS = rng.normal(size=(30, 3)), rng.uniform(size=30)
WEIGHTS[[0, 11, 29]] = 0
ROOTS = rng.normal(size=(3, 3, 3)) / 2
FULL = ROOTS @ ROOTS.swapaxes(1, 2) + 0.05 * np.eye(3)
VARIANCES = rng.uniform(0.05, 1, size=(3, 3))
MEANS = rng.normal(size=(3, 3))


def arrays(*values):
    return tuple(jnp.asarray(value) for value in values)


def mixture(covariances, dense):
    weights = np.array([0.2, 0.5, 0.3])
    return (
        ss.GaussianMixture(*arrays(5 * weights, MEANS, covariances)),
        oracles.Mixture(weights, MEANS, dense),
    )


def points(weights, bandwidth):
    given = None if weights is None else jnp.asarray(weights)
    return (
        ss.Points(jnp.asarray(POINTS), given, bandwidth),
        oracles.Mixture.of_points(POINTS, weights, bandwidth),
    )


LAWS = {
    "points": points(None, 0.0),
    "weighted points": points(WEIGHTS, 0.0),
    "bumps": points(WEIGHTS, 0.3),
    "full mixture": mixture(FULL, FULL),
    "diagonal mixture": mixture(VARIANCES, VARIANCES[:, :, None] * np.eye(3)),
    "isotropic mixture": mixture(VARIANCES[:, 0], VARIANCES[:, 0, None, None] * np.eye(3)),
}


@pytest.fixture(scope="module", params=LAWS)
def law(request):
    return LAWS[request.param]


@pytest.fixture(params=[bumps.BLOCK, 7], ids=["one block", "five blocks"])
def block(request, monkeypatch):
    monkeypatch.setattr(bumps, "BLOCK", request.param)


@pytest.mark.parametrize("tau", [0.1, 1.0, 30.0])
def test_posterior(law, tau, block):
    """1e-12 is float64 through 30 exponentials; the denoiser cancels as x + tau^2 s does in the
    oracle, which costs tau^2 roundings there."""
    measure, oracle = law
    for x in oracle.sample(np.random.default_rng(1), 2) + tau * POINTS[:2]:
        found = measure.posterior(tau, jnp.asarray(x))
        expected = oracle.noised(1.0, tau).log_density(x[None])
        laws.close(found.gain - laws.broad(tau, 3), expected[0], relative=1e-12)
        laws.close(measure.log_density(tau, jnp.asarray(x)), expected[0], relative=1e-12)
        laws.close(found.mean, oracle.denoised(tau, x[None])[0], absolute=1e-12 * (1 + tau**2))


def test_score_is_the_gradient_of_the_log_density(law, block):
    measure, _ = law
    tau, x = 0.5, jnp.array([0.3, -0.2, 0.5])
    score = (measure.denoise(tau, x) - x) / tau**2
    laws.close(jax.grad(lambda x: measure.log_density(tau, x))(x), score, relative=1e-10)


def test_weighted_sums(law, block):
    """sum_j c_j K_j(x) and the same times D_j, each component as a law of its own."""
    measure, oracle = law
    tau, x, count = 0.5, np.array([0.3, -0.2, 0.5]), len(oracle.weights)
    coefficients = np.random.default_rng(2).normal(size=(2, count))
    reference = laws.broad(tau, 3) - 1.5
    mass, mean = measure.weighted_sums(
        tau, jnp.asarray(x), jnp.asarray(reference), jnp.asarray(coefficients)
    )
    alone = [oracles.Mixture(np.ones(1), *(a[j : j + 1] for a in oracle[1:])) for j in range(count)]
    ratios = np.array([np.exp(one.noised(1, tau).log_density(x[None])[0] + 1.5) for one in alone])
    denoised = np.array([one.denoised(tau, x[None])[0] for one in alone])
    laws.close(mass, coefficients @ ratios, absolute=1e-11 * ratios.max())
    laws.close(mean, coefficients * ratios @ denoised, absolute=1e-11 * ratios.max())


@pytest.mark.parametrize("bandwidth", [0.0, 0.3])
@pytest.mark.parametrize("tau", [0.02, 0.5])
def test_single_sums_are_those_of_a_diagonal_table(block, bandwidth, tau):
    """And their derivatives by the points; one kernel is beyond all numbers, one coefficient 0."""
    measure = ss.Points(jnp.asarray(POINTS), None, bandwidth)
    x, each = jnp.asarray(POINTS[4] + 0.01), jnp.asarray(np.random.default_rng(3).normal(size=30))
    each = each.at[7].set(0)

    def by(sums):
        def of(points):
            return sums(ss.Points(points, None, bandwidth), tau, x, -3.0)

        return jax.jvp(of, (measure.points,), (jnp.cos(measure.points),))

    found = by(lambda law, *at: law.single_sums(*at, each))
    expected = by(lambda law, *at: law.weighted_sums(*at, jnp.diag(each)))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        laws.close(a, b, relative=1e-10, absolute=1e-10 * np.abs(b).max())
    endless = measure.single_sums(tau, x, -900.0, each)[0]
    assert np.isinf(endless[4]) and endless[7] == 0


def test_noised_log_density_in_every_process(law):
    measure, oracle = law
    x = np.array([0.3, -0.2, 0.5])
    for process in laws.PROCESSES.values():
        t = 0.3 * process.t_max
        expected = oracle.noised(*laws.scales(process, t)).log_density(x[None])[0]
        found = measure.noised_log_density(process, t, jnp.asarray(x))
        laws.close(found, expected, absolute=1e-11)


def test_with_weights_and_bandwidth():
    plain, _ = LAWS["points"]
    x, tau = jnp.array([0.3, -0.2, 0.5]), 0.5
    for changed, oracle in (
        (plain.with_weights(jnp.asarray(WEIGHTS)), LAWS["weighted points"][1]),
        (plain.bumped_like(ss.Smoothed(0.2)), points(None, 0.2)[1]),
        (LAWS["bumps"][0].bumped_like(ss.Smoothed(0.2)), LAWS["bumps"][1]),  # keeps its own
    ):
        expected = oracle.noised(1.0, tau).log_density(np.asarray(x)[None])[0]
        laws.close(changed.log_density(tau, x), expected, relative=1e-12)


def test_points_of_zero_weight_have_no_say():
    """Even where one of them is the nearest."""
    measure, _ = LAWS["weighted points"]
    at_zero = jnp.asarray(POINTS[0])
    spread, kept = 0.05, WEIGHTS > 0
    shares = WEIGHTS[kept] / WEIGHTS.sum()
    expected = oracles.points_log_density(POINTS[kept], shares, spread, at_zero)
    laws.close(measure.log_density(spread, at_zero), expected, relative=1e-12)


EMPTY = np.array([0, 1, 1])  # weights of mixtures
WITH_ZEROS = {
    "points": (points(WEIGHTS, 0.0), WEIGHTS),
    "bumps": (points(WEIGHTS, 0.3), WEIGHTS),
    "one point of many": (points(WEIGHTS, 0.0), np.eye(30)[17]),
    "full mixture": (LAWS["full mixture"], EMPTY),
    "isotropic mixture": (LAWS["isotropic mixture"], EMPTY),
}


@pytest.mark.parametrize("tau", [0.1, 2.0])
@pytest.mark.parametrize("name", WITH_ZEROS)
def test_derivatives_in_weights_that_are_zero(name, tau, block):
    """Of log-density and denoiser, in both modes, by complex steps of densities formed plainly; and
    of the score, which is a derivative in x besides. Blocks that have no weight at all included."""
    (measure, oracle), weights = WITH_ZEROS[name]
    x, rng = np.array([0.3, -0.2, 0.5]), np.random.default_rng(8)
    toward = rng.uniform(0.5, 1.5, size=len(weights))

    def oracle_at(weights):
        return oracle._replace(weights=weights / weights.sum()).noised(1.0, tau)

    shifted = oracle_at(weights + 1e-200j * toward)
    normals = zip(shifted.weights, *shifted[1:], strict=True)
    density = sum(w * multivariate_normal(m, c).pdf(x) for w, m, c in normals)
    slopes = density.imag / density.real / 1e-200, shifted.score(x[None])[0].imag / 1e-200

    def log_density(weights):
        return measure.with_weights(weights).log_density(tau, jnp.asarray(x))

    def denoised(weights):
        return measure.with_weights(weights).denoise(tau, jnp.asarray(x))

    def score(weights):
        law = measure.with_weights(weights)
        return jax.grad(lambda x: law.log_density(tau, x))(jnp.asarray(x))

    given = jnp.asarray(weights, float)
    expected = [slopes[0], tau**2 * slopes[1], slopes[1]]
    for function, slope in zip((log_density, denoised, score), expected, strict=True):
        forward = jax.jvp(function, (given,), (jnp.asarray(toward),))[1]
        laws.close(forward, slope, relative=1e-9)
        back = jax.jacrev(function)(given)
        laws.close(back @ toward, slope, relative=1e-9)


def test_derivatives_in_tiny_weights_and_of_all_else():
    """A weight of 1e-30 in float32; and 0 times what overflows is 0: x has its derivative beside a
    point of no weight that is a million times nearer."""
    points = jnp.array([[0.0], [40.0]], jnp.float32)
    x, tau = jnp.array([40.0], jnp.float32), jnp.float32(1.0)

    def log_density(weights, x):
        return ss.Points(points, weights).log_density(tau, x)

    tiny = jnp.array([1.0, 1e-30], jnp.float32)
    laws.close(log_density(tiny, x), np.log(1e-30) - 0.5 * np.log(2 * np.pi), relative=1e-6)
    laws.close(jax.grad(log_density)(tiny, x)[1], 1e30, relative=1e-5)
    none = jnp.array([1.0, 0.0], jnp.float32)
    laws.close(jax.grad(log_density, 1)(none, x), [-40.0], relative=1e-6)
    assert np.all(np.isfinite(jax.grad(log_density)(none, x)))


def test_images_are_flattened():
    images = jnp.asarray(POINTS.reshape(10, 3, 3, 1))
    x = 0.1 * jnp.ones((3, 3, 1))
    posterior = ss.Points(images).posterior(0.5, x)
    expected = oracles.points_log_density(
        POINTS.reshape(10, 9), np.full(10, 0.1), 0.5, np.full(9, 0.1)
    )
    assert posterior.mean.shape == (3, 3, 1)
    laws.close(posterior.gain - laws.broad(0.5, 9), expected, relative=1e-12)


@pytest.mark.parametrize("block", [bumps.BLOCK, 16], indirect=True, ids=["one", "many"])
def test_small_noise_in_float32(block):
    """Far from the origin |x - y|^2 by its expansion alone would be off by 1e-7 |y|^2 / tau^2, here
    1e4 in log K. Weights of the nearest points are right to float32's rounding of x - y itself:
    1e-6 |y| / tau of an offset of tau, in exponents of order 1."""
    tau, size = 0.002, 16
    far = np.random.default_rng(3).normal(size=(50, size)).astype(np.float32) * 5
    far[1:4] = far[0] + np.float32(0.001) * np.random.default_rng(4).normal(size=(3, size))
    x = far[0] + np.float32(0.001)
    found = ss.Points(jnp.asarray(far)).posterior(jnp.float32(tau), jnp.asarray(x))
    exact = far.astype(np.float64)
    log_density = oracles.points_log_density(exact, np.full(50, 1 / 50), tau, x.astype(float))
    logits = -np.sum((x.astype(float) - exact) ** 2, 1) / (2 * tau**2)
    share = np.exp(logits - logits.max())
    assert found.mean.dtype == jnp.float32
    laws.close(found.gain, log_density + laws.broad(tau, size), absolute=1e-4)
    laws.close(found.mean, share @ exact / share.sum(), absolute=5e-6)
    squares = (far**2).sum(1) - 2 * far @ x + (x**2).sum()
    naive = -squares / (2 * np.float32(tau) ** 2)
    assert np.abs(naive - naive.max() - logits + logits.max())[:4].max() > 0.3  # the trap is real


def test_no_array_of_samples_by_points_by_size():
    """Mapped over M samples the working memory is a few (M, BLOCK) tables."""
    m, n, d = 64, 20_000, 64
    data = ss.Points(jnp.zeros((n, d), jnp.float32))
    x = jax.ShapeDtypeStruct((m, d), jnp.float32)

    def evaluate(data, x):
        return jax.vmap(lambda x: data.posterior(jnp.float32(0.5), x))(x)

    memory = jax.jit(evaluate).lower(data, x).compile().memory_analysis()
    tables = memory.temp_size_in_bytes / (4 * m * bumps.BLOCK)
    assert tables < 12  # an (M, BLOCK, d) array alone would be 64 of them, an (M, N, d) one 312


def test_default_bandwidth():
    spread = np.random.default_rng(5).normal(size=(300, 4)) + 100
    distances = cdist(spread, spread)
    np.fill_diagonal(distances, np.inf)
    expected = 0.5 * np.median(distances.min(1))
    laws.close(ss.default_bandwidth(jnp.asarray(spread)), expected, relative=1e-6)
    chosen = np.linspace(0, 299, 40).astype(int)
    expected = 0.5 * np.median(distances[chosen].min(1))
    found = ss.default_bandwidth(jnp.asarray(spread), subset=40)
    laws.close(found, expected, relative=1e-6)


@pytest.mark.parametrize("kind", ["array", "stream"])
def test_default_bandwidth_in_blocks(monkeypatch, kind):
    """Far from 0, and of so many that neither the points nor those looked at fit one block."""
    monkeypatch.setattr(_reading, "ROOM", 200)
    spread = (np.random.default_rng(5).normal(size=(90, 4, 1)) + 100).astype(np.float32)
    flat = spread.reshape(90, 4).astype(float)
    distances = cdist(flat, flat)
    np.fill_diagonal(distances, np.inf)
    found = ss.default_bandwidth(Stream(spread) if kind == "stream" else spread)
    laws.close(found, 0.5 * np.median(distances.min(1)), relative=1e-6)


def test_default_bandwidth_passes_over_copies():
    spread = np.random.default_rng(6).normal(size=(20, 4))
    distances = cdist(spread, spread)
    np.fill_diagonal(distances, np.inf)
    doubled = jnp.asarray(np.concatenate([spread, spread]))
    laws.close(ss.default_bandwidth(doubled), 0.5 * np.median(distances.min(1)), relative=1e-6)


def test_measures_are_pytrees(law):
    measure, oracle = law
    x = jnp.array([0.3, -0.2, 0.5])
    found = jax.jit(lambda measure, x: measure.log_density(0.5, x))(measure, x)
    laws.close(found, oracle.noised(1.0, 0.5).log_density(np.asarray(x)[None])[0], relative=1e-12)


def test_a_law_of_one_component_needs_its_posterior_alone():
    """Its weighted sums are those of a mixture of one, and it can be added."""

    class Alone(ss.Measure):
        @property
        def shape(self):
            return (3,)

        def posterior(self, tau, x):
            return LAWS["bumps"][0].posterior(tau, x)

    tau, x = 0.5, jnp.array([0.3, -0.2, 0.5])
    gain, mean = Alone().posterior(tau, x)
    mass, sums = Alone().weighted_sums(tau, x, -1.5, jnp.array([[2.0], [-1.0]]))
    laws.close(mass, np.array([2, -1]) * np.exp(gain + 1.5), relative=1e-12)
    laws.close(sums, np.outer(mass, mean), relative=1e-12)
    laws.close(ss.add(Alone()).parts[0].coefficients, [[1.0]])


def test_what_each_law_is():
    """A law may lack a density, a measure weights that can be edited."""
    learned = ss.Learned(ss.VP(), lambda t, x: -x, (3,))
    assert isinstance(learned, Law) and not isinstance(learned, ss.Measure)
    known = Known(jnp.array(0.0), jnp.zeros(3))
    assert isinstance(known, ss.Measure) and not isinstance(known, ss.Mixture)
    assert all(isinstance(measure, ss.Mixture) for measure, _ in LAWS.values())
