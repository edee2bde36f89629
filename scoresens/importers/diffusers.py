"""Pipelines of diffusers as scores: a folder, or the name of one on the hub.

    model_index.json                                    what the parts are
    unet/config.json, unet/diffusion_pytorch_model.safetensors
    scheduler/scheduler_config.json
    vae/config.json, vae/diffusion_pytorch_model.safetensors      of latent models

In old checkpoints the first three lie flat in the folder. A `UNet2DModel` becomes a network of
JAX (`unet2d`), without torch; other networks go through `torch_export`, which wants torch and
diffusers once, at the conversion. Weights are read from safetensors files alone.
"""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from scoresens._extras import needed
from scoresens.importers._torch import calling, needed_torch
from scoresens.importers.configs import mistyped, read_config, unknown_keys
from scoresens.importers.foreign import Foreign, Native
from scoresens.importers.latent import Autoencoder
from scoresens.importers.modules import from_torch
from scoresens.importers.schedules import Schedule, schedule
from scoresens.importers.torch_export import torch_export
from scoresens.importers.unet2d import malformed, unet2d, unsupported
from scoresens.models.checkpoints import opened, read_tensors

NETWORKS = ("unet", "transformer", "model")  # what pipelines call the network
WEIGHTS = "diffusion_pytorch_model.safetensors"
KNOWN = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")
TEXT, LABEL = "the embedding of a text [tokens, width]", "a label"  # what networks see besides x, t


class Part(NamedTuple):
    """One part of a pipeline: its folder, its class, and what its configuration says."""

    folder: Path
    kind: str
    config: dict[str, Any]


def from_diffusers(
    where: str | Path,
    *,
    conditioning: Sequence[ArrayLike] = (),
    size: int | None = None,
    native: bool = True,
) -> Foreign:
    """The score of a pipeline's network.

    Args:
        where: the folder of a pipeline, or its name on the hub, for which huggingface_hub and a
            network connection must be there.
        conditioning: what the network sees besides the noised sample and the time, without batch
            axis: a class label, or the embedding of a text `[tokens, width]`. Left out, label 0, or
            zeros `[77, width]`. `Foreign.given` changes it later.
        size: pixels a side, where the configuration does not say.
        native: whether to build a `UNet2DModel` in JAX, where its configuration allows it.

    Returns:
        A score of samples `[H, W, C]` as the pipeline knows them, latents for latent models.

    Raises:
        FileNotFoundError: if there is no such folder, or a file in it is missing.
        ImportError: if the network must be exported and torch or diffusers is not installed.
        ValueError: if the network, the scheduler, a key of their configurations or the prediction
            type is not known here, a configuration is damaged, the conditioning is not what the
            network takes, the weights are a pickle, tensors are missing, extra, misshapen or not
            finite.

    Notes:
        A network of learned variance returns twice the channels; the second half is left out.
    """
    folder = found(where)
    network, how = _network_of(folder), _schedule_of(folder)
    shape, channels = _shape(network, size)
    given = tuple(jnp.asarray(c) for c in conditioning) or _default_conditioning(network)
    _check_conditioning(network, given)
    if native and network.kind == "UNet2DModel" and unsupported(network.config) is None:
        built = unet2d(network.config, weights(network.folder))
        return Foreign(how, Native(built, json.dumps(network.config), channels), shape, given)
    rule = _called_with_labels if network.kind == "DiTTransformer2DModel" else _called
    return from_torch(_module(network), how, shape, conditioning=given, call=rule)


def autoencoder_from_diffusers(where: str | Path, *, size: int) -> Autoencoder:
    """The autoencoder of a latent pipeline.

    Args:
        where: as for `from_diffusers`.
        size: pixels a side of an image.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `from_diffusers`.
    """
    part = _part(found(where), "vae")
    if part is None or part.kind != "AutoencoderKL":
        raise ValueError(f"{where} has no AutoencoderKL: {part and part.kind}")
    torch = needed_torch("autoencoder_from_diffusers")
    module = _module(part)
    config = module.config  # with diffusers' defaults where the file says nothing
    for key in ("latents_mean", "latents_std"):
        if config.get(key) is not None:
            raise ValueError(
                f"{part.folder} has {key}, a scale of each channel of the latents, which is not "
                "known here: known are scaling_factor and shift_factor"
            )
    image = torch.zeros(1, config.in_channels, size, size)
    with torch.no_grad():
        latent = module.encode(image).latent_dist.mean
    encoder = torch_export(calling(module, lambda m, x: m.encode(x).latent_dist.mean), (image,))
    decoder = torch_export(calling(module, lambda m, z: m.decode(z).sample), (latent,))
    return Autoencoder(
        encoder, decoder, float(config.scaling_factor), float(config.get("shift_factor") or 0.0)
    )


# ------------------------------------------------------------------ files


def found(where: str | Path) -> Path:
    """The folder of a pipeline, fetched from the hub if there is none of this name here."""
    folder = Path(where)
    if folder.is_dir():
        return folder
    try:
        hub = needed("huggingface_hub", "fetching a pipeline from the hub", "diffusers")
    except ImportError as error:
        raise FileNotFoundError(f"there is no folder {where}, and {error}") from error
    try:
        return Path(hub.snapshot_download(str(where), allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # whatever the network, the hub or its client came upon
        raise FileNotFoundError(
            f"there is no folder {where}, and the hub gave none: {type(error).__name__}: {error}"
        ) from error


def weights(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a part, from one file or several."""
    tensors: dict[str, np.ndarray] = {}
    for file in weight_files(folder):
        tensors |= read_tensors(file)
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a part; anything else is refused."""
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        files = _shards(index)
    elif (folder / WEIGHTS).is_file():
        files = [folder / WEIGHTS]
    else:
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}{_instead(folder)}")
    for file in files:
        with opened(file):  # which says what is wrong with it
            pass
    return files


def _shards(index: Path) -> list[Path]:
    """The files that an index names."""
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(x, str) for x in places.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files")
    return [index.parent / name for name in sorted(set(places.values()))]


def _instead(folder: Path) -> str:
    """What a folder has in place of weights that are read, and what to do."""
    again = "save the pipeline again with diffusers' save_pretrained, which writes one"
    if variants := sorted(folder.glob("*.*.safetensors")):
        variant = variants[0].name.split(".")[-2].partition("-")[0]
        load = f'load the pipeline with from_pretrained(..., variant="{variant}")'
        return f", only {variants[0].name}: {load} and {again}"
    if pickles := sorted(folder.glob("*.bin")):
        return f", only the pickle {pickles[0].name}, which is not read: {again}"
    return f": {again}"


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}: it is no pipeline of diffusers")
    return read_config(path)


def _schedule_of(folder: Path) -> Schedule:
    config = _scheduler_of(folder)
    try:
        return schedule(config)
    except ValueError as error:
        raise ValueError(f"the scheduler of {folder}: {error}") from error


def _network_of(folder: Path) -> Part:
    parts = [_part(folder, name) for name in NETWORKS]
    part = next((part for part in parts if part is not None), None)
    if part is None and (folder / "config.json").is_file():  # the old, flat layout
        config = _json(folder / "config.json")
        part = Part(folder, str(config.get("_class_name", "UNet2DModel")), config)
    if part is None:
        raise FileNotFoundError(
            f"{folder} is no pipeline of diffusers: no {', no '.join(NETWORKS)} and no config.json"
        )
    if part.kind not in KNOWN:
        raise ValueError(
            f"{folder} holds a {part.kind}, and known are {', '.join(KNOWN)}: export it with "
            "scoresens.importers.torch_export"
        )
    if part.kind == "UNet2DModel" and (wrong := malformed(part.config)):
        raise ValueError(f"{part.folder / 'config.json'}: {wrong}")
    return part


def _part(folder: Path, name: str) -> Part | None:
    if not (folder / name).is_dir():
        return None
    config = _json(folder / name / "config.json")
    return Part(folder / name, str(config.get("_class_name")), config)


def _scheduler_of(folder: Path) -> dict[str, Any]:
    nested = folder / "scheduler" / "scheduler_config.json"
    return _json(nested if nested.is_file() else folder / "scheduler_config.json")


# ------------------------------------------------------------------ what a network takes


@dataclass(frozen=True)
class _Inputs:
    """The keys that say what a network takes and returns, with the defaults of `UNet2DModel`."""

    sample_size: int | list | tuple | None = None
    in_channels: int = 3
    out_channels: int | None = 3
    cross_attention_dim: int | list | tuple = 1280
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_embeds_ada_norm: int | None = 1000


OWN_DEFAULTS = {
    "UNet2DConditionModel": {"in_channels": 4, "out_channels": 4},
    "DiTTransformer2DModel": {"in_channels": 4, "out_channels": None},
}


def _inputs(network: Part) -> _Inputs:
    defaults = {entry.name: entry.default for entry in fields(_Inputs)}
    defaults |= OWN_DEFAULTS.get(network.kind, {})
    given = {name: network.config.get(name, default) for name, default in defaults.items()}
    if wrong := next(mistyped(given, _Inputs), None):
        raise ValueError(f"{network.folder / 'config.json'}: {wrong}")
    return _Inputs(**given)


def _shape(network: Part, size: int | None) -> tuple[tuple[int, ...], int]:
    """The shape of a sample, and how many of the channels that the network returns are kept."""
    takes = _inputs(network)
    sides = takes.sample_size if size is None else size
    if sides is None:
        raise ValueError(f"{network.folder} does not say how large its samples are: give size")
    sides = (sides, sides) if isinstance(sides, int) else tuple(sides)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"{network.folder}: sample_size must be one or two numbers, got {sides}")
    into, out = takes.in_channels, takes.out_channels or takes.in_channels
    if out not in (into, 2 * into):
        raise ValueError(
            f"{network.folder} takes {into} channels and returns {out}: a score returns as many, "
            "or twice as many where it learned its variance"
        )
    return (*sides, into), into


def _conditioned_on(network: Part) -> list[str]:
    """What a network sees besides the sample and the time, in order."""
    takes = _inputs(network)
    labelled = (takes.class_embed_type, takes.num_class_embeds) != (None, None)
    labels = [LABEL] if labelled or network.kind == "DiTTransformer2DModel" else []
    return [TEXT, *labels] if network.kind == "UNet2DConditionModel" else labels


def _default_conditioning(network: Part) -> tuple[Array, ...]:
    width = _inputs(network).cross_attention_dim
    if network.kind == "UNet2DConditionModel" and not isinstance(width, int):
        raise ValueError(f"{network.folder} takes texts of widths {width}: give conditioning")
    return tuple(
        jnp.asarray(0) if name == LABEL else jnp.zeros((77, width))
        for name in _conditioned_on(network)
    )


def _check_conditioning(network: Part, given: tuple[Array, ...]) -> None:
    """Refuses what the network does not take, and a class that it has not."""
    expected = _conditioned_on(network)
    misshapen = expected[:1] == [TEXT] and given[:1] and given[0].ndim != 2
    if len(given) != len(expected) or misshapen:
        raise ValueError(
            f"{network.folder} takes {' and '.join(expected) or 'no conditioning'}, got "
            f"{[list(c.shape) for c in given] or 'none'}: it is a {network.kind}, and what it is "
            "conditioned on is in its config.json"
        )
    classes = _classes(network)
    if classes is None:
        return
    label = np.asarray(given[-1])
    if label.size != 1 or label.dtype.kind not in "iu" or not 0 <= int(label.item()) < classes:
        raise ValueError(
            f"{network.folder} takes a label from 0 to {classes - 1}, a whole number, got {label}"
        )


def _classes(network: Part) -> int | None:
    """How many classes there are, with 'no class' as the last of a transformer's; None where a
    label is no class."""
    takes = _inputs(network)
    if network.kind == "DiTTransformer2DModel":
        return None if takes.num_embeds_ada_norm is None else takes.num_embeds_ada_norm + 1
    return takes.num_class_embeds if takes.class_embed_type is None else None


def _called(module: Any, x: Any, time: Any, *conditioning: Any) -> Any:
    return module(x, time, *conditioning).sample


def _called_with_labels(module: Any, x: Any, time: Any, labels: Any) -> Any:
    return module(x, timestep=time, class_labels=labels).sample


def _module(part: Part) -> Any:
    """The part as diffusers' own module, with every tensor in its place."""
    needed_torch("exporting this network")
    theirs = needed("diffusers", f"exporting a {part.kind}", "diffusers")
    weight_files(part.folder)  # says what is wrong with them before diffusers does
    kind = getattr(theirs, part.kind)
    if unknown := unknown_keys(part.config, inspect.signature(kind.__init__).parameters):
        raise ValueError(
            f"{part.folder / 'config.json'} has keys that the {part.kind} of diffusers "
            f"{theirs.__version__} does not know: {', '.join(unknown)}. It was written by another "
            "version, whose network may be another: install that one, or leave out keys that "
            "change nothing"
        )
    try:
        module, report = kind.from_pretrained(
            part.folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False,
            output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # whatever a configuration makes of diffusers' constructors
        raise ValueError(f"{part.folder}: {type(error).__name__}: {error}") from error
    wrong = {name: sorted(map(str, keys)) for name, keys in report.items() if keys}
    if wrong:
        raise ValueError(f"{part.folder} does not hold the tensors of its configuration: {wrong}")
    return module
