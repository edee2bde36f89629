"""Checkpoints: a denoiser in one safetensors file that can be read without unpickling anything.

The tensors are the parameters, named by their path in the module (`network.read.kernel`). The
header holds one JSON text under `scoresens`: the architecture, enough to build the module again,
and whatever the writer wished to remember (`metadata`).
"""

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialized

from scoresens._files import replacing
from scoresens._reading import start_of
from scoresens.laws.noises import degrees_of
from scoresens.models.architectures import ModelSettings, build
from scoresens.models.mlp import ResidualMLP
from scoresens.models.preconditioning import Denoiser
from scoresens.models.unet import UNet

HEADER = "scoresens"
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


def save(path: str | Path, model: Denoiser, metadata: dict) -> None:
    """Writes a denoiser to a file, whole or not at all.

    Args:
        path: where to; an existing file is replaced.
        model: a `Denoiser` of one of this package's networks.
        metadata: anything JSON can hold: the data's name, the training settings.

    Raises:
        ValueError: if the network is not this package's, or the metadata is not JSON.
    """
    header = {"architecture": _describe(model), "metadata": metadata}
    write_file(Path(path), header, {name: np.asarray(leaf) for name, leaf in _named_leaves(model)})


def load(path: str | Path) -> tuple[Denoiser, dict]:
    """The denoiser in a file, and the metadata saved with it.

    Args:
        path: a file written by `save`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, was not written by `save`, holds other tensors or
            shapes than its architecture has, or values that are not finite.
    """
    header, tensors = read_file(Path(path))
    if "foreign" in header:
        raise ValueError(f"{path} is a converted model: read it with scoresens.importers.load")
    if "architecture" not in header:
        raise ValueError(f"{path} was not written by scoresens: its header names no architecture")
    skeleton = _skeleton(path, header)
    expected = dict(_named_leaves(skeleton))
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ValueError(f"{path} lacks the tensors {missing}: it was not written for this model")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"{path} has tensors no part of its model: {extra}")
    for name, leaf in expected.items():
        found = tensors[name]
        if found.shape != leaf.shape:
            raise ValueError(
                f"{path}: tensor {name} should be of shape {leaf.shape}, got {found.shape}"
            )
        if not np.isfinite(found).all():
            raise ValueError(
                f"{path}: tensor {name} has values that are not finite: train it again"
            )
    leaves = [jnp.asarray(tensors[name]) for name in expected]
    return jax.tree.unflatten(jax.tree.structure(skeleton), leaves), header["metadata"]


def pretrained(name: str) -> tuple[Denoiser, dict]:
    """A denoiser that comes with the package, and its metadata.

    Args:
        name: `"digits"`, a residual MLP trained on `scoresens.datasets.load("digits")`.

    Raises:
        FileNotFoundError: if no model of this name comes with the package.
    """
    with resources.as_file(resources.files("scoresens.models") / f"{name}.safetensors") as path:
        return load(path)


def _describe(model: Denoiser) -> dict:
    """The architecture as JSON can hold it; `_skeleton` is its inverse."""
    network = model.network
    if not isinstance(network, ResidualMLP | UNet):
        raise ValueError(
            f"cannot save a network of type {type(network).__name__}: "
            "only a ResidualMLP or a UNet can be built again"
        )
    about = {
        "kind": "mlp" if isinstance(network, ResidualMLP) else "unet",
        "width": network.width,
        "depth": network.depth,
        "shape": list(network.shape),
        "sigma_data": model.sigma_data,
    }
    degrees = degrees_of(model.noise)
    return about if degrees is None else about | {"degrees_of_freedom": degrees}


def _skeleton(path: str | Path, header: dict) -> Denoiser:
    """The module that a header describes, with shapes in place of arrays."""
    try:
        about = dict(header["architecture"])
        shape, sigma_data = tuple(about.pop("shape")), about.pop("sigma_data")
        settings = ModelSettings(**about)
        return jax.eval_shape(lambda: build(settings, shape, sigma_data, key=jax.random.key(0)))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} describes no model that can be built: {error}") from error


def read_file(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The header of a safetensors file that this library wrote, and its tensors.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, is no safetensors file, or was written by others.
    """
    return read_header(path), read_tensors(path)


def read_header(path: Path) -> dict:
    """The header alone of a file that `read_file` reads. Raises as it does."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: train one, or correct the path")
    with opened(path) as file:
        text = (file.metadata() or {}).get(HEADER)
    try:
        header = json.loads(text or "null")
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged header: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("metadata"), dict):
        raise ValueError(f"{path} was not written by scoresens: its header names no architecture")
    return header


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of anyone's safetensors file, those of bfloat16 in float32. Raises a ValueError
    as `read_file`."""
    with opened(path) as file:
        return {name: _known_to_numpy(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118


def _known_to_numpy(tensor: np.ndarray) -> np.ndarray:
    return tensor.astype(np.float32) if tensor.dtype == jnp.bfloat16 else tensor


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Yields a safetensors file that is open; a ValueError says what is wrong with others, or which
    tensor is of a dtype that is not read."""
    start = start_of(path, 2)
    if start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise ValueError(
            f"{path} is a pickle, which runs its author's code when it is read: give a safetensors "
            "file (scoresens convert --help tells how to get one)"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            _check_dtypes(path, file)
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


def _check_dtypes(path: Path, file: Any) -> None:
    for name in file.keys():  # noqa: SIM118
        if (dtype := file.get_slice(name).get_dtype()) not in DTYPES:
            raise ValueError(
                f"{path}: tensor {name} is of dtype {dtype}, and read are {', '.join(DTYPES)}: "
                "convert it first, in PyTorch by tensor.float(), times its scale where the file "
                "has one"
            )


def write_file(path: Path, header: dict, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a file that `read_file` reads, whole or not at all."""
    text = json.dumps(header, allow_nan=False)
    with replacing(path) as beside:
        beside.write_bytes(serialized(dict(tensors), metadata={HEADER: text}))


def _named_leaves(model: Denoiser) -> list[tuple[str, Any]]:
    """The parameters, or their shapes in a skeleton, with their names."""
    named = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    leaves = jax.tree_util.tree_leaves_with_path(model)
    return [(named(path).removesuffix(".value"), leaf) for path, leaf in leaves]
