"""Conditional flows: each kernel is transported by its velocity, and every verb that follows the
flow answers as flows of data that are truly others."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss

rng = np.random.default_rng(0)
N, D, H = 12, 3, 0.15
POINTS = jnp.asarray(rng.normal(size=(N, D)))
RATES = jnp.asarray([1.0, 2.0, 0.5])
BASIS = np.linalg.qr(rng.normal(size=(D, D)))[0]
SHORT = ss.Solve(steps=20, tau_min=0.02)
KEY = jax.random.key(0)


def fading(t):
    return jnp.exp(-3 * RATES * t)


def rising(t):
    return jnp.sqrt(-jnp.expm1(-6 * RATES * t))


PAIRS = ss.pairs(POINTS, jnp.asarray(rng.normal(size=(N, D))) + 2)
FLOWS = {
    "diagonal": (ss.DiagonalGaussian(fading, rising, BASIS), POINTS),
    "bridge": (ss.Bridge(0.5, 0.1), PAIRS),
    "torus": (ss.Torus(), POINTS / 2),
}


@pytest.fixture(scope="module", params=FLOWS)
def flow(request):
    return FLOWS[request.param]


def starts(process, points):
    if isinstance(process, ss.Bridge):
        return points[:3, 1] + 0.05
    return process.sample_prior((3, D), key=KEY)


def law(points, weights=None):
    return ss.Points(points, weights, H)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_velocities_transport_their_kernels(flow, t):
    """The continuity equation along the flow: d log K/dt + u.grad log K + div u = 0."""
    process, points = flow
    z, t = points[0].reshape(-1), jnp.asarray(t)
    x = jnp.asarray(rng.normal(size=D)) / 2
    rate, slope = jax.grad(process.log_kernel, (0, 1))(t, x, z, H)
    u = process.velocity(t, x, z, H)
    spread = jnp.trace(jax.jacobian(process.velocity, 1)(t, x, z, H))
    laws.close(rate + slope @ u + spread, 0.0, absolute=1e-8 * float(abs(rate) + abs(spread) + 1))


def test_the_law_is_the_sum_over_its_points(flow):
    process, points = flow
    weights = rng.uniform(0.5, 1.5, N)
    data, t = law(points, weights), jnp.asarray(0.6)
    x = jnp.asarray(rng.normal(size=D)) / 2
    logs = jnp.stack([process.log_kernel(t, x, z.reshape(-1), H) for z in points])
    moves = jnp.stack([process.velocity(t, x, z.reshape(-1), H) for z in points])
    shares = jax.nn.softmax(logs + jnp.log(weights))
    velocity = ss.to_velocity(process, ss.exact_score(process, data))
    laws.close(velocity(t, x), shares @ moves, relative=1e-10)
    total = jax.nn.logsumexp(logs + jnp.log(weights / weights.sum()))
    laws.close(data.noised_log_density(process, t, x), total, absolute=1e-10)


def test_tangents_and_changed_samples_are_those_of_other_data(flow):
    process, points = flow
    score, start = ss.exact_score(process, law(points)), starts(process, points)
    new, eps = points[:1] * 0.9, 1e-6
    options = {"base": law(points), "solve": SHORT}
    tangent = ss.sample_sensitivity(process, score, ss.add(new), start, **options).tangent[:, 0]

    def flowed(eps):
        weights = np.r_[np.full(N, (1 - eps) / N), eps]
        changed = ss.exact_score(process, law(jnp.concatenate([points, new]), weights))
        return ss.sample_ode(process, changed, start, solve=SHORT).x

    laws.close(tangent, (flowed(eps) - flowed(0.0)) / eps, relative=2e-4)
    whole = ss.counterfactual(process, score, ss.add(new), start, mass=0.3, **options).x[:, 0]
    laws.close(whole, flowed(0.3), relative=1e-8)

    gone = ss.counterfactual(
        process, score, ss.remove(law(points), [2]), start, mass=1.0, **options
    ).x[:, 0]
    kept = ss.exact_score(process, law(jnp.delete(points, 2, axis=0)))
    laws.close(gone, ss.sample_ode(process, kept, start, solve=SHORT).x, relative=1e-8)


def test_attribution_is_the_tangent_of_each_point_wherever_the_points_are(flow):
    process, points = flow
    score, start = ss.exact_score(process, law(points)), starts(process, points)
    along = ss.functionals.pixel(1)
    found = ss.attribute(process, score, law(points), along, start, solve=SHORT).scores
    options = {"base": law(points), "solve": SHORT}
    tangent = ss.sample_sensitivity(process, score, ss.add(points), start, **options).tangent
    laws.close(found, tangent[..., 1], relative=1e-6)
    host = ss.Points.on_host(np.asarray(points), None, H)
    best = ss.attribute(process, score, host, along, start, top=2, solve=SHORT)
    laws.close(best.top_values, jax.lax.top_k(found, 2)[0], relative=1e-8)


def test_log_densities_ride_the_flow(flow):
    """Against the closed form, and from the model's own law as against the data's."""
    process, points = flow
    score, start = ss.exact_score(process, law(points)), starts(process, points)
    fine = ss.Solve(steps=300, tau_min=0.02)
    options = {"trace": ss.Exact(), "prior": law(points), "solve": fine}
    path = ss.sample(process, score, start, **options)
    tau = jnp.asarray(0.02)
    expected = jax.vmap(lambda x: law(points).noised_log_density(process, tau, x))(path.x)
    laws.close(path.log_density, expected, absolute=5e-3)
    change = ss.add(law(points[:1]))
    model = ss.sample_sensitivity(process, score, change, start, base=None, **options).tangent
    data = ss.sample_sensitivity(process, score, change, start, base=law(points), solve=fine)
    laws.close(model, data.tangent, relative=2e-2)


def test_equal_axes_are_a_scalar_process():
    scalar = ss.VP()
    diagonal = ss.DiagonalGaussian(scalar.alpha, scalar.sigma, BASIS)
    t, x = jnp.asarray(0.4), jnp.asarray(rng.normal(size=D))
    expected = ss.to_velocity(scalar, ss.exact_score(scalar, law(POINTS)))(t, x)
    found = ss.to_velocity(diagonal, ss.exact_score(diagonal, law(POINTS)))(t, x)
    laws.close(found, expected, relative=1e-9)


def test_blurring_begins_as_the_image_and_ends_as_noise():
    flow, image = ss.blurring((4, 6, 2)), jnp.asarray(rng.normal(size=48))
    basis = np.asarray(flow.basis)
    laws.close(basis.T @ basis, np.eye(48), absolute=1e-12)
    laws.close(flow.signal(1e-9) * (image @ basis) @ basis.T, image, relative=1e-6)
    blurred = flow.signal(0.5) * (image @ basis) @ basis.T
    means = image.reshape(24, 2).mean(0) * np.cos(np.pi / 4)
    laws.close(blurred.reshape(24, 2).mean(0), means, relative=1e-9)  # heat keeps each channel's
    assert float(jnp.max(flow.signal(0.99))) < 0.02


def test_angles_have_no_end():
    process, score = ss.Torus(), ss.exact_score(ss.Torus(), law(POINTS / 2))
    t, x = jnp.asarray(0.7), jnp.asarray([3.0, -3.1, 0.2])
    turned = x + 2 * np.pi * np.array([1, -2, 0])
    velocity = ss.to_velocity(process, score)
    laws.close(velocity(t, turned), velocity(t, x), absolute=1e-12)
    circle = jnp.linspace(-np.pi, np.pi, 4001)
    point = jnp.asarray([1.0])
    for t in (0.3, 5.0):
        logs = jax.vmap(lambda x, t=t: process.log_kernel(t, x[None], point, 0.0))(circle)
        laws.close(np.trapezoid(np.exp(logs), circle), 1.0, absolute=1e-6)
    laws.close(ss.wrapped(turned), ss.wrapped(x), absolute=1e-12)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (lambda: ss.DiagonalGaussian(fading, rising, np.ones((3, 3))), "must be orthonormal"),
        (lambda: ss.DiagonalGaussian(fading, rising, np.ones(3)), "a square matrix"),
        (lambda: ss.pairs(POINTS, POINTS[:4]), "as many targets as sources"),
        (lambda: ss.Bridge(0.1, 0.0), "sigma_min must be"),
        (lambda: ss.Bridge(-1.0), "gamma must"),
        (lambda: ss.exact_score(ss.Bridge(), law(POINTS)), "pairs"),
        (lambda: ss.exact_score(ss.Torus(), law(POINTS * 4)), "angles in"),
        (lambda: ss.exact_score(ss.Torus(), ss.Points(POINTS, resolution=0.1)), "of its own"),
        (lambda: ss.Bridge().sample_prior((2, 3), key=KEY), "begins at sources"),
        (lambda: ss.calibrate(ss.Torus(), ss.exact_score(ss.Torus(), law(POINTS / 2)),
                              law(POINTS / 2), key=KEY), "of its own|no process x"),
        (lambda: ss.sample_sde(ss.Torus(), ss.exact_score(ss.Torus(), law(POINTS / 2)),
                               POINTS[:2], key=KEY), "the reverse SDE"),
        (lambda: ss.loss_sensitivity(ss.Torus(), ss.exact_score(ss.Torus(), law(POINTS / 2)),
                                     law(POINTS / 2), POINTS[:2], levels=jnp.ones(1), key=KEY),
         "no process x"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(asked, why):
    with pytest.raises(ValueError, match=why):
        asked()


@pytest.mark.slow
def test_the_pages_example_runs():
    page = (Path(__file__).parents[2] / "docs" / "flows.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found = {}
    exec(code, found)
    assert found["after"].x.shape == (4, 1, 8, 8, 1)
    assert found["owed"].top_values.shape == (4, 1, 5)
