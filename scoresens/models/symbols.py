"""A network for sequences of symbols: one-hots in, logits of clean symbols out.

The residual blocks of `mlp` between two linear maps, told the time by the embedding of

    c_noise = log(t / (1 - t)) / 4,    t from 0 (data) to 1 (noise), kept 1e-4 away from both
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from scoresens.models.mlp import Block
from scoresens.models.preconditioning import NoiseEmbedding

EDGE = 1e-4


class SymbolMLP(nnx.Module):
    """`network(t, x) -> logits [length, alphabet]` for one noised sequence `[length]`, all equal
    before training.

    Args:
        length: d, symbols of a sequence.
        alphabet: A, symbols of the data.
        states: S, symbols of a noised sequence: `process.states`.
        width: units of each hidden layer.
        depth: number of residual blocks.
        rngs: the source of the initial parameters.

    Raises:
        ValueError: for a size below 1, or fewer states than symbols.
    """

    def __init__(
        self,
        length: int,
        alphabet: int,
        states: int,
        *,
        width: int = 256,
        depth: int = 3,
        rngs: nnx.Rngs,
    ):
        if min(length, alphabet, width, depth) < 1 or states < alphabet:
            raise ValueError(
                "length, alphabet, width and depth must be at least 1 and states at least "
                f"alphabet, got {(length, alphabet, width, depth)} and {states}"
            )
        self.length, self.alphabet, self.states = length, alphabet, states
        self.embedding = NoiseEmbedding(rngs=rngs)
        self.read = nnx.Linear(length * states, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, use_fast_variance=False, rngs=rngs)
        size = length * alphabet
        self.write = nnx.Linear(width, size, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(
        self, t: float | Float[Array, ""], x: Int[Array, " length"]
    ) -> Float[Array, "length alphabet"]:
        """Logits of the clean symbol at each position."""
        hots = jax.nn.one_hot(x, self.states).reshape(-1)
        t = jnp.clip(jnp.asarray(t, hots.dtype), EDGE, 1 - EDGE)
        e = self.embedding((jnp.log(t) - jnp.log1p(-t)) / 4)
        h = self.read(hots)
        for block in self.blocks:
            h = block(h, e)
        return self.write(nnx.silu(self.norm(h))).reshape(self.length, self.alphabet)
