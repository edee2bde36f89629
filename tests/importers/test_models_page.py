"""The page on models of one's own runs as printed, and its networks are the exact ones."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from flax import linen, nnx
from jax.tree_util import Partial

import scoresens as ss

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
COARSE = ss.Solve(steps=4)
MEAN, STD = np.array([1.0, -0.5]), np.array([0.5, 0.2])
X = np.array([0.7, -1.3])
HEUN = 0.02  # measured 0.011: 40 steps down from tau = 152 to a spread of 0.2
PARTS = pytest.mark.parametrize("part", [0.05, 0.4, 0.9])
FRAMEWORKS = {
    "function": (ss.VP(), "noise"),
    "linen": (ss.EDM(), "denoiser"),
    "nnx": (ss.Cosine(), "v"),
    "equinox": (ss.FlowMatching(), "velocity"),
    "batch": (ss.VP(), "noise"),
}
EACH = pytest.mark.parametrize("framework", FRAMEWORKS)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page():
    """The names that the page's Python leaves behind."""
    pytest.importorskip("equinox")
    before, heading, _ = PAGE.read_text(encoding="utf-8").partition("## PyTorch, diffusers, EDM")
    assert heading
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", before, re.DOTALL)), names)
    return names


def gaussian(mean, std):
    """N(mean, diag(std^2)) as the library knows it."""
    return ss.GaussianMixture(jnp.ones(1), jnp.asarray(mean)[None], jnp.asarray(std)[None] ** 2)


def by_hand(process, t, x, mean, std):
    """The score of the noised Gaussian, in numpy."""
    alpha, sigma = laws.scales(process, t)
    return -(x - alpha * mean) / (alpha**2 * std**2 + sigma**2)


def carried(process, noise, mean, std):
    """Where the flow takes noise, quantile by quantile, to the noise level where paths end."""
    alpha, sigma = laws.scales(process, process.t_max)
    end = max(ss.Solve().tau_min, float(process.noise_level(0.0)))
    quantiles = (np.asarray(noise) - alpha * mean) / np.sqrt(alpha**2 * std**2 + sigma**2)
    return mean + np.sqrt(std**2 + end**2) * quantiles


# ------------------------------------------------------------------ frameworks


@EACH
@PARTS
def test_scores_are_those_of_the_gaussian(page, framework, part):
    """By hand, and as the library has it; 1e-9 for the quotients of a small sigma."""
    process, _ = FRAMEWORKS[framework]
    t, score = part * process.t_max, page[f"score_of_{framework}"]
    expected = by_hand(process, t, X, MEAN, STD)
    laws.close(score(t, jnp.asarray(X)), expected, relative=1e-9)
    exact = ss.exact_score(process, gaussian(MEAN, STD))
    laws.close(exact(t, jnp.asarray(X)), expected, relative=1e-9)


@EACH
def test_samples_are_carried_to_where_the_flow_goes(page, framework):
    """To 40 steps' error of the closed form, and to rounding of the closed-form score's path."""
    process, _ = FRAMEWORKS[framework]
    noise = process.sample_prior((4, 2), key=page["key"])
    found = page[f"from_{framework}"]
    laws.close(found, carried(process, noise, MEAN, STD), absolute=HEUN)
    score = ss.exact_score(process, gaussian(MEAN, STD))
    laws.close(found, ss.sample_ode(process, score, noise).x, absolute=1e-8)


@EACH
def test_the_networks_say_what_the_page_claims(page, framework):
    """The prediction that the exact score implies, by the inverse of the call on the page."""
    process, kind = FRAMEWORKS[framework]
    network = {
        "function": Partial(page["predict_noise"], page["parameters"]),
        "linen": lambda t, x: page["network"].apply(page["variables"], t, x, train=False),
        "nnx": page["v"],
        "equinox": page["score_of_equinox"],
        "batch": Partial(page["of_one"], page["parameters"]),
    }[framework]
    if framework == "equinox":
        network = page["Velocity"](page["mean"], jnp.log(page["std"]))
    implied = getattr(ss, f"to_{kind}")(process, ss.exact_score(process, gaussian(MEAN, STD)))
    t = 0.4 * process.t_max
    laws.close(network(t, jnp.asarray(X)), implied(t, jnp.asarray(X)), relative=1e-9)


def test_the_clock_of_flows_that_end_in_data():
    """The table's rule: the network at 1 - t, and minus its output."""
    process, (mean, std) = ss.FlowMatching(), (MEAN, STD)

    def theirs(s, x):  # E[x_0 - n | s x_0 + (1 - s) n = x]
        slope = (x - s * mean) / (s**2 * std**2 + (1 - s) ** 2)
        return mean + s * std**2 * slope - (1 - s) * slope

    score = ss.from_velocity(process, lambda t, x: -theirs(1 - t, x))
    laws.close(score(0.3, X), by_hand(process, 0.3, X, mean, std), relative=1e-9)


def test_the_index_of_a_thousand_linear_betas():
    """The table's rule: index 1000 t - 1; the products of 1 - beta against VP, to their step."""
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for index in (99, 499, 999):
        expected = 2 * float(ss.VP().log_alpha((index + 1) / 1000))
        assert np.log(kept[index]) == pytest.approx(expected, rel=0.02)


# ------------------------------------------------------------------ conditions


@PARTS
def test_scores_of_classes_text_and_guidance(page, part):
    t, x = part * page["vp"].t_max, jnp.asarray(X)
    laws_of = [
        (np.asarray(m), np.exp(np.asarray(s)))
        for m, s in zip(page["classes"]["mean"], page["classes"]["log_std"], strict=True)
    ]
    expected = [by_hand(page["vp"], t, X, *law) for law in laws_of]
    for label in range(3):
        laws.close(page["score_of_class"](label)(t, x), expected[label], relative=1e-9)
    mixed = expected[2] + 3 * (expected[0] - expected[2])
    laws.close(page["guided"](t, x), mixed, relative=1e-9)
    read = np.asarray(page["reader"]["read"]) @ np.asarray(page["prompt"])
    laws.close(page["score_of_text"](t, x), by_hand(page["vp"], t, X, read, STD), relative=1e-9)


def test_samples_of_classes(page):
    """Each sample of a batch of several classes is the one that its class alone makes."""
    alone = np.stack([page["first"], page["second"]])
    laws.close(page["of_each"], alone[[0, 1, 0, 1], np.arange(4)], absolute=1e-10)
    mean, std = np.asarray(page["classes"]["mean"][1]), np.exp([-1.0, -2.0])
    laws.close(page["second"], carried(page["vp"], page["noise"], mean, std), absolute=HEUN)


def test_closures_and_arguments_agree(page):
    laws.close(page["from_slow"], page["from_fast"], absolute=1e-10)
    law = carried(page["vp"], page["noise"], -MEAN, STD)
    laws.close(page["from_fast"], law, absolute=HEUN)


# ------------------------------------------------------------------ how often Python looks


TRACES = []


class OfLinen(linen.Module):
    @linen.compact
    def __call__(self, t, x, train=True):
        TRACES.append(None)
        h = linen.silu(linen.Dense(4)(jnp.append(x, t)))
        return linen.Dense(2)(linen.Dropout(0.5, deterministic=not train)(h))


class OfNnx(nnx.Module):
    def __init__(self, rngs):
        self.read, self.write = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, t, x):
        TRACES.append(None)
        h = self.norm(nnx.silu(self.read(jnp.append(x, t)))[None])[0]
        return self.write(self.drop(h))


LINEN = OfLinen()


def linen_network(seed):
    variables = LINEN.init(jax.random.key(seed), 0.5, jnp.ones(2), train=False)
    return Partial(LINEN.apply, variables, train=False)


def nnx_network(seed):
    network = OfNnx(nnx.Rngs(seed))
    network.eval()
    return network


def equinox_network(seed):
    """The usual parts, whose leaves are an activation and flags beside the numbers."""
    eqx = pytest.importorskip("equinox")

    class OfEquinox(eqx.Module):
        layers: eqx.nn.MLP  # pyright: ignore[reportInvalidTypeForm]
        drop: eqx.nn.Dropout  # pyright: ignore[reportInvalidTypeForm]
        name: str = "network"

        def __call__(self, t, x):
            TRACES.append(None)
            return self.drop(self.layers(jnp.append(x, t)))

    made = EQUINOX.setdefault("class", OfEquinox)
    layers = eqx.nn.MLP(3, 2, 4, 1, activation=jax.nn.silu, key=jax.random.key(seed))
    return eqx.nn.inference_mode(made(layers, eqx.nn.Dropout(0.5)))


EQUINOX = {}
NETWORKS = {"linen": linen_network, "nnx": nnx_network, "equinox": equinox_network}
PROCESS = ss.VP()


@pytest.mark.parametrize("framework", NETWORKS)
def test_other_parameters_are_not_traced_again(framework):
    """After the first call only the check at the door looks at the network; each gives its own."""
    networks = [NETWORKS[framework](seed) for seed in range(3)]
    noise = PROCESS.sample_prior((2, 2), key=jax.random.key(0))

    def sampled(network):
        return ss.sample_ode(PROCESS, ss.from_noise(PROCESS, network), noise, solve=COARSE).x

    sampled(networks[0])
    TRACES.clear()
    found = [sampled(network) for network in networks]
    assert len(TRACES) == 3
    laws.close(found[1], sampled(lambda t, x: networks[1](t, x)), absolute=1e-10)
    assert min(np.abs(found[1] - other).max() for other in (found[0], found[2])) > 1e-3


@pytest.mark.parametrize("framework", NETWORKS)
def test_scores_cross_jit_and_grad(framework):
    """As an argument; and its derivative in the last layer's bias is -1 / sigma."""
    score, x = ss.from_noise(PROCESS, NETWORKS[framework](0)), jnp.asarray(X)
    laws.close(jax.jit(call)(score, x), call(score, x), relative=1e-10)
    leaves, structure = jax.tree.flatten(score)
    (place,) = (i for i, leaf in enumerate(leaves) if jnp.shape(leaf) == (2,))

    def total(bias):
        return jnp.sum(call(structure.unflatten([*leaves[:place], bias, *leaves[place + 1 :]]), x))

    step = np.full(2, -1 / float(PROCESS.sigma(0.4)))
    laws.close(jax.grad(total)(leaves[place]), step, relative=1e-6)  # of a float32 bias


def call(score, x):
    return score(0.4, x)


def test_another_class_weight_or_prompt_is_not_traced_again(page):
    assert page["traced_again"] == 1
    traces, noise, score_of = page["traces"], page["noise"], page["score_of_class"]
    for label, weight in ((0, 1.5), (1, 2.0)):
        before = len(traces)
        ss.sample_ode(page["vp"], ss.guide(score_of(2), score_of(label), weight), noise)
        assert len(traces) - before == 2  # one for each of the two scores


def test_labels_cross_every_verb():
    """Integers among a score's leaves: paths, tangents and adjoints, each traced once."""
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))
    data = ss.Points(jnp.asarray(np.random.default_rng(1).normal(size=(5, 2))), bandwidth=0.3)
    noise, calls = PROCESS.sample_prior((2, 2), key=jax.random.key(0)), []

    def labelled(rows, label, t, x):
        calls.append(None)
        return x - rows[label]

    verbs = (
        lambda s: (
            ss.sample_sensitivity(PROCESS, s, ss.add(data), noise, base=data, solve=COARSE).tangent
        ),
        lambda s: (
            ss.attribute(PROCESS, s, data, ss.functionals.pixel(0), noise, solve=COARSE).scores
        ),
    )
    for verb in verbs:
        found, seen = [], 0
        for label in range(3):
            score = ss.from_noise(PROCESS, Partial(labelled, rows, jnp.asarray(label)))
            found.append(verb(score))
            seen = len(calls) if label == 0 else seen
        assert len(calls) == seen + 2
        fixed = verb(ss.from_noise(PROCESS, lambda t, x: x - rows[1]))
        laws.close(found[1], fixed, absolute=1e-10)


# ------------------------------------------------------------------ traps that the page names


def test_a_closure_keeps_the_old_parameters_and_a_partial_does_not():
    noise = PROCESS.sample_prior((2, 2), key=jax.random.key(0))
    parameters = {"mean": jnp.zeros(2)}

    def shifted(parameters, t, x):
        return x - parameters["mean"]

    def sampled(score):
        return ss.sample_ode(PROCESS, score, noise, solve=COARSE).x

    closed = ss.from_noise(PROCESS, lambda t, x: shifted(parameters, t, x))
    before = sampled(closed)
    parameters["mean"] = jnp.ones(2)
    laws.close(sampled(closed), before, absolute=1e-12)
    moved = sampled(ss.from_noise(PROCESS, Partial(shifted, parameters)))
    assert np.abs(moved - before).max() > 0.1


def test_a_score_follows_its_nnx_module_and_not_a_clone():
    network = nnx_network(0)
    held, kept = ss.from_noise(PROCESS, network), ss.from_noise(PROCESS, nnx.clone(network))
    before = held(0.4, jnp.asarray(X))
    network.write.bias[...] = network.write.bias[...] + 1
    step = -1 / float(PROCESS.sigma(0.4))
    laws.close(held(0.4, jnp.asarray(X)), before + step, absolute=1e-10)
    laws.close(kept(0.4, jnp.asarray(X)), before, absolute=1e-12)


class Counting(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.zeros(()))

    def __call__(self, t, x):
        self.count[...] = self.count[...] + 1
        return x


def test_modules_that_change_when_called_are_refused_by_flax():
    noise = PROCESS.sample_prior((2, 2), key=jax.random.key(0))
    with pytest.raises(Exception, match="Cannot mutate"):
        ss.sample_ode(PROCESS, ss.from_noise(PROCESS, Counting()), noise, solve=COARSE)
