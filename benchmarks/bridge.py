"""To which pairs does a translation owe its change: a network trained on pairs, and pairs removed.

A network learns the velocity of a `Bridge` from digits 3 to digits 8, in pairs by optimal
transport. Pairs are then removed: fine-tunings with and without them, of one seed and the same
draws, are the truth, 4 pairs of them; the counterfactual against the pairs is the prediction. The
bandwidth is the one that does best for a random half, and the other changes are reported with it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rows import measure, options, read, table
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import scoresens as ss
from scoresens import datasets
from scoresens.models.mlp import ResidualMLP
from scoresens.statistics.bootstrap import percentiles, resampled_rows
from scoresens.statistics.components import principal_components
from scoresens.statistics.displacements import cosines
from scoresens.studies.finetuning import RealChange
from scoresens.training.denoising import couple, draw

PROCESS = ss.Bridge(gamma=0.3, sigma_min=0.1)
HELD, SEEDS, BATCH = 20, 4, 256  # sources without a pair; pairs of fine-tunings; pairs a step
BASE, TUNED = (4000, 1e-3), (1500, 5e-5)  # steps and learning rate
WIDTHS = (0.5, 1.0, 1.5, 2.0, 3.0)  # bandwidths, in units of the default one of the targets
CHOSEN_ON = "a random half"


@functools.cache
def data() -> tuple[np.ndarray, np.ndarray]:
    """Pairs `[N, 2, 8, 8, 1]`, and sources that have none."""
    every = datasets.load("digits")
    sources, targets = (every.images[every.labels == digit] for digit in (3, 8))
    sources, held = sources[HELD:], sources[:HELD]
    flat = (images.reshape(len(images), -1) for images in (sources, targets))
    rows, columns = linear_sum_assignment(cdist(*flat, "sqeuclidean"))
    return np.asarray(ss.pairs(targets[columns], sources[rows])), held


def changes() -> dict[str, np.ndarray]:
    """Which pairs are removed."""
    pairs, _ = data()
    targets = pairs[:, 0].reshape(len(pairs), -1)
    moves = targets - pairs[:, 1].reshape(len(pairs), -1)
    half = np.random.default_rng(0).permutation(len(pairs)) < len(pairs) // 2
    found = {CHOSEN_ON: half}
    for name, values in (("targets", targets), ("moves", moves)):
        for which, axis in enumerate(principal_components(values, 2)):
            along = (values - values.mean(0)) @ axis
            found[f"a quarter, by component {which + 1} of the {name}"] = along > np.quantile(
                along, 0.75
            )
    return found


def optimiser(steps, rate):
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


@functools.partial(jax.jit, static_argnames=("steps", "rate"), donate_argnums=0)
def step(state, pairs, draws, key, steps, rate):
    """One step of flow matching; whatever is random comes from the key of its number."""
    net, average, opt, i = state
    own = jax.random.split(jax.random.fold_in(key, i), 3)
    z = pairs[draw(draws, BATCH, key=own[0])].reshape(BATCH, 2, -1)
    t = jax.random.uniform(own[1], (BATCH,))
    mean = (1 - t)[:, None] * z[:, 0] + t[:, None] * z[:, 1]
    spread = jnp.sqrt(PROCESS.sigma_min**2 + PROCESS.gamma**2 * t * (1 - t))
    x = mean + spread[:, None] * jax.random.normal(own[2], mean.shape)
    wanted = jax.vmap(PROCESS.velocity, (0, 0, 0, None))(t, x, z.reshape(BATCH, -1), 0.0)

    def loss(net):
        said = jax.vmap(net)(jnp.log(t) / 4, x.reshape(-1, *net.shape))
        return jnp.mean((said.reshape(BATCH, -1) - wanted) ** 2)

    gradient = jax.grad(loss)(net)
    updates, opt = optimiser(steps, rate).update(gradient, opt)
    net = jax.tree.map(jnp.add, net, updates)
    share = 1 - 2 ** (-1 / jnp.minimum(300.0, 0.05 * (i + 1)))
    average = jax.tree.map(lambda old, new: old + share * (new - old), average, net)
    return net, average, opt, i + 1


def trained(net, weights, key, steps, rate):
    """The averaged network, trained from this one."""
    pairs, _ = data()
    draws = couple(len(pairs), weights)
    copies = (jax.tree.map(jnp.copy, net) for _ in range(2))
    opt = optimiser(steps, rate).init(net)
    state = (*copies, opt, jnp.zeros((), jnp.int32))
    for _ in range(steps):
        state = step(state, jnp.asarray(pairs), draws, key, steps, rate)
    return state[1]


def velocity(net, t, x):
    return net(jnp.log(t) / 4, x)


def score_of(net):
    return ss.from_velocity(PROCESS, jax.tree_util.Partial(velocity, net))


@functools.cache
def base():
    net = ResidualMLP((8, 8, 1), width=128, depth=2, rngs=nnx.Rngs(0))
    return trained(net, None, jax.random.key(0), *BASE)


@functools.cache
def starts() -> jax.Array:
    """Every source, and those without a pair, with the noise that the bridge has there."""
    pairs, held = data()
    sources = np.concatenate([pairs[:, 1], held])
    noise = jax.random.normal(jax.random.key(7), sources.shape)
    return jnp.asarray(sources) + PROCESS.sigma_min * noise


@functools.cache
def control(seed: int) -> np.ndarray:
    return ends(trained(base(), None, jax.random.key(100 + seed), *TUNED))


def ends(net) -> np.ndarray:
    return np.asarray(ss.sample_ode(PROCESS, score_of(net), starts()).x)


def predicted(taken: np.ndarray, bandwidth: float) -> np.ndarray:
    pairs, _ = data()
    points = ss.Points(jnp.asarray(pairs), bandwidth=bandwidth)
    change, score = ss.remove(points, taken), score_of(base())
    after = ss.counterfactual(PROCESS, score, change, starts(), mass=1.0, base=points).x[:, 0]
    return np.asarray(after) - ends(base())


def removed(name: str) -> dict:
    """The truth and the prediction of one removal, at every bandwidth."""
    pairs, _ = data()
    taken = changes()[name]
    changed = [
        ends(trained(base(), np.where(taken, 0.0, 1.0), jax.random.key(100 + seed), *TUNED))
        for seed in range(SEEDS)
    ]
    real = RealChange(np.stack([control(seed) for seed in range(SEEDS)]), np.stack(changed))
    usual, truth = ss.default_bandwidth(pairs[:, 0]), real.displacement
    found: dict = {"removed": int(taken.sum()), "pairs": len(pairs), "reach": round(real.reach, 3)}
    for width in WIDTHS:
        found[f"{width}"] = compared(predicted(taken, width * usual), truth)
    ceiling = compared(*real.ceiling)
    return found | {"ceiling": ceiling}


def compared(found: np.ndarray, truth: np.ndarray) -> dict:
    a, b = found.reshape(len(found), -1), truth.reshape(len(truth), -1)
    near = cosines(found, truth)
    again = np.median(near[resampled_rows(len(near), 1000, 0)], 1)
    _, low, high = percentiles(float(np.median(near)), again)
    return {
        "cosine": round(float(np.median(near)), 3), "interval": [round(low, 3), round(high, 3)],
        "pearson": round(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]), 3),
        "relative L2": round(float(np.linalg.norm(a - b) / np.linalg.norm(b)), 3),
    }  # fmt: skip


def best(done: dict) -> str:
    """The bandwidth that does best for the change that it is chosen on."""
    return max(map(str, WIDTHS), key=lambda width: done[CHOSEN_ON][width]["cosine"])


def markdown() -> str:
    done = read("bridge")
    width, lines = best(done), []
    for name, row in done.items():
        found, top = row[width], row["ceiling"]
        said = f"{found['cosine']:.3f} ({found['interval'][0]:.3f}, {found['interval'][1]:.3f})"
        share = found["pearson"] / row["reach"]
        lines.append([
            name, str(row["removed"]), said, f"{top['cosine']:.3f}", f"{found['pearson']:.3f}",
            f"{row['reach']:.3f}", f"{share:.0%}", f"{found['relative L2']:.2f}",
        ])  # fmt: skip
    header = ["removed", "pairs", f"median cosine, h = {width}", "one pair against the others"]
    return table([*header, "Pearson", "reach", "share", "relative L2"], lines)


if __name__ == "__main__":
    given = options(__doc__).parse_args()
    if not given.table:
        todo = {name: functools.partial(removed, name) for name in changes()}
        measure("bridge", todo, given.only, given.fresh)
    print(markdown())
