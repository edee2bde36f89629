r"""Networks of time and place: a potential, a score without one, and the files of potentials.

Three layers of softplus and a linear one read a flat sample and the time as it is:

    h <- softplus(A h + b),    softplus(z) = log(1 + exp(100 z)) / 100,    h_0 = (t, x)

A *potential* has one output, phi(t, x), an estimate of log rho_t(x) up to a constant, whose
gradient is a score; a *score network* has d outputs and need be the gradient of nothing.

Derivatives of softplus up to any order are polynomials in two numbers, r = sigmoid(100 z) and
f = 1 - r, with softplus' = r, r' = 100 r f, f' = -100 r f; all three functions are written with one
exponential, exp(-|100 z|), which the compiler then takes once for value and derivatives.

A file of the reference networks is a `.npz` with eight float32 arrays, `(out, in)`: `input_w`
`(width, 1 + d)` with the time first, `hidden1_w` and `hidden2_w` `(width, width)`,
`output_w` `(1, width)`, and a vector `*_b` for each.

References: Deveney, Stanczuk, Kreusser, Budd, Schonlieb 2023, arXiv 2311.15996 (the networks, and
their repository teojd/ODESDEGap).
"""

import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from scoresens._files import replacing
from scoresens._reading import read_arrays

SHARPNESS = 100.0  # of the softplus
LAYERS = ("input", "hidden1", "hidden2", "output")
ARRAYS = tuple(f"{layer}_{part}" for layer in LAYERS for part in ("w", "b"))

# Of the initial parameters. The bends of softplus are 0.02 wide: with gains of 1 a network begins
# nearly piecewise linear, with a Laplacian of spikes, and training on a residual stalls.
GAINS = {"input": 0.25, "hidden1": 2.0, "hidden2": 2.0, "output": 25.0}

Time = float | Float[Array, ""]


class _Layers(nnx.Module):
    """The body that both networks share: `(t, x [d]) -> [outputs]`."""

    def __init__(self, size: int, outputs: int, width: int, rngs: nnx.Rngs):
        if size < 1 or width < 1:
            raise ValueError(f"size and width must be at least 1, got {size} and {width}")
        self.shape, self.width = (size,), width
        self.input = _linear(1 + size, width, GAINS["input"], rngs)
        self.hidden1 = _linear(width, width, GAINS["hidden1"], rngs)
        self.hidden2 = _linear(width, width, GAINS["hidden2"], rngs)
        self.output = _linear(width, outputs, GAINS["output"], rngs)

    def outputs(self, t: Time, x: Float[Array, "*shape"]) -> Float[Array, "outputs"]:
        if x.shape != self.shape:
            raise ValueError(
                f"expected one flat sample of shape {self.shape}, got {x.shape}: "
                "map over a batch with jax.vmap(network, (None, 0))"
            )
        kernel = self.input.kernel[...]
        moment = jnp.asarray(t, x.dtype) * kernel[0]  # once for a batch of one time
        h = softplus(x @ kernel[1:] + (moment + jnp.asarray(self.input.bias)))
        return self.output(softplus(self.hidden2(softplus(self.hidden1(h)))))


class PotentialMLP(_Layers):
    """A potential `phi(t, x) -> scalar` of one flat sample, whose gradient is a score.

    It is a JAX pytree whose leaves are its parameters, so it may be an argument of `jit` and of
    `grad`; calling it changes nothing in it.

    Args:
        size: the number d of entries of one sample.
        width: units of each hidden layer.
        rngs: the source of the initial parameters.

    Raises:
        ValueError: if size or width is below 1.

    Notes:
        `width (2 width + d + 5) + 1` parameters: 13,361 for d = 2 and the width of the reference.

    References:
        Deveney et al. 2023, arXiv 2311.15996.
    """

    def __init__(self, size: int, *, width: int = 80, rngs: nnx.Rngs):
        super().__init__(size, 1, width, rngs)

    def __call__(self, t: Time, x: Float[Array, "*shape"]) -> Float[Array, ""]:
        """`phi(t, x)`, in nats, in the wider of x's and the parameters' dtypes."""
        return self.outputs(t, x)[0]


class ScoreMLP(_Layers):
    """A score `s(t, x) -> [d]` of one flat sample, that has no potential. Its body, its arguments
    and its errors are those of a `PotentialMLP`."""

    def __init__(self, size: int, *, width: int = 80, rngs: nnx.Rngs):
        super().__init__(size, size, width, rngs)

    def __call__(self, t: Time, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """`s(t, x)`, shaped like x, in the wider of x's and the parameters' dtypes."""
        return self.outputs(t, x)


class NetworkName(NamedTuple):
    """What the name of a network's file says: the data it learned, and the residual's weight."""

    data: str
    weight: float | None


def network_name(stem: str) -> NetworkName:
    """Data and weight of a file's stem.

    Args:
        stem: `"<data>_w<weight>"`; of any other stem the whole is the data, with weight None.

    >>> network_name("circles2_w0.1")
    NetworkName(data='circles2', weight=0.1)
    """
    found = re.fullmatch(r"(.+)_w(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)", stem)
    return NetworkName(found[1], float(found[2])) if found else NetworkName(stem, None)


def read_potential(path: str | Path) -> PotentialMLP:
    """The potential in a file of the reference format, see this module's head.

    Args:
        path: a `.npz` file; any width, any number of dimensions.

    Returns:
        A `PotentialMLP`, its parameters of the file's precision, or JAX's if that is lower.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no `.npz` of plain arrays, lacks an array or has others, or holds
            shapes that do not fit together or values that are not finite floats.
    """
    arrays = _arrays(Path(path))
    if missing := [name for name in ARRAYS if name not in arrays]:
        raise ValueError(
            f"{path} lacks the arrays {missing}, has {sorted(arrays)}: it holds no potential"
        )
    if extra := sorted(arrays.keys() - set(ARRAYS)):
        raise ValueError(f"{path} has arrays no part of a potential network: {extra}")
    return _filled(path, arrays)


def write_potential(path: str | Path, potential: nnx.Module) -> None:
    """Writes a potential to a file of the reference format, whole or not at all.

    Args:
        path: where to, ending in `.npz`; an existing file is replaced.
        potential: the network; its parameters keep their precision.

    Raises:
        ValueError: if the potential is another kind of network, or the path has another ending.
    """
    if not isinstance(potential, PotentialMLP):
        raise ValueError(f"only a PotentialMLP has this format, got {type(potential).__name__}")
    if Path(path).suffix != ".npz":
        raise ValueError(f"the file of a potential ends in .npz, got {path}")
    arrays = {}
    for layer in LAYERS:
        linear = getattr(potential, layer)
        arrays[f"{layer}_w"] = np.ascontiguousarray(linear.kernel[...].T)
        arrays[f"{layer}_b"] = np.asarray(linear.bias[...])
    with replacing(Path(path)) as beside, beside.open("wb") as file:
        np.savez(file, **arrays)


def read_networks(folder: str | Path) -> dict[str, PotentialMLP]:
    """The potentials of a folder by the stems of their files, `network_name` says of what.

    Args:
        folder: its `.npz` files are read; those that hold none of a potential's arrays, such as
            histograms, are passed over.

    Returns:
        `{stem: potential}`, by data and then by weight.

    Raises:
        FileNotFoundError: if there is no such folder, or no network in it.
        ValueError: if one of the files is damaged, as `read_potential` says.
    """
    files = sorted(Path(folder).glob("*.npz"), key=_order)
    networks = [file for file in files if not _arrays(file).keys().isdisjoint(ARRAYS)]
    found = {file.stem: read_potential(file) for file in networks}
    if not found:
        raise FileNotFoundError(
            f"no potential network in {folder}: expected files such as blob_w0.1.npz, "
            "from write_potential or of the reference"
        )
    return found


def _order(file: Path) -> tuple[str, float]:
    data, weight = network_name(file.stem)
    return data, -1.0 if weight is None else weight


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"no network at {path}: train one, or correct the path")
    return read_arrays(path)


def _filled(path: str | Path, arrays: dict[str, np.ndarray]) -> PotentialMLP:
    """The network whose parameters these arrays are, once their shapes are known to fit."""
    first = arrays["input_w"].shape
    if len(first) != 2 or first[0] < 1 or first[1] < 2:
        raise ValueError(f"{path}: input_w should be of shape (width, 1 + d), got {first}")
    network = jax.eval_shape(lambda: PotentialMLP(first[1] - 1, width=first[0], rngs=nnx.Rngs(0)))
    for layer in LAYERS:
        linear = getattr(network, layer)
        for part, name in (("w", "kernel"), ("b", "bias")):
            array = arrays[f"{layer}_{part}"]
            _check_array(path, f"{layer}_{part}", array, getattr(linear, name).shape[::-1])
            setattr(linear, name, nnx.Param(jnp.asarray(array.T)))
    return network


def _check_array(path: str | Path, name: str, found: np.ndarray, shape: tuple[int, ...]) -> None:
    if found.shape != shape or not np.issubdtype(found.dtype, np.floating):
        raise ValueError(
            f"{path}: {name} should be floats of shape {shape}, got {found.dtype} of {found.shape}"
        )
    if not np.isfinite(found).all():
        raise ValueError(f"{path}: {name} has values that are not finite: get the file again")


def _linear(before: int, after: int, gain: float, rngs: nnx.Rngs) -> nnx.Linear:
    """A layer whose parameters begin uniform within `gain / sqrt(before)`, biases too:
    biases at 0 would put every bend of the first layer at the origin."""

    def uniform(key, shape, dtype, *_):
        bound = gain * before**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(before, after, kernel_init=uniform, bias_init=uniform, rngs=rngs)


def _halves(z: Array) -> tuple[Array, Array]:
    """`e = exp(-|100 z|)` and `sigmoid(|100 z|) = 1 / (1 + e)`."""
    e = jnp.exp(-jnp.abs(SHARPNESS * z))
    return e, 1 / (1 + e)


@jax.custom_jvp
def softplus(z: Array) -> Array:
    """`log(1 + exp(100 z)) / 100` of each entry.

    Notes:
        One exponential and one logarithm, shared with derivatives of every order.
    """
    _, d = _halves(z)
    return jnp.maximum(z, 0) - jnp.log(d) / SHARPNESS


@jax.custom_jvp
def _rising(z: Array) -> Array:
    """`sigmoid(100 z)`."""
    e, d = _halves(z)
    return jnp.where(z > 0, d, e * d)


@jax.custom_jvp
def _falling(z: Array) -> Array:
    """`1 - sigmoid(100 z)`, to full relative accuracy."""
    e, d = _halves(z)
    return jnp.where(z > 0, e * d, d)


@softplus.defjvp
def _softplus_jvp(primals, tangents):
    (z,), (dz,) = primals, tangents
    return softplus(z), _rising(z) * dz


@_rising.defjvp
def _rising_jvp(primals, tangents):
    (z,), (dz,) = primals, tangents
    return _rising(z), SHARPNESS * _rising(z) * _falling(z) * dz


@_falling.defjvp
def _falling_jvp(primals, tangents):
    (z,), (dz,) = primals, tangents
    return _falling(z), -SHARPNESS * _rising(z) * _falling(z) * dz
