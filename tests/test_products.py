"""What an accelerator would round, no matter that a CPU does not: read off the programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import scoresens as ss
from scoresens.laws.shards import divided
from scoresens.sensitivity import _blocks
from scoresens.sensitivity.functionals import pixel
from scoresens.sensitivity.tables import States

PROCESS = ss.VP()
IMAGES = np.random.default_rng(0).normal(size=(9, 3))
DATA = ss.Points(jnp.asarray(IMAGES), bandwidth=0.5)
FULL = ss.GaussianMixture(jnp.ones(2), jnp.eye(3)[:2], jnp.stack([jnp.eye(3)] * 2))
NOISE, KEY = jnp.ones((2, 3)), jax.random.key(0)
SOLVE = ss.Solve(steps=1)


def score(t, x):
    """A network without a product."""
    return -x / (1 + t)


def products(function):
    """Precision and second operand of all products in the program of a function."""

    def of(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield equation.params["precision"], equation.invars[1].aval
            for inner in jaxprs_in_params(equation.params):
                yield from of(inner)

    return of(jax.make_jaxpr(function)(NOISE).jaxpr)


def precisions(function):
    return {precision for precision, _ in products(function)}


def sensitivity(base, **options):
    def ask(noise):
        add = ss.add(jnp.ones((1, 3)))
        return ss.sample_sensitivity(
            PROCESS, score, add, noise, base=base, key=KEY, solve=SOLVE, **options
        )

    return ask


ASKED = {
    "black box": sensitivity(None),
    "hutch++": sensitivity(None, trace=ss.HutchPlusPlus(3)),
    "data": sensitivity(DATA),
    "mixture": sensitivity(FULL),
    "SDE by Ito": sensitivity(None, trace=ss.Ito(), route=ss.Diffusion(KEY)),
    "counterfactual": lambda noise: ss.counterfactual(
        PROCESS, score, ss.remove(DATA, [0]), noise, mass=0.1, base=DATA, solve=SOLVE
    ),
    "attribution": lambda noise: ss.attribute(
        PROCESS, score, DATA, pixel(0), noise, profile=True, solve=SOLVE
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ASKED)
def test_products_are_of_full_precision_unless_another_is_chosen(name):
    assert precisions(ASKED[name]) == {(jax.lax.Precision.HIGHEST,) * 2}
    with jax.default_matmul_precision("high"):
        assert (jax.lax.Precision.HIGH,) * 2 in precisions(
            ASKED[name]
        )  # diffrax's stay as they are


FAST = jax.lax.DotAlgorithmPreset.BF16_BF16_F32
QUICK = ss.Points(jnp.asarray(IMAGES), bandwidth=0.5, precision="BF16_BF16_F32")
ON_HOST = ss.Points.on_host(IMAGES, None, 0.5, precision="BF16_BF16_F32")


def edited(verb, change, **options):
    def ask(noise):
        return verb(PROCESS, score, change, noise, base=QUICK, solve=SOLVE, **options)

    return ask


OF_POINTS = {
    "sensitivity": edited(ss.sample_sensitivity, ss.add(jnp.ones((1, 3)))),
    "move": edited(ss.sample_sensitivity, ss.move(QUICK, [1], jnp.ones((1, 3)))),
    "exchange": edited(ss.counterfactual, ss.replace(QUICK, [0], jnp.ones((1, 3))), mass=0.1),
    "blocks": lambda x: _blocks.posteriors(QUICK, States(jnp.ones(1), x[None])),
    "host": lambda x: _blocks.posteriors(ON_HOST, States(jnp.ones(1), x[None])),
}


@pytest.mark.parametrize("name", OF_POINTS)
def test_points_have_a_precision_of_their_own(name):
    """The points are the second operand: all, or the one that is named, alone or of a direction."""
    of_points = [(len(IMAGES), 3), (1, 3), (1, 1, 3)]
    with jax.default_matmul_precision("high"):
        assert all((of == FAST) == (b.shape in of_points) for of, b in products(OF_POINTS[name]))
    assert FAST in precisions(OF_POINTS[name])


def test_a_networks_products_and_the_sums_of_weights_keep_theirs():
    def network(t, x):
        return -jnp.eye(3) @ x / (1 + t)

    def ask(noise):
        return ss.attribute(PROCESS, network, QUICK, pixel(0), noise, profile=True, solve=SOLVE)

    assert precisions(ask) == {FAST, None, (jax.lax.Precision.HIGHEST,) * 2}


def test_a_precision_that_a_device_has_not_is_refused_when_compiling():
    if jax.default_backend() != "cpu":
        pytest.skip("this one may have it")
    points = ss.Points(IMAGES, precision="TF32_TF32_F32")
    with pytest.raises(ValueError, match="'TF32_TF32_F32' is not supported"):
        points.denoise(1.0, jnp.ones(3))


@pytest.mark.parametrize("kind", ["host", "shards"])
def test_no_kind_of_points_loses_its_precision(kind):
    mesh = jax.make_mesh((1,), ("data",))
    data = ON_HOST if kind == "host" else divided(QUICK, mesh, "data")
    others = data.with_weights(jnp.arange(9.0)), data.bumped_like(DATA)
    assert {points.precision for points in (data, *others)} == {"BF16_BF16_F32"}
    assert ss.Points(IMAGES).bumped_like(data).precision == "BF16_BF16_F32"
    assert ss.Points(IMAGES, precision="high").bumped_like(data).precision == "high"


@pytest.mark.parametrize("wrong", ["fast", ("high", "fast")])
def test_a_precision_that_jax_has_not_is_refused(wrong):
    with pytest.raises(ValueError, match="precision must be None"):
        ss.Points(IMAGES, precision=wrong)
