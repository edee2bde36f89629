import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_networks import awakened
from safetensors.numpy import load_file, save_file

import scoresens as ss
from scoresens import datasets, models
from scoresens.models import Denoiser, ModelSettings, ResidualMLP, UNet, build, load, save
from scoresens.models.checkpoints import HEADER, read_tensors
from scoresens.models.unet import normed

SHAPES = {"mlp": (3, 4), "unet": (8, 8, 2)}
SMALL = {"mlp": ModelSettings("mlp", 16, 2), "unet": ModelSettings("unet", 4, 2)}
KINDS = pytest.mark.parametrize("kind", ["mlp", "unet"])


def awake(kind, sigma_data=0.7, dtype=np.float32, seed=0):
    """A model with every parameter random, for at the start its output is zero."""
    skeleton = jax.eval_shape(
        lambda: build(SMALL[kind], SHAPES[kind], sigma_data, key=jax.random.key(0))
    )
    return awakened(skeleton, dtype, seed)


def sample(kind, dtype=np.float32, seed=2):
    return jnp.asarray(np.random.default_rng(seed).normal(size=SHAPES[kind]), dtype)


@jax.jit
def call(model, tau, x):
    return model(tau, x)


def close(found, expected, dtype=np.float32):
    """Equal but for rounding that some tens of layers amplify."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=100 * np.finfo(dtype).eps * scale)


@KINDS
def test_new_denoiser_is_that_of_a_gaussian(kind):
    settings = ModelSettings(kind, 4, 1)
    model, x = build(settings, SHAPES[kind], 0.5, key=jax.random.key(0)), sample(kind)
    for tau in (0.01, 0.5, 30.0):
        close(call(model, tau, x), x * 0.25 / (0.25 + tau**2))


@KINDS
def test_denoiser_tends_to_the_identity(kind):
    model, x = awake(kind), sample(kind)
    gaps = [float(jnp.abs(call(model, tau, x) - x).max()) for tau in (1e-2, 1e-3)]
    assert 0 < gaps[1] < 0.2 * gaps[0]  # first order in tau, through c_out
    close(call(model, 0.0, x), x)


def test_denoiser_is_its_preconditioned_network():
    model, x = awake("mlp", sigma_data=0.7), sample("mlp")
    tau, s = 0.4, 0.7
    norm = math.hypot(tau, s)
    inner = call(model.network, jnp.float32(math.log(tau) / 4), x / norm)
    close(call(model, tau, x), s**2 / norm**2 * x + tau * s / norm * inner)


@pytest.mark.slow
@KINDS
def test_jvp_is_the_finite_difference(kind):
    h = 1e-5

    @jax.jit
    def tangents(model, tau, x, dtau, dx):
        ahead, behind = model(tau + h * dtau, x + h * dx), model(tau - h * dtau, x - h * dx)
        return jax.jvp(model, (tau, x), (dtau, dx))[1], (ahead - behind) / (2 * h)

    with jax.enable_x64(True):
        model = awake(kind, dtype=np.float64)
        x, u = sample(kind, np.float64), sample(kind, np.float64, seed=3)
        for tau in (0.1, 2.0):
            for dtau, dx in ((0.0, u), (0.1 * tau, 0 * u)):
                tangent, difference = tangents(model, tau, x, dtau, dx)
                assert tangent.dtype == np.float64
                bound = 1e-7 * float(jnp.abs(tangent).max())  # h^2 times third derivatives
                np.testing.assert_allclose(tangent, difference, atol=bound)


@KINDS
def test_float32_agrees_with_float64(kind):
    with jax.enable_x64(True):
        fine, x = awake(kind, dtype=np.float64), sample(kind, np.float64)
        coarse = jax.tree.map(lambda leaf: leaf.astype(np.float32), fine)
        rough = call(coarse, 0.3, x.astype(np.float32))
        assert rough.dtype == np.float32
        close(rough, call(fine, 0.3, x))


@KINDS
def test_model_is_a_pytree_of_arrays_and_a_jit_argument(kind):
    traces = []

    @jax.jit
    def counted(model, tau, x):
        traces.append(None)
        return model(tau, x)

    x, models = sample(kind), [awake(kind, seed=seed) for seed in range(3)]
    answers = [counted(model, 0.3, x) for model in models]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(models[0]))
    assert len(traces) == 1
    assert float(jnp.abs(answers[0] - answers[1]).max()) > 1e-2
    close(counted(models[2], 0.3, x), answers[2])  # a call changes nothing


def apply(model, tau, x):
    return model(tau, x)


@pytest.mark.slow
@KINDS
def test_model_in_partial_vmap_linearize_and_scan(kind):
    model, x, u = awake(kind), sample(kind), sample(kind, seed=4)
    score = jax.tree_util.Partial(apply, model)

    @jax.jit
    def push(score, x, us):
        value, linear = jax.linearize(lambda x: score(0.3, x), x)
        return value, jax.vmap(linear)(us)

    @jax.jit
    def descend(score, xs):
        step = jax.vmap(score, (None, 0))
        return jax.lax.scan(lambda xs, tau: (step(tau, xs), None), xs, jnp.float32([0.5, 0.2]))[0]

    value, (once, twice) = push(score, x, jnp.stack([u, 2 * u]))
    close(value, call(model, 0.3, x))
    close(twice, 2 * once)
    expected = [call(model, 0.2, call(model, 0.5, each)) for each in (x, u)]
    close(descend(score, jnp.stack([x, u])), jnp.stack(expected))


@pytest.mark.slow
@KINDS
def test_gradient_reaches_every_parameter(kind):
    loss = jax.jit(jax.grad(lambda model, x: jnp.sum(model(0.3, x) ** 2)))
    gradient = loss(awake(kind), sample(kind))
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 16, 1), (28, 28, 1), (8, 12, 3)])
def test_unet_keeps_the_shape(shape):
    def make_and_call(x):
        return Denoiser(UNet(shape, width=4, depth=3, rngs=nnx.Rngs(0)), 0.5)(0.3, x)

    assert jax.eval_shape(make_and_call, jax.ShapeDtypeStruct(shape, np.float32)).shape == shape


@pytest.mark.parametrize(("dtype", "centre"), [(np.float64, 0), (np.float32, 30), (np.float16, 3)])
def test_norms_are_those_of_flax(dtype, centre):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    made = lambda: nnx.GroupNorm(12, 4, use_fast_variance=False, rngs=nnx.Rngs(0))  # noqa: E731
    norm, gain, offset = awakened(jax.eval_shape(made), dtype), draw(12), draw(12)
    h, along = draw(4, 6, 12) + centre, draw(4, 6, 12)

    def ours(h):
        return normed(norm, h, gain, offset)

    def theirs(h):
        return gain * norm(h[None])[0] + offset

    found, expected = (jax.jvp(f, (h,), (along,)) for f in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype == dtype
        close(a, b, dtype)


def test_default_sizes():
    mlp = jax.eval_shape(lambda: ResidualMLP((8, 8, 1), rngs=nnx.Rngs(0)))
    unet = jax.eval_shape(lambda: UNet((16, 16, 1), rngs=nnx.Rngs(0)))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(net)) for net in (mlp, unet)]
    assert sizes == [535_424, 156_065]


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        (ModelSettings("unet", 4, 2), (8, 8), r"images \[H, W, C\], got shape \(8, 8\)"),
        (ModelSettings("unet", 4, 3), (14, 16, 1), "multiples of 4, got 14 x 16"),
        (ModelSettings("unet", 6, 2), (8, 8, 1), "width must be a multiple of 4, got 6"),
        (ModelSettings("mlp", 8, 2), (), "must have entries"),
    ],
)
def test_build_refuses(settings, shape, message):
    with pytest.raises(ValueError, match=message):
        build(settings, shape, 0.5, key=jax.random.key(0))


def test_refuses_a_batch_and_bad_settings():
    with pytest.raises(ValueError, match=r"one sample of shape \(3, 4\), got \(5, 3, 4\).*vmap"):
        awake("mlp")(0.3, jnp.zeros((5, 3, 4), np.float32))
    with pytest.raises(ValueError, match="sigma_data must be positive and finite, got 0"):
        build(SMALL["mlp"], (3,), 0.0, key=jax.random.key(0))
    with pytest.raises(ValueError, match="at least 1"):
        ModelSettings("mlp", 0, 2)


@KINDS
def test_checkpoint_round_trip(kind, tmp_path):
    model, x = awake(kind, sigma_data=0.1 + 0.2), sample(kind)
    about = {"data": "digits", "train": {"steps": 3}, "losses": [1.0, 0.5]}
    save(tmp_path / "a.safetensors", model, about)
    again, metadata = load(tmp_path / "a.safetensors")
    assert metadata == about and again.sigma_data == model.sigma_data
    assert jax.tree.structure(again) == jax.tree.structure(model)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, model))
    np.testing.assert_array_equal(call(again, 0.3, x), call(model, 0.3, x))
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_save_that_fails_leaves_the_old_file(tmp_path):
    path, model = tmp_path / "a.safetensors", awake("mlp")
    save(path, model, {"version": 1})
    with pytest.raises(TypeError):
        save(path, model, {"version": object()})
    with pytest.raises(ValueError, match="only a ResidualMLP or a UNet"):
        save(path, Denoiser(Other(), 0.5), {})
    assert load(path)[1] == {"version": 1} and len(list(tmp_path.iterdir())) == 1


class Other(nnx.Module):
    shape = (2,)

    def __call__(self, c_noise, x):
        return x


def rewritten(path, change_tensors=lambda t: t, change_header=lambda h: h):
    """Saves a model, then writes its file again with its contents changed."""
    save(path, awake("mlp"), {"data": "digits"})
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"][HEADER]
    save_file(change_tensors(load_file(path)), path, {HEADER: change_header(header)})


def with_tensor(name, change):
    return lambda tensors: tensors | {name: change(tensors.get(name))}


WRITE = "network.write.kernel"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != WRITE}, f"lacks the tensors.*{WRITE}"),
        (with_tensor("network.more", lambda _: np.zeros(2)), "no part of its model.*network.more"),
        (with_tensor(WRITE, lambda v: v.T.copy()), r"of shape \(16, 12\), got \(12, 16\)"),
        (with_tensor(WRITE, lambda v: v * np.float32(np.nan)), "not finite"),
    ],
)
def test_load_refuses_other_tensors(tmp_path, change, message):
    rewritten(tmp_path / "a", change_tensors=change)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"mlp"', '"transformer"', "no model that can be built"),
        ('"mlp"', '"unet"', r"images \[H, W, C\]"),
        ('"depth": 2', '"depth": 3', "lacks the tensors"),
        ('"depth": 2', '"depth": "2"', "no model that can be built"),
        ('"width"', '"breadth"', "no model that can be built"),
        ('"shape"', '"form"', "no model that can be built"),
        ("{", "", "damaged header"),
        ('"architecture"', '"building"', "not written by scoresens"),
    ],
)
def test_load_refuses_other_headers(tmp_path, old, new, message):
    rewritten(tmp_path / "a", change_header=lambda text: text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a")


def test_load_refuses_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load(tmp_path / "a")
    save(tmp_path / "a", awake("mlp"), {})
    content = (tmp_path / "a").read_bytes()
    for damaged in (content[:-5], content[:20], b""):
        (tmp_path / "a").write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or no safetensors file"):
            load(tmp_path / "a")
    for pickled in (b"\x80\x04pickle", b"PK\x03\x04torch.save"):
        (tmp_path / "a").write_bytes(pickled)
        with pytest.raises(ValueError, match="is a pickle, which runs its author's code"):
            load(tmp_path / "a")
    save_file({"weight": np.zeros(2)}, tmp_path / "a")
    with pytest.raises(ValueError, match="not written by scoresens"):
        load(tmp_path / "a")


def test_pretrained_refuses_an_unknown_name():
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        models.pretrained("imagenet")


def test_pretrained_digits_lie_between_memory_and_blur():
    """Errors above the denoiser that knows the points by heart, below the best linear one."""
    model, metadata = models.pretrained("digits")
    images = jnp.asarray(datasets.load("digits").images)
    assert metadata["data"] == "digits" and metadata["count"] == len(images) == 1797
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    covariance = np.cov(flat.T)
    noise = np.random.default_rng(0).normal(size=flat.shape)
    noised = flat + noise * np.array([0.6, 1.0, 2.0])[:, None, None]
    memory = jax.jit(jax.vmap(ss.Points(images).denoise, (None, 0)))
    network = jax.jit(jax.vmap(model, (None, 0)))
    for tau, x in zip((0.6, 1.0, 2.0), noised, strict=True):
        filtered = np.linalg.solve(covariance + tau**2 * np.eye(64), covariance)
        linear = flat.mean(0) + (x - flat.mean(0)) @ filtered
        x = jnp.asarray(x.reshape(images.shape), images.dtype)
        by_heart, ours = (np.reshape(f(tau, x), flat.shape) for f in (memory, network))
        errors = [np.mean((found - flat) ** 2) for found in (by_heart, ours, linear)]
        assert errors == sorted(errors), (tau, errors)


def test_a_network_that_returns_another_shape_is_refused():
    class Mean(nnx.Module):
        shape = (2, 3)

        def __call__(self, c_noise, x):
            return x.mean()

    message = r"network\(t, x\) must return an array of x's shape \(2, 3\) for one sample, got \(\)"
    with pytest.raises(ValueError, match=message):
        Denoiser(Mean(), 0.5)(0.3, jnp.ones((2, 3)))


# ------------------------------------------------------------------ files of others


def written(path, dtype, numbers: bytes, count: int):
    """A safetensors file by its format alone: the length of a header, the header, the numbers."""
    about = {"a.weight": {"dtype": dtype, "shape": [count], "data_offsets": [0, len(numbers)]}}
    header = json.dumps(about).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + numbers)
    return path


def test_bfloat16_is_read_as_float32(tmp_path):
    """The upper half of float32: 1.5 is 0x3fc00000."""
    path = written(tmp_path / "b.safetensors", "BF16", b"\xc0\x3f\x20\xc1", 2)
    found = read_tensors(path)["a.weight"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [1.5, -10.0])


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_a_dtype_that_is_not_read_is_named_with_its_tensor_and_file(tmp_path, dtype):
    path = written(tmp_path / "eight.safetensors", dtype, b"\x38\x38", 2)
    message = rf"eight\.safetensors: tensor a\.weight is of dtype {dtype}, and read are F64, F32"
    for read in (read_tensors, load):
        with pytest.raises(ValueError, match=message):
            read(path)
