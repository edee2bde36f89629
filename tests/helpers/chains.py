"""Markov chains over all sequences of a few symbols, in NumPy, by their generators: what the closed
forms of `scoresens.discrete` are compared with."""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.linalg import expm

from scoresens import discrete as dc

RESIDUE = 0.05
PROCESSES = {"uniform": dc.Uniform(3, RESIDUE), "masked": dc.Masked(3, RESIDUE)}


class Chain(NamedTuple):
    """Sequences of d symbols, noised from weighted points that are flipped."""

    process: dc.Process
    points: np.ndarray
    weights: np.ndarray
    flip: float

    @property
    def data(self) -> dc.Sequences:
        """The same, as the library has it."""
        return dc.Sequences(self.points, 3, self.weights, self.flip)

    @property
    def size(self) -> int:
        """Symbols that a noised sequence may hold."""
        return 4 if isinstance(self.process, dc.Masked) else 3

    @property
    def every(self) -> np.ndarray:
        """All noised sequences `[S^d, d]`, in the order of the laws here."""
        return np.array(list(itertools.product(range(self.size), repeat=self.points.shape[1])))

    @property
    def target(self) -> np.ndarray:
        """What noise makes of any symbol."""
        if isinstance(self.process, dc.Masked):
            return np.eye(4)[3]
        return np.full(3, 1 / 3)

    def single(self, noise: float) -> np.ndarray:
        """The transition of one position after so much total noise."""
        return expm(noise * (np.ones((self.size, 1)) * self.target - np.eye(self.size)))

    @property
    def generator(self) -> np.ndarray:
        """Of all positions, per unit of total noise; from rows to columns."""
        one = np.ones((self.size, 1)) * self.target - np.eye(self.size)
        length = self.points.shape[1]
        total = np.zeros((self.size**length,) * 2)
        for i in range(length):
            total += np.kron(
                np.kron(np.eye(self.size**i), one), np.eye(self.size ** (length - 1 - i))
            )
        return total

    @property
    def clean(self) -> np.ndarray:
        """The law of flipped data, over all sequences."""
        total = np.zeros(len(self.every))
        for point, weight in zip(self.points, self.weights / self.weights.sum(), strict=True):
            same = self.every == point
            flips = np.where(self.every < 3, self.flip / 2, 0.0)
            total += weight * np.prod(np.where(same, 1 - self.flip, flips), 1)
        return total

    def transition(self, t: float) -> np.ndarray:
        """From clean sequences (rows) to noised ones (columns)."""
        return expm(total_noise(t) * self.generator)

    def law(self, t: float) -> np.ndarray:
        """The noised law, over all sequences."""
        return self.clean @ self.transition(t)

    def place(self, x: np.ndarray) -> int:
        """Where a sequence stands among all."""
        return int(np.flatnonzero((self.every == x).all(1))[0])

    def neighbours(self, x: np.ndarray) -> np.ndarray:
        """Places `[d, S]` of the sequences that differ from x at one position."""
        found = np.empty((len(x), self.size), int)
        for i, z in np.ndindex(*found.shape):
            other = x.copy()
            other[i] = z
            found[i, z] = self.place(other)
        return found

    def but(self, **changes) -> "Chain":
        """Another of these."""
        return self._replace(**changes)


def total_noise(t: float) -> float:
    """SEDD's log-linear noise."""
    return -np.log(1 - (1 - RESIDUE) * t)


def chain(name: str, length: int = 2, flip: float = 0.1) -> Chain:
    """Five points of a process by its name, always the same."""
    rng = np.random.default_rng(length)
    points = rng.integers(3, size=(5, length))
    return Chain(PROCESSES[name], points, rng.uniform(0.5, 1.5, 5), flip)


def network(process: dc.Process, length: int = 2) -> dc.Denoiser:
    """A denoiser that is no law's, smooth in time."""
    rng = np.random.default_rng(7)
    table = jnp.asarray(rng.normal(size=(length, process.states, length, 3)))

    def logits(t, x):
        seen = sum(table[i, x[i]] for i in range(length))
        return (1 - 0.5 * t) * seen

    return dc.from_denoiser(process, logits)


def clean_law(chain: Chain, t: float, x: np.ndarray) -> np.ndarray:
    """p(y_i = u | x), `[d, 3]`, by Bayes over all clean sequences."""
    joint = chain.clean * chain.transition(t)[:, chain.place(x)]
    joint = joint / joint.sum()
    return np.array([[joint[chain.every[:, i] == u].sum() for u in range(3)]
                     for i in range(len(x))])  # fmt: skip
