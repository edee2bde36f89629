"""Convolutions and all their derivatives, against JAX's own."""

import re

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from flax import nnx

from scoresens.models import UNet
from scoresens.models.convolution import channels_last, convolve

draw = np.random.default_rng(0)
X, K = (
    jnp.asarray(draw.normal(size=(2, 3, 7, 8, 4))),
    jnp.asarray(draw.normal(size=(2, 3, 3, 4, 5))),
)
SETTINGS = {
    "same": ((1, 1), "SAME", None, None),
    "strided": ((2, 1), ((1, 0), (0, 2)), None, None),
    "wide": ((1, 1), ((2, 2), (2, 2)), None, (2, 2)),
    "spread": ((1, 1), ((1, 1), (1, 0)), (2, 3), None),
}


def loss(convolution, settings):
    def of(x, k):
        return jnp.sum(jnp.sin(convolution(x, k, *settings, channels_last(2))))

    return of


@pytest.mark.parametrize("name", SETTINGS)
def test_values_and_derivatives_are_those_of_jax(name):
    """Of both operands and of copies of either; in reverse mode, forward over reverse, and reverse
    over that."""
    ours, theirs = (
        loss(convolution, SETTINGS[name])
        for convolution in (convolve, jax.lax.conv_general_dilated)
    )

    def slopes(of):
        both = jax.grad(of, (0, 1))

        def along(x, k):
            return jax.jvp(both, (x, k), (x + 1, k - 1))[1]

        def whole(x, k):
            return sum(jnp.sum(part**2) for part in along(x, k))

        return [
            of(X[0], K[0]),
            *along(X[0], K[0]),
            *jax.grad(whole, (0, 1))(X[0], K[0]),
            *jax.vmap(both, (1, None))(jnp.moveaxis(X, 0, 1), K[0]),
            *jax.vmap(both)(X, K),
        ]

    for found, expected in zip(slopes(ours), slopes(theirs), strict=True):
        laws.close(found, expected, relative=1e-12)


def test_other_orders_and_groups_are_jaxs():
    x = jnp.moveaxis(X[0], -1, 1)
    found = convolve(x, K[0], (1, 1), "SAME", dimension_numbers=("NCHW", "HWIO", "NCHW"))
    laws.close(
        jnp.moveaxis(found, 1, -1),
        convolve(X[0], K[0], (1, 1), "SAME", None, None, channels_last(2)),
        relative=1e-12,
    )
    grouped = convolve(X[0], K[0][:, :, :2, :4], (1, 1), "SAME", None, None, channels_last(2), 2)
    assert grouped.shape == (3, 7, 8, 4)


def test_all_convolutions_of_a_unet_and_its_adjoint_have_one_order():
    """The one that is quick inside of loops."""
    network = UNet((8, 8, 1), width=8, depth=2, rngs=nnx.Rngs(0))

    def pulled(x):
        return jax.vjp(lambda x: network(jnp.float32(1.0), x), x)[1](x)[0]

    text = jax.jit(pulled).lower(jnp.ones((8, 8, 1), jnp.float32)).as_text()
    orders = set(re.findall(r"dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", text))
    assert orders == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}
