"""What an accelerator would round, no matter that a CPU does not: read off the programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import scoresens as ss
from scoresens.sensitivity.functionals import pixel

PROCESS = ss.VP()
DATA = ss.Points(jnp.asarray(np.random.default_rng(0).normal(size=(9, 3))), bandwidth=0.5)
FULL = ss.GaussianMixture(jnp.ones(2), jnp.eye(3)[:2], jnp.stack([jnp.eye(3)] * 2))
NOISE, KEY = jnp.ones((2, 3)), jax.random.key(0)
SOLVE = ss.Solve(steps=1)


def score(t, x):
    """A network without a product."""
    return -x / (1 + t)


def precisions(function):
    """Of all products in the program of a function."""

    def of(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield equation.params["precision"]
            for inner in jaxprs_in_params(equation.params):
                yield from of(inner)

    return set(of(jax.make_jaxpr(function)(NOISE).jaxpr))


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
