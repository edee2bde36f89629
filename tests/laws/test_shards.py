"""Data divided over devices answer as the whole does."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import scoresens as ss
from scoresens import sweeps
from scoresens.datasets.streams import Stream
from scoresens.laws import shards
from scoresens.laws.changed import change
from scoresens.sensitivity.functionals import inner_product

EVERYONES = P()
PROCESS = ss.VP()
SHAPE = (2, 3)
OPTIONS = {"top": 4, "profile": True, "solve": ss.Solve(steps=3)}
FIELDS = ("x", "value", "profile", "top_values", "top_indices", "bottom_values", "bottom_indices")


@pytest.fixture(scope="module")
def mesh():
    return sweeps.mesh_of((1, 8))


@pytest.fixture(scope="module")
def data():
    """Nine on eight devices: three devices have nothing but copies."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(size=9)
    weights[3] = 0
    return ss.Points(jnp.asarray(rng.normal(size=(9, *SHAPE))), weights, 0.3)


def on_devices(mesh, run, data, *rest, out=EVERYONES):
    """`run(shard, *rest)` on each device."""
    shard = shards.divided(data, mesh, "directions")
    in_specs = (shards.specs(shard), *(P() for _ in rest))
    each = jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=out, check_vma=False)
    return jax.jit(each)(shard, *rest)


@pytest.mark.parametrize("tau", [0.05, 0.7, 40.0])
def test_the_law_is_the_whole_law(mesh, data, tau):
    x = jax.random.normal(jax.random.key(0), SHAPE)
    found = on_devices(mesh, lambda shard, x: shard.posterior(tau, x), data, x)
    expected = data.posterior(tau, x)
    np.testing.assert_allclose(found.gain, expected.gain, rtol=1e-10)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-9, atol=1e-12)


def test_sums_are_those_of_the_whole(mesh, data):
    x, each = jnp.ones(SHAPE), jax.random.normal(jax.random.key(1), (2, len(data)))

    def run(shard, x, coefficients):
        copies = len(shard) * 8 - len(data)
        padded = jnp.pad(coefficients, ((0, 0), (0, copies)))
        own = jax.lax.dynamic_slice_in_dim(padded, shard.first, len(shard), 1)
        return shard.weighted_sums(0.5, x, -3.0, own)

    for a, b in zip(
        on_devices(mesh, run, data, x, each), data.weighted_sums(0.5, x, -3.0, each), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_a_shard_takes_weights_and_a_bandwidth(mesh):
    """Each device its own points' weights, that sum to 1 over all."""
    points = jax.random.normal(jax.random.key(4), (8, *SHAPE))
    weights, x = jnp.arange(8.0) / 28, jnp.ones(SHAPE)

    def run(shard, x):
        changed = shard.with_weights(weights[shard.first][None]).bumped_like(ss.Smoothed(0.4))
        return changed.posterior(0.5, x)

    expected = ss.Points(points, weights, 0.4).posterior(0.5, x)
    for a, b in zip(on_devices(mesh, run, ss.Points(points), x), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_no_device_has_more_than_its_own_points(mesh, data):
    """Of 21 points in a file, three a device; one device has copies alone."""
    asked = []

    class Rows:
        shape, dtype = (21, 4, 3), np.dtype(np.float32)
        kept = np.random.default_rng(0).normal(size=shape).astype(dtype)

        def __getitem__(self, rows):
            asked.append(len(self.kept[rows]))
            return self.kept[rows]

    file = ss.Points.on_host(Stream(Rows()), bandwidth=0.3)
    asked.clear()
    shard = shards.divided(file, mesh, "directions")
    assert max(asked) == 3 and (len(shard), len(file)) == (24, 21)
    np.testing.assert_array_equal(shard.points[:21, ..., 0], Rows.kept)
    np.testing.assert_array_equal(shard.points[21:, ..., 0], Rows.kept[[-1] * 3])
    np.testing.assert_allclose(
        jnp.asarray(shard.normalized_weights), [1 / 21] * 21 + [0] * 3, rtol=1e-6
    )
    for made in (shard, shards.divided(data, mesh, "directions")):
        for table in jax.tree.leaves(made)[:2]:
            assert {len(part.data) for part in table.addressable_shards} == {len(table) // 8}


def test_divided_points_are_not_edited(mesh, data):
    def run(shard, x):
        own = shard.posterior(0.5, x)
        return change(shard, ss.remove(data, [0]), 0.5)[0].shift(0.5, x, own)[0]

    with pytest.raises(ValueError, match="cannot be divided over devices"):
        on_devices(mesh, run, data, jnp.ones(SHAPE))


@pytest.mark.slow
@pytest.mark.parametrize(
    "base, samples, noisy",
    [
        ("data", 8, False),
        ("data", 3, True),  # three paths are followed on every device
        (ss.Smoothed(0.4), 8, True),
    ],
)
def test_attributions_are_those_of_the_whole(mesh, data, base, samples, noisy):
    score, functional = ss.exact_score(PROCESS, data), inner_product(jnp.ones(SHAPE))
    noise = PROCESS.sample_prior((samples, *SHAPE), key=jax.random.key(2))

    def attributed(data, score, noise):
        keys = {"key": jax.random.key(3)} if base != "data" else {}
        route = ss.Diffusion(jax.random.key(4)) if noisy else ss.Flow()
        return ss.attribute(
            PROCESS, score, data, functional, noise,
            base=base, prior=None if base == "data" else GAUSSIAN, route=route,
            **keys, **OPTIONS,
        )  # fmt: skip

    found = on_devices(mesh, attributed, data, score, noise)
    expected = attributed(data, score, noise)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), 1e-8, 1e-10)


GAUSSIAN = ss.GaussianMixture(jnp.ones(1), jnp.zeros((1, *SHAPE)), jnp.ones(1))


@pytest.mark.slow
def test_losses_are_those_of_the_whole(mesh, data):
    score, x = ss.exact_score(PROCESS, data), data.points[:5]
    levels, key = jnp.array([0.3, 2.0]), jax.random.key(5)
    run = functools.partial(ss.loss_sensitivity, PROCESS)

    def asked(data, score, x):
        return run(score, data, x, levels=levels, key=key, base="data")

    out = P(None, "directions")
    found = on_devices(mesh, lambda *given: asked(*given).scores, data, score, x, out=out)
    expected = np.asarray(asked(data, score, x).scores)
    np.testing.assert_allclose(found[:, : len(data)], expected, rtol=1e-9, atol=1e-11)


def test_nothing_is_exchanged_while_a_path_is_followed(mesh, data):
    functional = inner_product(jnp.ones(SHAPE))
    asked = sweeps.attributions(
        PROCESS, ss.exact_score(PROCESS, ss.Points(data.points[:4], bandwidth=0.3)), data,
        functional, base=data, top=2, mesh=mesh, solve=ss.Solve(steps=3),
    )  # fmt: skip
    assert asked.program is not None
    text = asked.program(8, 1).as_text()
    exchanged = re.findall(r"^.*= .*(?:all-reduce|all-gather)(?:-start)?\(.*$", text, re.MULTILINE)
    assert exchanged
    assert not any("while" in line for line in exchanged)  # the name of the operation says where
