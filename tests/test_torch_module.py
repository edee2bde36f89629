"""A denoiser in torch says what it says in JAX."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scoresens.importers import to_torch
from scoresens.models import Denoiser, ModelSettings, build

LEVELS = (0.0, 1e-3, 0.05, 0.7, 3.0, 80.0)
CASES = {
    "mlp": (ModelSettings("mlp", 16, 2), (3, 4)),
    "mlp of images": (ModelSettings("mlp", 8, 1), (4, 4, 1)),
    "unet": (ModelSettings("unet", 8, 2), (4, 6, 2)),
    "unet of one resolution": (ModelSettings("unet", 4, 1), (3, 5, 1)),
}
EACH = pytest.mark.parametrize("case", CASES)
KINDS = pytest.mark.parametrize("case", ["mlp", "unet"])


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def awake(case, dtype=np.float64):
    """A model with every parameter random, for at the start its output is zero."""
    settings, shape = CASES[case]
    skeleton = jax.eval_shape(lambda: build(settings, shape, 0.7, key=jax.random.key(0)))
    rng = np.random.default_rng(0)

    def drawn(leaf):
        scale = 0.3 if len(leaf.shape) == 1 else math.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray(scale * rng.normal(size=leaf.shape), dtype)

    return jax.tree.map(drawn, skeleton)


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
def gradient_of_squares(model, tau, x):
    return jax.grad(lambda model: jnp.sum(jax.vmap(model)(tau, x) ** 2))(model)


def close(found, expected, tolerance):
    """Equal relative to the largest entry of each sample."""
    scale = np.abs(expected).reshape(len(expected), -1).max(1)
    error = np.abs(found - expected).reshape(len(expected), -1).max(1)
    assert (error <= tolerance * scale).all(), error / scale


@EACH
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
def test_outputs_are_equal(torch, case, dtype, tolerance):
    model, (tau, x) = awake(case, dtype), asked(case, dtype)
    found = to_torch(model)(*map(torch.from_numpy, (tau, x))).detach().numpy()
    assert found.dtype == dtype
    close(found, np.asarray(call(model, tau, x)), tolerance)


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


class Halved(nnx.Module):
    shape = (2,)

    def __call__(self, c_noise, x):
        return x / 2


def test_unknown_networks_are_refused_by_name(torch):
    with pytest.raises(ValueError, match="Halved"):
        to_torch(Denoiser(Halved(), 1.0))


def test_shapes_that_do_not_fit_are_refused(torch):
    module = to_torch(awake("mlp"))
    with pytest.raises(ValueError, match=r"\(5, 3, 4\).*\(5, 4, 3\)"):
        module(torch.ones(5).double(), torch.ones(5, 4, 3).double())


def test_without_torch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"scoresens\[torch\]"):
        to_torch(awake("mlp"))
