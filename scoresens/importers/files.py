"""Foreign scores in one safetensors file: read without torch, and without unpickling anything.

The tensors are the network's, the process's and the conditioning's. The header holds, under
`scoresens`, how the network was trained and either its program (`Program`) or the configuration
of a network that is built here (`UNet2D`).
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from scoresens.importers.foreign import Exported, Foreign, Native
from scoresens.importers.program import Program
from scoresens.importers.schedules import Schedule
from scoresens.importers.unet2d import checkpoint_of, unet2d
from scoresens.laws.noises import degrees_of, noise_of
from scoresens.laws.processes import Process, by_name
from scoresens.models.checkpoints import read_file, write_file

# Those that need no argument.
CONTINUOUS = {
    name: kind
    for name, kind in by_name().items()
    if all(entry.default is not MISSING for entry in fields(kind))  # type: ignore
}
SPOKEN = ("prediction", "clock", "scale", "sigma_data")


def save(path: str | Path, foreign: Foreign, metadata: dict) -> None:
    """Writes a foreign score to a file, whole or not at all.

    Args:
        path: where to; an existing file is replaced.
        foreign: of an `Exported` or a `Native` network.
        metadata: anything JSON can hold.

    Raises:
        ValueError: if the network is another, or the metadata is not JSON.
    """
    schedule, network = foreign.schedule, foreign.network
    process, levels = _described(schedule.process)
    about = {
        "process": process,
        **{name: getattr(schedule, name) for name in SPOKEN},
        "shape": list(foreign.shape),
        "network": _about_network(network),
        "conditioning": len(foreign.conditioning),
    }
    given = {f"conditioning.{i}": np.asarray(c) for i, c in enumerate(foreign.conditioning)}
    tensors = {f"network.{name}": x for name, x in _tensors(network).items()} | levels | given
    write_file(Path(path), {"foreign": about, "metadata": metadata}, tensors)


def load(path: str | Path) -> tuple[Foreign, dict]:
    """The foreign score in a file, and the metadata saved with it.

    Args:
        path: a file written by `save`, or by `scoresens convert`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or a pickle, holds no foreign score, lacks tensors or has
            more, or has values that are not finite.
    """
    header, tensors = read_file(Path(path))
    if "foreign" not in header:
        raise ValueError(f"{path} holds no converted model: read it with scoresens.models.load")
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{path}: tensor {name} has values that are not finite")
    try:
        return _built(header["foreign"], tensors), header["metadata"]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} describes no model that can be built: {error!r}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _built(about: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> Foreign:
    said = dict(about["process"])
    kind = by_name()[said.pop("kind")]
    said |= {name[8:]: jnp.asarray(x) for name, x in tensors.items() if name[:8] == "process."}
    noise = noise_of(said.pop("degrees_of_freedom", None))
    process = kind(noise=noise, **said)  # pyright: ignore[reportCallIssue]
    schedule = Schedule(process, *(about[name] for name in SPOKEN))
    given = [jnp.asarray(tensors[f"conditioning.{i}"]) for i in range(about["conditioning"])]
    named = {name[8:]: x for name, x in tensors.items() if name.startswith("network.")}
    network = _network(about["network"], named)
    return Foreign(schedule, network, tuple(about["shape"]), tuple(given))


# ------------------------------------------------------------------ processes


def _described(process: Process) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The numbers of the process, as JSON holds them, and its arrays."""
    named = (each.name for each in fields(process) if each.name != "noise")  # type: ignore
    given = {name: np.asarray(getattr(process, name)) for name in named}
    numbers = {name: float(value) for name, value in given.items() if not value.ndim}
    arrays = {f"process.{name}": value for name, value in given.items() if value.ndim}
    degrees = degrees_of(process.noise)
    noise = {} if degrees is None else {"degrees_of_freedom": degrees}
    return {"kind": type(process).__name__} | numbers | noise, arrays


# ------------------------------------------------------------------ networks


def _about_network(network: Any) -> dict[str, Any]:
    if isinstance(network, Exported):
        kept = {"channels_last": network.channels_last, "channels": network.channels}
        return {"kind": "program", "text": network.program.text} | kept
    if isinstance(network, Native):
        return {"kind": "unet2d", "config": network.config, "channels": network.channels}
    raise ValueError(
        f"cannot save a network of type {type(network).__name__}: only an Exported or a "
        "Native one can be built again"
    )


def _tensors(network: Any) -> dict[str, np.ndarray]:
    if isinstance(network, Exported):
        return {name: np.asarray(leaf) for name, leaf in network.program.tensors.items()}
    return checkpoint_of(network.network)


def _network(about: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> Any:
    if about["kind"] == "unet2d":
        built = unet2d(json.loads(about["config"]), tensors)
        return Native(built, about["config"], about["channels"])
    program = Program({name: jnp.asarray(x) for name, x in tensors.items()}, about["text"])
    return Exported(program, about["channels_last"], about["channels"])
