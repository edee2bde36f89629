"""The laws of the library, one check a law: what every process, measure and trace estimator must
obey.

A new process is found by its name (and named in SETTINGS if it wants arguments): its moments and
the laws at a point are checked for each, and every verb's answer against EDM's from the same
canonical noise, which has the laws in full. What else is new is one more line in the lists of this
file."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.tree_util import Partial

import scoresens as ss
from scoresens.laws.processes import by_name

SETTINGS = {"VE": {"sigma_min": 1e-3}, "DiscreteVP": {"noise_levels": np.geomspace(0.02, 40.0, 5)}}
PROCESSES = {name: kind(**SETTINGS.get(name, {})) for name, kind in by_name().items()}

# Every law of a path; the others have their answers (test_frames.py).
IN_FULL = (pytest.param("VP", marks=pytest.mark.slow), "EDM")

# Paths run between the same noise levels in every process, on 100 steps of a fifth-order solver:
# its error, 1e-9 on these laws, is smooth in the data and cancels in differences.
TOP, BOTTOM = 20.0, 0.01
FINE = ss.Solve(solver=diffrax.Tsit5(), steps=100, tau_min=BOTTOM)

rng = np.random.default_rng(0)  # of the laws below


def _mixture(weights):
    roots = rng.normal(size=(len(weights), 2, 2)) / 2
    covariances = roots @ roots.swapaxes(1, 2) + 0.1 * np.eye(2)
    return oracles.Mixture(np.array(weights), rng.normal(size=(len(weights), 2)), covariances)


LAW, OTHER = _mixture([0.3, 0.7]), _mixture([0.6, 0.4])
DATA = oracles.DataSet(
    points=rng.normal(size=(6, 2)),
    weights=np.array([1, 2, 3, 1, 2, 1]) / 10,
    bandwidth=0.4,
    new=rng.normal(size=2),
)
EDIT = np.array([0.5, -0.3])  # of a point that moves
NOISE = TOP * rng.normal(size=(4, 2))  # canonical


def close(found, expected, *, relative=0.0, absolute=0.0):
    """The largest error, against the largest entry: entries near zero have no scale of their
    own."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, f"shape {found.shape}, expected {expected.shape}"
    error, scale = np.max(np.abs(found - expected)), np.max(np.abs(expected))
    bound = absolute + relative * scale
    assert error <= bound, f"error {error:.3g} above {bound:.3g}, entries up to {scale:.3g}"


def broad(tau, size):
    """What a gain is above its log-density: d/2 log 2 pi (tau^2 + 1/16)."""
    return 0.5 * size * np.log(2 * np.pi * (np.square(tau) + 0.0625))


def either(double, single):
    """The bound of the precision that the suite runs in: float64, or float32 as people run."""
    return double if jax.config.read("jax_enable_x64") else single


def mixture(mass=0.0):
    """(1 - mass) LAW + mass OTHER as the library's: always as many components, compiled once."""
    return measure_of(LAW.mixed(OTHER, mass))


def measure_of(law):
    """A mixture as the library's."""
    return ss.GaussianMixture(*map(jnp.asarray, law))


def points_of(law):
    """A mixture of equal bumps as the library's points."""
    bandwidth = float(np.sqrt(law.covariances[0, 0, 0]))
    return ss.Points(jnp.asarray(law.means), jnp.asarray(law.weights), bandwidth)


def data_set():
    """The points of DATA as the library's."""
    return ss.Points(jnp.asarray(DATA.points), jnp.asarray(DATA.weights), DATA.bandwidth)


def toward(weights):
    """The direction from DATA to its points with other weights, as a law to add."""
    return ss.add(ss.Points(jnp.asarray(DATA.points), jnp.asarray(weights), DATA.bandwidth))


def changes():
    """name -> (the library's perturbation, the law at a mass by the oracle), one direction each."""
    data, new = data_set(), jnp.asarray(DATA.new[None])
    mask, weights = np.array([False, True, False, True, False, False]), np.arange(1.0, 7.0)
    reweighted = functools.partial(DATA.reweighted, weights=weights)
    return {
        "add": (ss.add(new), DATA.added),
        "remove": (ss.remove(data, mask), functools.partial(DATA.removed, mask=mask)),
        "reweight": (ss.reweight(data, jnp.asarray(weights)), reweighted),
        "replace": (ss.replace(data, [2], new), functools.partial(DATA.replaced, index=2)),
        "toward": (toward(weights), reweighted),
        "move": (
            ss.move(data, [3], EDIT[None]),
            functools.partial(DATA.moved, index=3, direction=EDIT),
        ),
    }


CHANGES = ["add", "remove", "reweight", "replace", "toward", "move"]


# In float32 a rounding is 6e-8. A score is (denoised - x) / tau^2, at |x| = 3 and tau = 0.05, the
# lowest that is asked for, wrong by 1,200 of them, 7e-5; there are two, and their ratio.
SCORE = 2e-4
# A path has velocities (x - denoised) / tau, wrong by 3 / 0.01 roundings, 2e-5, at its lowest
# stages: as if some 50 of 200 were so.
PATH = 1e-3


def between_levels(process, top=TOP):
    """The process, its noise end moved to the noise level `top`; and NOISE in its frame there."""
    process = dataclasses.replace(process, t_max=float(process.time(top)))
    return process, process.from_canonical(process.t_max, jnp.asarray(NOISE))


def scales(process, t):
    """alpha and sigma as plain numbers."""
    return float(process.alpha(t)), float(process.sigma(t))


# ------------------------------------------------------------------ law 1: the score's derivative


def check_score_derivative(process, tau):
    """Against the model's law, its log-density given: the complex step of the exactly perturbed
    score. 1e-10: float64's 1e-16 over tau^2, and exp(log r_j) at log r_j of some tens."""
    t = process.time(tau)
    alpha, sigma = scales(process, t)
    x = alpha * LAW.sample(np.random.default_rng(1), 4) + sigma * NOISE / TOP
    measure = mixture()
    known = jnp.asarray(LAW.noised(alpha, sigma).log_density(x))
    found = ss.score_sensitivity(
        process,
        ss.exact_score(process, measure),
        ss.add(mixture(1.0)),
        t,
        jnp.asarray(x),
        log_density=known,
    )
    expected = oracles.score_derivative(lambda mass: LAW.mixed(OTHER, mass), alpha, sigma, x)
    close(found.tangent[:, 0], expected, relative=either(1e-10, SCORE))


def check_score_derivative_of_data(process, tau, kind):
    """Against the data's law (6.3): the same, for every kind of change."""
    t = process.time(tau)
    alpha, sigma = scales(process, t)
    law = DATA.unchanged()
    x = alpha * law.sample(np.random.default_rng(2), 4) + sigma * NOISE / TOP
    data = data_set()
    perturbation, law_at = changes()[kind]
    score = ss.exact_score(process, data)
    found = ss.score_sensitivity(process, score, perturbation, t, jnp.asarray(x), base=data)
    expected = slope_of_score(kind, law_at, alpha, sigma, x)
    bound = either(1e-8 if kind == "move" else 1e-10, SCORE)
    close(found.tangent[:, 0], expected, relative=bound)
    known = law.noised(alpha, sigma).log_density(x)
    close(found.log_density, known, relative=either(1e-12, 1e-6))


def slope_of_score(kind, law_at, alpha, sigma, x):
    """By a complex step in the weights; of a move, by differences, good to 1e-9."""
    if kind == "move":
        return difference(lambda mass: law_at(mass).noised(alpha, sigma).score(x))
    return oracles.score_derivative(law_at, alpha, sigma, x)


def check_score_derivative_by_solving(process, tau):
    """Black box, log rho solved for by (3.1): the solver's error in log rho, 1e-7, is the
    derivative's relative error."""
    process, _ = between_levels(process)
    t = process.time(tau)
    alpha, sigma = scales(process, t)
    x = alpha * LAW.sample(np.random.default_rng(3), 4) + sigma * NOISE / TOP
    measure = mixture()
    found = ss.score_sensitivity(
        process,
        ss.exact_score(process, measure),
        ss.add(mixture(1.0)),
        t,
        jnp.asarray(x),
        trace=ss.Exact(),
        prior=measure,
        solve=FINE,
    )
    close(found.log_density, LAW.noised(alpha, sigma).log_density(x), absolute=1e-7)
    expected = oracles.score_derivative(lambda mass: LAW.mixed(OTHER, mass), alpha, sigma, x)
    close(found.tangent[:, 0], expected, relative=1e-7)


# ------------------------------------------------------------------ law 2: the sample's derivative


def difference(samples_at, step=1e-5):
    """d samples / d mass at 0 from masses >= 0 alone, to second order in the step; in float64
    always, where a step of 1e-5 is seen."""
    with jax.enable_x64(True):
        return (4 * samples_at(step) - 3 * samples_at(0.0) - samples_at(2 * step)) / (2 * step)


def flow_of(process, measure, noise):
    """Samples of a known law, FINE."""
    noise = jnp.asarray(noise, jnp.result_type(float))
    return ss.sample_ode(process, ss.exact_score(process, measure), noise, solve=FINE).x


def check_tangent(process):
    """Black box: finite differences of the exactly perturbed flow. 1e-5: rounding of 1e-13 over a
    step of 1e-5, and the solver's 1e-9."""
    process, noise = between_levels(process)
    measure = mixture()
    found = black_box_tangent(process, noise, mixture(1.0))
    expected = difference(lambda e: flow_of(process, mixture(e), noise))
    close(found.x, flow_of(process, measure, noise), absolute=either(1e-12, PATH))
    close(found.tangent[:, 0], expected, relative=either(1e-5, PATH))
    lowest = LAW.noised(1.0, BOTTOM).log_density(np.asarray(found.x))
    close(found.log_density, lowest, absolute=either(1e-6, PATH))


def black_box_tangent(process, noise, other):
    measure = mixture()
    score = ss.exact_score(process, measure)
    return ss.sample_sensitivity(
        process, score, ss.add(other), noise, trace=ss.Exact(), prior=measure, solve=FINE
    )


def check_tangent_of_data(process, kind="toward", black_box=False):
    """Relative to the data (6.3), or to the same law as a model's own: finite differences of the
    flow of the exactly changed data."""
    process, noise = between_levels(process)
    perturbation, law_at = changes()[kind]
    found = data_tangent(process, noise, perturbation, black_box)
    expected = difference(lambda e: flow_of(process, points_of(law_at(e)), noise))
    close(found.tangent[:, 0], expected, relative=either(1e-5, PATH))


def data_tangent(process, noise, perturbation, black_box=False):
    score = ss.exact_score(process, data_set())
    given, perturbation = of_data(perturbation, black_box)
    return ss.sample_sensitivity(process, score, perturbation, noise, **given)


def other_model():
    """OTHER as a diffusion model trained on another process than the sampler's."""
    law = mixture(1.0)
    return ss.Learned(PROCESSES["VP"], ss.exact_score(PROCESSES["VP"], law), (2,), prior=law)


GUIDED = (0.3, 0.7)  # masses of OTHER in the unconditional and the conditional law


class GuidedCase(NamedTuple):
    """A guided score, what is asked of it, and the flow of the guided scores of changed laws."""

    asked: dict
    samples_at: Callable  # (mass, noise) -> [M, d]
    laws_at: Callable  # mass -> the two laws


def guided(process, black_box, ends=(0.8, 0.1), weight=2.5):
    """`mixture(0.3)` guided by `mixture(0.7)`; each on its way to the law `mixture(end)`, or
    unchanged (None).

    Guidance leads away from both laws, where the ratio to a law that is nowhere near would have no
    bound: these have components in common. Against the laws themselves (base) the answers are those
    of the same steps, and few will do.
    """
    starts = GUIDED

    def laws_at(mass):
        pairs = zip(starts, ends, strict=True)
        return [mixture(a if b is None else (1 - mass) * a + mass * b) for a, b in pairs]

    def score_at(mass):
        strong, weak = (ss.exact_score(process, law) for law in laws_at(mass))
        return ss.guide(strong, weak, weight)

    def samples_at(mass, noise):
        return ss.sample_ode(process, score_at(mass), noise, solve=asked["solve"]).x

    own = ss.Pair(*laws_at(0.0))
    changes = ss.Pair(*(end if end is None else ss.add(mixture(end)) for end in ends))
    asked = {"process": process, "score": score_at(0.0), "perturbation": changes}
    if black_box:
        asked |= {"trace": ss.Exact(), "prior": own, "solve": FINE}
    else:
        asked |= {"base": own, "solve": SHORT}
    return GuidedCase(asked, samples_at, laws_at)


# ------------------------------------------------------------------ law 3: two routes to one number

# Ten steps will do: attribution differentiates the composition of the solver's own steps, so that
# two routes agree to rounding on any grid.
SHORT = ss.Solve(steps=10, tau_min=BOTTOM)
CROWD = ss.Points(
    jnp.asarray(np.random.default_rng(7).normal(size=(500, 2))),
    jnp.asarray(np.random.default_rng(8).uniform(0.5, 1.5, size=500)),
    0.3,
)


def first_and_square(x):
    """A functional with two values."""
    return jnp.stack([x[0], jnp.sum(jnp.square(x))])


def check_duality(process, **given):
    """Attribution is grad phi . tangent for every point of CROWD. 1e-9: rounding, 1e-16, of
    log-densities of some hundreds, over 20 stages."""
    process, noise = between_levels(process)
    x, tangent = map(np.asarray, _tangents_of_a_crowd(process, noise, **given))
    given = {"base": "data", "solve": SHORT, **given}
    found = ss.attribute(process, bent(process), CROWD, first_and_square, noise, **given)
    slopes = np.stack([np.tile([1.0, 0.0], (len(x), 1)), 2 * x], 1)
    pulled = np.einsum("mpi,mki->mpk", slopes, tangent)
    close(found.scores, pulled, relative=either(1e-9, PATH))
    close(found.x, x, absolute=either(1e-12, PATH))
    value = np.stack([x[:, 0], np.sum(x**2, 1)], 1)
    close(found.value, value, absolute=either(1e-12, PATH))


def _tangents_of_a_crowd(process, noise, base="data", solve=SHORT, **given):
    one_by_one = ss.add(CROWD.points).bumped_like(ss.Smoothed(CROWD.bandwidth))
    given = {"base": CROWD if base == "data" else base, "solve": solve, **given}
    pushed = ss.sample_sensitivity(process, bent(process), one_by_one, noise, **given)
    return pushed.x, pushed.tangent


def bent(process):
    """A network that is the score of no law: its Jacobian is not symmetric, as that of an exact
    score always is, so that J and its transpose differ."""
    return ss.from_canonical(process, Partial(_bent, jnp.array([[0.4, 1.1], [-0.7, 0.2]])))


def _bent(matrix, tau, x):
    return (x + jnp.square(tau) * jnp.tanh(matrix @ x)) / (1 + jnp.square(tau))


# ------------------------------------------------------------------ law 4: log-densities on paths


def check_log_density_on_flow(process):
    """(3.1) against the closed form where the path ends; 1e-6 is the issue's bound on the solver's
    error."""
    process, noise = between_levels(process)
    measure = mixture()
    score = ss.exact_score(process, measure)
    path = ss.sample_ode(process, score, noise, trace=ss.Exact(), prior=measure, solve=FINE)
    expected = LAW.noised(1.0, BOTTOM).log_density(np.asarray(path.x))
    close(path.log_density, expected, absolute=either(1e-6, PATH))


def check_log_density_on_foreign_curve(process):
    """(3.2) on curves that the flow of another law drives."""
    process, noise = between_levels(process)
    measure = mixture()
    velocity = ss.to_velocity(process, ss.exact_score(process, mixture(1.0)))
    path = ss.log_density_along(
        process,
        ss.exact_score(process, measure),
        velocity,
        noise,
        trace=ss.Exact(),
        prior=measure,
        solve=FINE,
    )
    close(path.x, flow_of(process, mixture(1.0), noise), absolute=either(1e-6, PATH))
    expected = LAW.noised(1.0, BOTTOM).log_density(np.asarray(path.x))
    close(path.log_density, expected, absolute=either(1e-6, PATH))


def check_encode(process):
    """Data go up to the noise that the flow of their law sends back, with log rho at the data."""
    process, _ = between_levels(process)
    measure = mixture()
    score = ss.exact_score(process, measure)
    x = jnp.asarray(LAW.sample(np.random.default_rng(4), 4))
    path = ss.encode(process, score, x, trace=ss.Exact(), prior=measure, solve=FINE)
    expected = LAW.noised(1.0, BOTTOM).log_density(np.asarray(x))
    close(path.log_density, expected, absolute=either(1e-6, PATH))
    close(flow_of(process, measure, path.x), x, absolute=either(1e-6, PATH))


# ------------------------------------------------------------------ laws 8 and 9: the law itself


def check_law_added_to_itself(process):
    """chi = rho - rho = 0: nothing moves, black box or not."""
    process, noise = between_levels(process)
    found = black_box_tangent(process, noise, mixture(0.0)).tangent
    close(found, np.zeros_like(found), absolute=either(1e-7, PATH))  # the solver's, in log rho
    itself = toward(DATA.weights)
    found = data_tangent(process, noise, itself).tangent
    close(found, np.zeros_like(found), absolute=either(1e-11, PATH))  # rounding, over tau^2
    score = ss.exact_score(process, data_set())
    t, x = process.time(0.5), process.from_canonical(process.time(0.5), jnp.asarray(NOISE) / TOP)
    found = ss.score_sensitivity(process, score, itself, t, x, base=data_set()).tangent
    close(found, np.zeros_like(found), absolute=either(1e-12, PATH))


def check_linear(process):
    """A multiple of a change has that multiple of its tangent, and a sum of changes the sum."""
    process, noise = between_levels(process)
    one, two = np.random.default_rng(5).dirichlet(np.ones(len(DATA.points)), size=2)
    tangents = [
        data_tangent(process, noise, toward(weights)).tangent
        for weights in (one, two, 0.3 * one + 0.7 * two)
    ]
    close(tangents[2], 0.3 * tangents[0] + 0.7 * tangents[1], relative=either(1e-11, PATH))
    sums = data_tangent(process, noise, 0.3 * toward(one) - 3 * toward(two)).tangent
    close(sums, 0.3 * tangents[0] - 3 * tangents[1], relative=either(1e-11, PATH))


# ------------------------------------------------------------------ law 10: finite changes


def check_counterfactual(process, kind="toward", masses=(0.05, 0.6, 1.0), black_box=False):
    """(6.3) is the flow of the exactly changed law, to rounding: the same solver on the same field.
    So is (6.1), with a log-density that the solver follows."""
    process, noise = between_levels(process)
    perturbation, law_at = changes()[kind]
    for mass in masses:
        found = after(process, noise, perturbation, mass, black_box=black_box)
        close(
            found.x[:, 0],
            flow_of(process, points_of(law_at(mass)), noise),
            absolute=either(1e-8, PATH),
        )
        assert not np.any(found.bounded)


def check_counterfactual_begins_as_the_tangent(process, kind, black_box=False):
    """Its derivative at mass 0 is `sample_sensitivity` with the same base; bound as in law 2."""
    process, noise = between_levels(process)
    perturbation, _ = changes()[kind]
    slope = difference(
        lambda mass: after(process, noise, perturbation, mass, black_box=black_box).x
    )
    tangent = data_tangent(process, noise, perturbation, black_box=black_box).tangent
    close(tangent, slope, relative=1e-5)


def after(process, noise, perturbation, mass, black_box=False):
    """Samples after a finite change of DATA, FINE."""
    data = data_set()
    score = ss.exact_score(process, data)
    given, perturbation = of_data(perturbation, black_box)
    return ss.counterfactual(process, score, perturbation, noise, mass=mass, **given)


def of_data(perturbation, black_box):
    """Against the data's law, or against the same law as a model's own, with bumps as wide."""
    data = data_set()
    if not black_box:
        return {"base": data, "solve": FINE}, perturbation
    own = perturbation.bumped_like(ss.Smoothed(data.bandwidth))
    return {"trace": ss.Exact(), "prior": data, "solve": FINE}, own


def check_counterfactual_of_the_law_itself(process):
    """Law 8 for finite changes: mass moved from the law to itself moves no sample."""
    process, noise = between_levels(process)
    found = after(process, noise, toward(DATA.weights), 0.4).x
    expected = flow_of(process, points_of(DATA.unchanged()), noise)
    close(found[:, 0], expected, absolute=either(1e-11, PATH))
