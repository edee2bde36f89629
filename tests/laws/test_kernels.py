"""Kernels as sharp as a network (6.6), (6.7), (6.11), by their definition and in every verb."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import scoresens as ss
from scoresens.laws import shards
from scoresens.laws.axes import principal_axes
from scoresens.laws.changed import change as change_of

rng = np.random.default_rng(0)
D, N, H = 6, 40, 0.3
POINTS = rng.normal(size=(N, D)) @ (rng.normal(size=(D, D)) * np.geomspace(2, 0.02, D)) + 3
WEIGHTS = rng.uniform(0.2, 1, N)
NAMES = ("temperature", "width", "resolution", "spectral_bias")
SETTINGS = [
    (1.0, None, 0.0, 0.0), (2.5, None, 0.0, 0.0), (1.0, 0.5, 0.0, 0.0), (1.0, None, 0.02, 0.0),
    (1.0, None, 0.0, 0.1), (3.0, 0.5, 0.01, 0.03),
]  # fmt: skip
PROCESS, NOISE = laws.between_levels(ss.EDM())[0], jnp.asarray(20 * rng.normal(size=(3, D)))
LAW = ss.GaussianMixture(jnp.ones(1), jnp.full((1, D), 3.0), jnp.ones(1))
SCORE = ss.exact_score(PROCESS, LAW)
SHORT = ss.Solve(steps=10, tau_min=laws.BOTTOM)


def resolved(*setting):
    return ss.Points(jnp.asarray(POINTS), WEIGHTS, H, **dict(zip(NAMES, setting, strict=True)))


def kernels_of(setting, tau, x):
    """log(w K) of each point, by the definition."""
    temperature, width, resolution, _ = setting
    variances, axes = np.linalg.eigh(np.cov(POINTS.T, bias=True))
    shares = variances / (variances + resolution * variances.sum())
    squares = ((x - POINTS) @ axes) ** 2 @ shares
    spread = tau**2 + (H if width is None else width) ** 2
    return np.log(WEIGHTS / WEIGHTS.sum()) - squares / (2 * temperature * spread)


@pytest.mark.parametrize("tau", [0.01, 0.5, 5.0, 80.0])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_posterior_mean_is_that_of_the_definition(setting, tau):
    x = POINTS[7] + tau * rng.normal(size=D)
    logs = kernels_of(setting, tau, x)
    shares = np.exp(logs - logs.max())
    mean = shares @ POINTS / shares.sum()
    expected = (H**2 * x + tau**2 * mean) / (H**2 + tau**2)
    found = resolved(*setting).denoise(tau, jnp.asarray(x))
    laws.close(found, expected, relative=1e-9)


def test_the_usual_settings_change_nothing():
    plain, given = ss.Points(jnp.asarray(POINTS), WEIGHTS, H), resolved(*SETTINGS[0])
    assert jax.tree.structure(plain) == jax.tree.structure(given)


@pytest.mark.parametrize("setting", SETTINGS[1:])
def test_finite_changes_begin_as_tangents_and_attribution_reads_them(setting):
    data = resolved(*setting)
    new, edit = ss.add(jnp.asarray(POINTS[[5, 20]])), ss.remove(data, [5, 20])
    before = ss.sample_ode(PROCESS, SCORE, NOISE, solve=SHORT).x[:, None]
    for change in (new, edit, ss.move(data, [5, 20], np.ones((2, D)))):
        options = {"base": data, "solve": SHORT}
        tangent = ss.sample_sensitivity(PROCESS, SCORE, change, NOISE, **options).tangent
        after = ss.counterfactual(PROCESS, SCORE, change, NOISE, mass=1e-7, **options).x
        laws.close((after - before) / 1e-7, tangent, relative=1e-3)
    pixel = ss.functionals.pixel(0)
    found = ss.attribute(PROCESS, SCORE, data, pixel, NOISE, solve=SHORT).scores
    tangent = ss.sample_sensitivity(PROCESS, SCORE, new, NOISE, base=data, solve=SHORT).tangent
    laws.close(found[:, [5, 20]], tangent[..., 0], relative=1e-5)
    given = dict(zip(NAMES, setting, strict=True))
    host = ss.Points.on_host(POINTS, WEIGHTS, H, **given)
    laws.close(
        ss.attribute(PROCESS, SCORE, host, pixel, NOISE, solve=SHORT).scores, found, relative=1e-8
    )


@pytest.mark.parametrize("plain", [resolved(2.0, 0.5, 0.01, 0.0), resolved(*SETTINGS[0])])
def test_a_spectral_bias_filters_what_changes(plain):
    """A dense matrix of (6.11) times what points without it say, by every kind of change."""
    bias, x, index = 0.05, jnp.asarray(POINTS[:3] + 1), [5, 20]
    variances, axes = np.linalg.eigh(np.cov(POINTS.T, bias=True))
    gains = axes * (variances / (variances + bias * variances.sum())) @ axes.T
    given = plain.with_spectral_bias(bias)

    def scores(data, change):
        return ss.score_sensitivity(PROCESS, SCORE, change(data), 1.0, x, base=data).tangent

    def finitely(data, change):
        law = change_of(data, change(data).bumped_like(data), 0.3)[0]
        denoised = jax.vmap(lambda x: law.shift(1.0, x, data.posterior(1.0, x))[0])
        return denoised(x)

    changes = {
        "added": lambda data: ss.add(jnp.asarray(POINTS[:1] + 0.5)),
        "removed": lambda data: ss.remove(data, index),
        "moved": lambda data: ss.move(data, index, np.ones((2, D))),
    }
    for change in changes.values():
        for asked in (scores, finitely):
            laws.close(asked(given, change), asked(plain, change) @ gains, relative=1e-9)
    laws.close(given.denoise(1.0, x[0]), plain.denoise(1.0, x[0]), relative=1e-12)


def test_a_shard_answers_as_the_whole():
    data, x = resolved(2.0, 0.5, 0.03, 0.0), jnp.asarray(POINTS[3] + 1)
    mesh = jax.make_mesh((8,), ("points",))
    shard = shards.divided(data, mesh, "points")
    specs = (shards.specs(shard), jax.sharding.PartitionSpec())
    each = jax.shard_map(
        lambda part, x: part.denoise(1.0, x),
        mesh=mesh,
        in_specs=specs,
        out_specs=jax.sharding.PartitionSpec(),
        check_vma=False,
    )
    laws.close(jax.jit(each)(shard, x), data.denoise(1.0, x), relative=1e-9)


def test_what_wants_a_density_is_refused():
    data, law = resolved(2.0, None, 0.0, 0.0), ss.add(LAW)
    change = ss.remove(data, [3])
    key, options = jax.random.key(0), {"solve": SHORT}
    asked = {
        "a density": lambda: data.log_density(1.0, jnp.asarray(POINTS[0])),
        "the model's law": lambda: ss.sample_sensitivity(
            PROCESS, SCORE, change, NOISE, key=key, **options
        ),
        "a law": lambda: ss.sample_sensitivity(PROCESS, SCORE, law, NOISE, base=data, **options),
        "a prior": lambda: ss.encode(
            PROCESS, SCORE, NOISE, trace=ss.Exact(), prior=data, **options
        ),
        "a black box": lambda: ss.attribute(
            PROCESS, SCORE, data, ss.functionals.pixel(0), NOISE, base=None, key=key, **options
        ),
    }
    for what, ask in asked.items():
        with pytest.raises(ValueError, match="temperature, a width, a resolution"):
            ask()
            pytest.fail(f"{what} was given")
    density = ss.score_sensitivity(PROCESS, SCORE, change, 1.0, NOISE, base=data).log_density
    assert density is None


@pytest.mark.parametrize("dimensions", [D, 3 * N])
def test_axes_of_few_points_and_of_many(dimensions):
    """In as many dimensions as there are, or as the points span; the largest variance first."""
    points = rng.normal(size=(N, dimensions)) + 3
    axes = principal_axes(jnp.asarray(points))
    count = min(dimensions, N - 1)
    laws.close(axes.basis.T @ axes.basis, np.eye(count), absolute=1e-6)
    covariance = (points - points.mean(0)).T @ (points - points.mean(0)) / N
    laws.close(axes.basis * axes.variances @ axes.basis.T, covariance, absolute=1e-6)
    assert np.all(np.diff(axes.variances) <= 0)


REFUSED = {"temperature": 0.0, "width": 0.0, "resolution": -0.1, "spectral_bias": -1.0}


@pytest.mark.parametrize("given", [{name: value} for name, value in REFUSED.items()])
def test_what_is_no_setting_of_a_kernel_is_refused(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        ss.Points(jnp.asarray(POINTS), **given)
