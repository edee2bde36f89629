"""A model in torch says what it says in JAX."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_networks import awakened

import scoresens as ss
from scoresens.importers import to_torch
from scoresens.models import Denoiser, ModelSettings, PotentialMLP, ResidualMLP, ScoreMLP, build

LEVELS = (0.0, 1e-3, 0.05, 0.7, 3.0, 80.0)
CASES = {
    "mlp": (ModelSettings("mlp", 16, 2), (3, 4)),
    "mlp of images": (ModelSettings("mlp", 8, 1), (4, 4, 1)),
    "unet": (ModelSettings("unet", 8, 2), (4, 6, 2)),
    "unet of one resolution": (ModelSettings("unet", 4, 1), (3, 5, 1)),
}
EACH = pytest.mark.parametrize("case", CASES)
FLAT = {"potential": (PotentialMLP, 3), "score": (ScoreMLP, 3), "score of one": (ScoreMLP, 1)}
EACH_FLAT = pytest.mark.parametrize("case", FLAT)
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)]
)
KINDS = pytest.mark.parametrize("case", ["mlp", "unet"])


def awake(case, dtype=np.float64):
    """A model with every parameter random, for at the start its output is zero."""
    settings, shape = CASES[case]
    skeleton = jax.eval_shape(lambda: build(settings, shape, 0.7, key=jax.random.key(0)))
    return awakened(skeleton, dtype)


def asked(case, dtype=np.float64):
    """Noise levels `[B]` and samples at them, `[B, *shape]`."""
    tau = np.array(LEVELS, dtype)
    x = np.random.default_rng(1).normal(size=(len(tau), *CASES[case][1])).astype(dtype)
    return tau, x * (1 + tau.reshape(-1, *[1] * (x.ndim - 1)))


@jax.jit
def call(model, tau, x):
    return jax.vmap(model)(tau, x)


@jax.jit
def pulled(model, tau, x, along):
    return jax.vjp(lambda x: jax.vmap(model)(tau, x), x)[1](along)[0]


@jax.jit
def pushed(model, tau, x, along):
    return jax.jvp(lambda x: jax.vmap(model)(tau, x), (x,), (along,))[1]


@jax.jit
def gradient_of_squares(model, tau, x):
    return jax.grad(lambda model: jnp.sum(jax.vmap(model)(tau, x) ** 2))(model)


def close(found, expected, tolerance):
    """Equal relative to the largest entry of each sample."""
    scale = np.abs(expected).reshape(len(expected), -1).max(1)
    error = np.abs(found - expected).reshape(len(expected), -1).max(1)
    assert (error <= tolerance * scale).all(), error / scale


@EACH
@PRECISIONS
def test_outputs_are_equal(torch, case, dtype, tolerance):
    model, (tau, x) = awake(case, dtype), asked(case, dtype)
    found = to_torch(model)(*map(torch.from_numpy, (tau, x))).detach().numpy()
    assert found.dtype == dtype
    close(found, np.asarray(call(model, tau, x)), tolerance)


@EACH
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own use of it
def test_torch_pushes_tangents_as_jax_does(torch, case):
    model, (tau, x) = awake(case), asked(case)
    along = np.random.default_rng(2).normal(size=x.shape)
    exported, level = to_torch(model), torch.from_numpy(tau)
    inputs = torch.from_numpy(x), torch.from_numpy(along)
    found = torch.func.jvp(lambda x: exported(level, x), inputs[:1], inputs[1:])[1]
    close(found.detach().numpy(), np.asarray(pushed(model, tau, x, along)), 1e-9)


@KINDS
@pytest.mark.filterwarnings("default")  # torch's compiler uses what Python no longer wants
def test_torch_compiles_a_module_as_a_whole(torch, case, unchecked_annotations):
    model, (tau, x) = awake(case), asked(case)
    module = torch.compile(to_torch(model), backend="eager", fullgraph=True)
    found = module(*map(torch.from_numpy, (tau, x))).detach().numpy()
    close(found, np.asarray(call(model, tau, x)), 1e-10)


@KINDS
def test_gradients_are_equal(torch, case):
    model, (tau, x) = awake(case), asked(case)
    along = np.random.default_rng(2).normal(size=x.shape)
    place = torch.from_numpy(x).requires_grad_()
    out = to_torch(model)(torch.from_numpy(tau), place)
    out.backward(torch.from_numpy(along))
    close(place.grad.numpy(), np.asarray(pulled(model, tau, x, along)), 1e-10)


@KINDS
def test_parameters_and_their_gradients_are_equal(torch, case):
    """One tensor a parameter, of the same name, and the same squared norm of its gradient."""
    model, (tau, x) = awake(case), asked(case)
    module = to_torch(model)
    module(*map(torch.from_numpy, (tau, x))).square().sum().backward()
    found = {name: float(p.grad.square().sum()) for name, p in module.named_parameters()}
    leaves = jax.tree_util.tree_leaves_with_path(gradient_of_squares(model, tau, x))
    expected = {named(path): float(jnp.sum(leaf**2)) for path, leaf in leaves}
    assert found == pytest.approx(expected, rel=1e-8)


def named(path):
    name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
    return name.replace("kernel", "weight").replace("scale", "weight")


@KINDS
def test_any_leading_axes_will_do(torch, case):
    module, (tau, x) = to_torch(awake(case)), map(torch.from_numpy, asked(case))
    expected = module(tau, x).detach().numpy()
    pairs = module(tau.reshape(2, 3), x.reshape(2, 3, *x.shape[1:])).detach().numpy()
    close(pairs.reshape(expected.shape), expected, 1e-12)
    close(module(tau[4], x[4]).detach().numpy()[None], expected[4:5], 1e-12)


def test_linear_maps_are_torch_linear_layers(torch):
    layers = [m for m in to_torch(awake("mlp")).modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == 1 + 1 + 2 * 3 + 1  # the embedding, read, three a block, write


def test_parameters_are_copies(torch):
    model, (tau, x) = awake("mlp"), asked("mlp")
    before = np.asarray(call(model, tau, x))
    with torch.no_grad():
        for parameter in to_torch(model).parameters():
            parameter.zero_()
    np.testing.assert_array_equal(call(model, tau, x), before)


# ------------------------------------------------------------------ potentials, score networks


def fresh(case, dtype=np.float64):
    """A potential or a score network as it is made, which is not zero."""
    kind, size = FLAT[case]
    network = jax.jit(lambda: kind(size, width=8, rngs=nnx.Rngs(3)))()
    return jax.tree.map(lambda leaf: leaf.astype(dtype), network)


def placed(case, dtype=np.float64):
    """Times `[B]` and samples `[B, d]`, some where softplus bends and some far from there."""
    rng, size = np.random.default_rng(4), FLAT[case][1]
    t, scales = np.linspace(0, 10, 24), np.geomspace(1e-2, 30, 24)
    return t.astype(dtype), (scales[:, None] * rng.normal(size=(24, size))).astype(dtype)


@EACH_FLAT
@PRECISIONS
def test_outputs_of_networks_of_time_and_place_are_equal(torch, case, dtype, tolerance):
    model, (t, x) = fresh(case, dtype), placed(case, dtype)
    found = to_torch(model)(*map(torch.from_numpy, (t, x))).detach().numpy()
    expected = np.asarray(call(model, t, x))
    assert found.dtype == dtype and found.shape == expected.shape
    assert found.shape == ((24,) if case == "potential" else x.shape)
    close(found[None], expected[None], tolerance)  # relative to the largest of all


@PRECISIONS
def test_the_gradient_of_a_potential_is_its_score(torch, dtype, tolerance):
    """Relative to the largest score, whose rounding it has in float32: sums of a few units."""
    model, (t, x) = fresh("potential", dtype), placed("potential", dtype)
    place = torch.from_numpy(x).requires_grad_()
    (found,) = torch.autograd.grad(to_torch(model)(torch.from_numpy(t), place).sum(), place)
    score = jax.jit(jax.vmap(ss.from_potential(model)))
    close(found.numpy()[None], np.asarray(score(t, x))[None], tolerance)


def test_a_potential_has_second_derivatives(torch):
    """Of the score along a direction, times another, and so reverse over reverse."""
    model, (t, x) = fresh("potential"), placed("potential")
    along = np.random.default_rng(5).normal(size=x.shape)
    place = torch.from_numpy(x).requires_grad_()
    value = to_torch(model)(torch.from_numpy(t), place).sum()
    (score,) = torch.autograd.grad(value, place, create_graph=True)
    (found,) = torch.autograd.grad((score * torch.from_numpy(along)).sum(), place)
    push = jax.vmap(lambda t, x, v: jax.jvp(lambda x: jax.grad(model, 1)(t, x), (x,), (v,))[1])
    close(found.numpy()[None], np.asarray(jax.jit(push)(t, x, along))[None], 1e-10)


@pytest.mark.parametrize("case", ["potential", "score"])
def test_gradients_of_networks_of_time_and_place_are_equal(torch, case):
    """Pulled back to time, place and parameters."""
    model, (t, x) = fresh(case), placed(case)
    module, inputs = to_torch(model), [torch.from_numpy(a).requires_grad_() for a in (t, x)]
    module(*inputs).square().sum().backward()

    def total(model, t, x):
        return jnp.sum(jax.vmap(model)(t, x) ** 2)

    of_model, *of_inputs = jax.jit(jax.grad(total, (0, 1, 2)))(model, t, x)
    for found, expected in zip(inputs, of_inputs, strict=True):
        close(found.grad.numpy()[None], np.asarray(expected)[None], 1e-10)
    found = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    leaves = jax.tree_util.tree_leaves_with_path(of_model)
    expected = {named(path): np.asarray(leaf) for path, leaf in leaves}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        close(gradient.T[None], expected[name][None], 1e-10)


@EACH_FLAT
def test_any_leading_axes_will_do_there_too(torch, case):
    module, (t, x) = to_torch(fresh(case)), map(torch.from_numpy, placed(case))
    expected = module(t, x).detach().numpy()
    pairs = module(t.reshape(4, 6), x.reshape(4, 6, -1)).detach().numpy()
    close(pairs.reshape(1, *expected.shape), expected[None], 1e-12)
    close(module(t[4], x[4]).detach().numpy()[None, None], expected[4:5][None], 1e-12)


# ------------------------------------------------------------------ what is refused


class Halved(nnx.Module):
    shape = (2,)

    def __call__(self, c_noise, x):
        return x / 2


def test_unknown_networks_are_refused_by_name(torch):
    with pytest.raises(ValueError, match="Halved"):
        to_torch(Denoiser(Halved(), 1.0))


def test_a_network_without_its_preconditioning_is_refused(torch, unchecked_annotations):
    with pytest.raises(ValueError, match="ResidualMLP: only of a Denoiser"):
        to_torch(ResidualMLP((2,), width=4, depth=1, rngs=nnx.Rngs(0)))


def test_shapes_that_do_not_fit_are_refused(torch):
    module = to_torch(awake("mlp"))
    with pytest.raises(ValueError, match=r"\(5, 3, 4\).*\(5, 4, 3\)"):
        module(torch.ones(5).double(), torch.ones(5, 4, 3).double())
    with pytest.raises(ValueError, match=r"\(5, 3\), t's and one sample's, got \(5, 2\)"):
        to_torch(fresh("potential"))(torch.ones(5).double(), torch.ones(5, 2).double())


def test_without_torch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"scoresens\[torch\]"):
        to_torch(awake("mlp"))
