import functools
import re

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from flax import nnx
from scipy.special import expit

from scoresens.models import potential
from scoresens.models.potential import (
    NetworkName,
    PotentialMLP,
    ScoreMLP,
    network_name,
    read_networks,
    read_potential,
    softplus,
    write_potential,
)

LAYERS = ("input", "hidden1", "hidden2", "output")
rng = np.random.default_rng(0)
# around the bend, which is 0.01 wide, on it, and far out where exponentials vanish or overflow
PLACES = np.concatenate([[0.0, -0.0, 1e-9, -1e-9, 0.3, -0.3, 5.0, -5.0, 90.0, -90.0],
                         rng.normal(0, 0.02, 90)])  # fmt: skip


def reference_arrays(width=80, d=2, dtype=np.float32):
    """Random parameters in the format of the reference networks."""
    shapes = {
        "input": (width, 1 + d), "hidden1": (width, width),
        "hidden2": (width, width), "output": (1, width),
    }  # fmt: skip
    arrays = {}
    for layer, shape in shapes.items():
        arrays[f"{layer}_w"] = (rng.normal(size=shape) / np.sqrt(shape[1])).astype(dtype)
        arrays[f"{layer}_b"] = (rng.normal(size=shape[0]) / 3).astype(dtype)
    return arrays


def forward(arrays, t, x):
    """The network in plain numpy, float64, on a batch, as torch writes it: weights (out, in)."""
    h = np.column_stack([np.full(len(x), t), x])
    for layer in LAYERS[:3]:
        z = 100 * (h @ arrays[f"{layer}_w"].astype(np.float64).T + arrays[f"{layer}_b"])
        h = np.logaddexp(z, 0) / 100
    return h @ arrays["output_w"].astype(np.float64).T + arrays["output_b"]


def written(folder, arrays, name="a.npz"):
    np.savez(folder / name, **arrays)
    return folder / name


@functools.cache
def fresh(kind, size, width, seed=0):
    return jax.jit(lambda: kind(size, width=width, rngs=nnx.Rngs(seed)))()


def small(seed=0):
    return fresh(PotentialMLP, 2, 8, seed)


def plain(network, t, x):
    """The same network through JAX's own softplus."""
    h = jnp.concatenate([jnp.asarray(t)[None], x])
    for layer in LAYERS[:3]:
        linear = getattr(network, layer)
        h = jax.nn.softplus(100 * (h @ linear.kernel[...] + linear.bias[...])) / 100
    return (h @ network.output.kernel[...] + network.output.bias[...])[0]


# ------------------------------------------------------------------ softplus


def derivatives(function, order):
    for _ in range(order):
        function = jax.grad(function)
    return jax.jit(jax.vmap(function))


def closed_form(z, order):
    """Derivatives of log(1 + exp(100 z)) / 100, with what is small kept to its own accuracy."""
    rising, falling = expit(100 * z), expit(-100 * z)
    return (
        np.logaddexp(100 * z, 0) / 100,
        rising,
        100 * rising * falling,
        1e4 * rising * falling * (falling - rising),
    )[order]


@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softplus_and_its_derivatives_are_the_closed_forms(order, dtype):
    """Rounding 100 z moves a value by that rounding; beyond it, a few units of the last place."""
    z = PLACES.astype(dtype)
    found = derivatives(softplus, order)(z)
    exact = closed_form(z.astype(np.float64), order)
    assert found.dtype == dtype
    eps = np.finfo(dtype).eps
    scale = (1e-2, 1.0, 25.0, 1e3)[order]  # the largest entry where the function bends
    relative = 8 * eps * np.maximum(1, np.abs(100 * exact_argument(z)))
    np.testing.assert_array_less(
        np.abs(found - exact), relative * np.abs(exact) + 8 * eps * scale + np.finfo(dtype).tiny
    )


def exact_argument(z):
    """100 z where it matters: beyond 40 the function is straight, or 0."""
    return np.clip(z.astype(np.float64), -0.4, 0.4)


@pytest.mark.parametrize("order", range(4))
def test_softplus_derivatives_are_those_of_jax(order):
    found = derivatives(softplus, order)(PLACES)
    expected = derivatives(lambda z: jax.nn.softplus(100 * z) / 100, order)(PLACES)
    laws.close(found, expected, relative=1e-13)


def test_softplus_bends_at_zero():
    """Values there are not a matter of which branch was taken."""
    found = [float(derivatives(softplus, k)(jnp.zeros(1))[0]) for k in range(5)]
    np.testing.assert_allclose(found, [np.log(2) / 100, 0.5, 25.0, 0.0, -1.25e5], rtol=1e-14)


def test_value_and_gradient_share_their_exponentials():
    """As many as there are layers, in the compiled program; JAX's own softplus needs twice that."""
    x = jnp.ones((64, 2))
    network = small()

    def exponentials(function):
        gradient = jax.vmap(jax.value_and_grad(function, 2), (None, None, 0))
        text = jax.jit(gradient).lower(network, 0.5, x).compile().as_text() or ""
        return len(re.findall(r" exponential\(", text))

    assert exponentials(lambda network, t, x: network(t, x)) == 3


# ------------------------------------------------------------------ networks


def test_derivatives_of_the_potential_are_those_of_the_plain_network():
    network, t = small(), jnp.asarray(0.7)
    points = jnp.asarray(rng.normal(size=(5, 2)))

    def of(function):
        gradient = jax.grad(function, 2)
        laplacian = lambda m, t, x: jnp.trace(jax.jacfwd(gradient, 2)(m, t, x))  # noqa: E731
        verbs = {
            "rate": jax.grad(function, 1),
            "score": gradient,
            "forward over reverse": jax.jacfwd(gradient, 2),
            "reverse over forward": jax.jacrev(jax.jacfwd(function, 2), 2),
            "gradient of the laplacian": jax.grad(laplacian, 2),
            "laplacian by parameters": lambda *a: jax.grad(laplacian)(*a).hidden1.kernel[...],
        }
        one = lambda *at: {name: verb(*at) for name, verb in verbs.items()}  # noqa: E731
        return jax.jit(jax.vmap(one, (None, None, 0)))(network, t, points)

    expected = of(plain)
    for name, found in of(lambda network, t, x: network(t, x)).items():
        laws.close(found, expected[name], relative=1e-5 if "param" in name else 1e-12)


def test_a_score_network_has_the_same_body_and_d_outputs():
    score = fresh(ScoreMLP, 3, 8)
    x = jnp.asarray(rng.normal(size=(4, 3)))
    found = jax.vmap(score, (None, 0))(0.2, x)
    arrays = {}
    for layer in LAYERS:
        linear = getattr(score, layer)
        arrays[f"{layer}_w"], arrays[f"{layer}_b"] = linear.kernel[...].T, linear.bias[...]
    laws.close(found, forward(jax.tree.map(np.asarray, arrays), 0.2, x), relative=1e-13)
    jacobian = jax.jacfwd(score, 1)(0.2, x[0])
    assert np.abs(jacobian - jacobian.T).max() > 1e-2  # the gradient of nothing


def test_networks_cross_jit_as_arguments_once():
    traces = []

    @jax.jit
    def value(network, t, x):
        traces.append(None)
        return network(t, x)

    x = jnp.ones(2)
    found = [float(value(small(seed), 0.3, x)) for seed in (0, 1, 0)]
    assert found[0] == found[2] != found[1] and len(traces) == 1


@pytest.mark.slow
def test_networks_compute_in_the_wider_dtype():
    network = small()
    assert network(0.5, jnp.ones(2, jnp.float32)).dtype == jnp.float32
    assert network(jnp.asarray(0.5), jnp.ones(2)).dtype == jnp.float64
    x = jnp.asarray(rng.normal(size=(50, 2)))
    score = jax.vmap(jax.grad(network, 1), (None, 0))
    laws.close(score(0.3, x.astype(jnp.float32)), score(0.3, x), relative=1e-4)


@pytest.mark.parametrize("kind", [PotentialMLP, ScoreMLP])
def test_networks_refuse(kind):
    network = fresh(kind, 2, 8)
    for x in (jnp.ones(3), jnp.ones((5, 2)), jnp.ones(())):
        with pytest.raises(ValueError, match=r"shape \(2,\), got .*vmap"):
            network(0.1, x)
    with pytest.raises(ValueError, match="at least 1, got 0 and 3"):
        kind(0, width=3, rngs=nnx.Rngs(0))


# ------------------------------------------------------------------ files


@pytest.mark.parametrize(("width", "d"), [(80, 2), (5, 1), (12, 7)])
def test_a_file_of_the_reference_format_is_the_network_that_torch_has(tmp_path, width, d):
    arrays = reference_arrays(width, d)
    network = read_potential(written(tmp_path, arrays))
    x = rng.normal(size=(20, d))
    assert network.width == width and network.shape == (d,)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(network))
    for t in (0.0, 0.3, 9.0):
        found = jax.vmap(network, (None, 0))(t, jnp.asarray(x))
        laws.close(found, forward(arrays, t, x)[:, 0], relative=1e-12)


def test_writing_and_reading_return_the_same_parameters(tmp_path):
    network = small()
    write_potential(tmp_path / "a.npz", network)
    again = read_potential(tmp_path / "a.npz")
    assert jax.tree.all(jax.tree.map(np.array_equal, network, again))
    assert list(tmp_path.iterdir()) == [tmp_path / "a.npz"]
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert file["input_w"].shape == (8, 3) and file["output_w"].shape == (1, 8)
        assert all(file[name].dtype == np.float32 for name in file)


def test_writing_fails_whole(tmp_path, monkeypatch):
    write_potential(tmp_path / "a.npz", small(0))
    before = (tmp_path / "a.npz").read_bytes()

    def half(file, **arrays):
        file.write(before[:50])
        raise OSError("no space left on device")

    monkeypatch.setattr(potential.np, "savez", half)
    with pytest.raises(OSError, match="no space"):
        write_potential(tmp_path / "a.npz", small(1))
    assert (tmp_path / "a.npz").read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "a.npz"]


def test_writing_refuses(tmp_path):
    with pytest.raises(ValueError, match="only a PotentialMLP has this format, got ScoreMLP"):
        write_potential(tmp_path / "a.npz", fresh(ScoreMLP, 2, 8))
    with pytest.raises(ValueError, match=r"ends in \.npz, got .*a\.npy"):
        write_potential(tmp_path / "a.npy", small())


def without(name):
    return lambda arrays: arrays.pop(name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("hidden2_b"), r"lacks the arrays \['hidden2_b'\]"),
        (lambda a: a.update(hidden3_w=a["hidden2_w"]), r"no part of a potential.*hidden3_w"),
        (lambda a: a.update(input_w=a["input_b"]), r"input_w should be of shape \(width, 1 \+ d\)"),
        (lambda a: a.update(input_w=a["input_w"][:, :1]), r"input_w should .*got \(6, 1\)"),
        (lambda a: a.update(hidden1_w=a["hidden1_w"][:5]), r"hidden1_w should .* \(6, 6\)"),
        (lambda a: a.update(output_w=a["output_w"].T), r"output_w should .* \(1, 6\), .*\(6, 1\)"),
        (lambda a: a["hidden1_b"].__setitem__(2, np.nan), "hidden1_b has values .* not finite"),
        (lambda a: a.update(output_b=np.array([1])), r"output_b should be floats .* int64"),
        (lambda a: a.update(output_b=np.array([{}])), "damaged, or holds more than plain arrays"),
    ],
)
def test_reading_refuses(tmp_path, damage, message):
    arrays = reference_arrays(6)
    damage(arrays)
    with pytest.raises(ValueError, match=message):
        read_potential(written(tmp_path, arrays))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"hello"])
def test_reading_refuses_what_is_no_npz(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz is (damaged, or holds|no \.npy or \.npz file)"):
        read_potential(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"b\.npy lacks"):
        read_potential(tmp_path / "b.npy")
    with pytest.raises(FileNotFoundError, match="no network at"):
        read_potential(tmp_path / "c.npz")


def test_read_networks_reads_a_folder_in_order_and_passes_over_the_rest(tmp_path):
    stems = ["rings_w10.0", "rings_w0.1", "blob_w2", "other", "rings_w0.0"]
    for width, stem in enumerate(stems, start=3):
        written(tmp_path, reference_arrays(width), f"{stem}.npz")
    np.savez(tmp_path / "histograms.npz", ode=np.zeros((2, 2), np.uint32))
    (tmp_path / "README.md").write_text("about")
    found = read_networks(tmp_path)
    assert list(found) == ["blob_w2", "other", "rings_w0.0", "rings_w0.1", "rings_w10.0"]
    assert [found[stem].width for stem in stems] == [3, 4, 5, 6, 7]


def test_read_networks_refuses(tmp_path):
    np.savez(tmp_path / "histograms.npz", ode=np.zeros((2, 2), np.uint32))
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"no potential network in .*blob_w0\.1\.npz"):
            read_networks(folder)
    arrays = reference_arrays(6)
    arrays.pop("output_w")
    written(tmp_path, arrays, "blob_w1.npz")
    with pytest.raises(ValueError, match=r"blob_w1.npz lacks the arrays \['output_w'\]"):
        read_networks(tmp_path)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("blob_w0.0", ("blob", 0.0)),
        ("circles2_w10.0", ("circles2", 10.0)),
        ("two_words_w1e-3", ("two_words", 1e-3)),
        ("a_w1_w2", ("a_w1", 2.0)),
        ("blob", ("blob", None)),
        ("blob_w", ("blob_w", None)),
        ("blob_wide", ("blob_wide", None)),
        ("_w1", ("_w1", None)),
    ],
)
def test_names_say_data_and_weight(stem, name):
    assert network_name(stem) == NetworkName(*name)
