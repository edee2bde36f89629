"""SOAP, beside Adam."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import optax

from scoresens.training.soap import MEMORY, REFRESH, soap


def test_soap_is_adam_in_the_eigenbasis_of_the_gradients():
    """On a badly conditioned quadratic in rotated coordinates, where Adam zigzags; and, before the
    first rotation, it is Adam."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    stiff = jnp.asarray(turn @ np.diag(np.geomspace(1, 1e4, 6)) @ turn.T)
    start = {"w": jnp.asarray(rng.normal(size=(6, 4))), "b": jnp.asarray(rng.normal(size=6))}

    def loss(p):
        return sum(0.5 * jnp.sum(v * (stiff @ v)) for v in p.values())

    def run(optimiser, steps):
        def step(carry, _):
            p, state = carry
            moves, state = optimiser.update(jax.grad(loss)(p), state)
            return (jax.tree.map(jnp.add, p, moves), state), None

        carry = start, optimiser.init(start)
        return jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[0][0])(carry)

    adam = optax.adam(0.01, b1=MEMORY, b2=MEMORY)
    ours, theirs = (run(o, REFRESH) for o in (soap(lambda _: 0.01), adam))
    for name in start:
        laws.close(ours[name], theirs[name], relative=1e-6)
    fall = optax.cosine_decay_schedule(0.05, 400)
    found = float(loss(run(soap(fall), 400)))
    assert found < 0.1 * float(loss(run(optax.adam(fall, b1=MEMORY, b2=MEMORY), 400)))
