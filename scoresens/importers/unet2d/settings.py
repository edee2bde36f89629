"""What a configuration of diffusers' `UNet2DModel` says, and whether it can be built here."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from scoresens.importers.configs import mistyped, unknown_keys

Map = Callable[[Array], Array]


def _gelu(h: Array) -> Array:
    return nnx.gelu(h, approximate=False)  # torch's default, not JAX's


ACTIVATIONS: dict[str, Map] = {
    "gelu": _gelu, "relu": nnx.relu,
    "mish": jax.nn.mish, "silu": nnx.silu, "swish": nnx.silu,
}  # fmt: skip
CHOICES = {
    "act_fn": tuple(ACTIVATIONS),
    "class_embed_type": (None, "timestep", "identity"),
    "downsample_padding": (0, 1),
    "downsample_type": (None, "conv", "resnet"),
    "mid_block_type": (None, "UNetMidBlock2D"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "time_embedding_type": ("positional", "fourier"),
    "upsample_type": (None, "conv", "resnet"),
}
BLOCKS = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
UNSEEN = {"sample_size", "dropout", "num_train_timesteps"}  # keys that leave the function as it is
POSITIVE = (
    "in_channels", "out_channels", "layers_per_block", "norm_num_groups", "time_embedding_dim",
    "attention_head_dim", "attn_norm_num_groups", "num_class_embeds",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The fields of a configuration that change the function, with the defaults of diffusers."""

    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int | float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple = ("DownBlock2D", *["AttnDownBlock2D"] * 3)
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple = (*["AttnUpBlock2D"] * 3, "UpBlock2D")
    block_out_channels: tuple = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: int | float = 1
    downsample_padding: int = 1
    downsample_type: str | None = "conv"
    upsample_type: str | None = "conv"
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: int | float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None

    @property
    def embedding(self) -> int:
        """How many entries e has."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]


def unsupported(config: Mapping[str, Any]) -> str | None:
    """Why `unet2d` cannot build a configuration, or None where it can.

    Args:
        config: what the `config.json` of a `UNet2DModel` holds. Fields that are absent have
            the defaults of diffusers.

    Returns:
        One sentence that names the field and its value.
    """
    return next(_problems(config), None)


def malformed(config: Mapping[str, Any]) -> str | None:
    """Why nobody can build a configuration: a key that is not known, or a value of another type.
    None where there is nothing of that kind."""
    given = given_of(config)
    for key in unknown_keys(config, given.keys() | UNSEEN):
        return f"{key} is a key that is not known here, and may say what the network is"
    return next(mistyped(given, Settings), None)


def given_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of `Settings` as the configuration gives it, JSON's lists as tuples."""
    given = {f.name: config.get(f.name, f.default) for f in fields(Settings)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}


def _problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Yields what cannot be built, each check relying on those before it."""
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        yield f"_class_name is {kind!r}, not 'UNet2DModel'"
    given = given_of(config)
    if wrong := malformed(config):
        yield wrong
    for name in POSITIVE:
        if given[name] is not None and given[name] < 1:
            yield f"{name} is {given[name]!r}, not positive"
    for name, choices in CHOICES.items():
        if given[name] not in choices:
            yield f"{name} is {given[name]!r}, not one of {choices}"
    yield from _problems_of_blocks(given)


def _problems_of_blocks(given: dict[str, Any]) -> Iterator[str]:
    widths, groups = given["block_out_channels"], given["norm_num_groups"]
    for width in widths:
        if not isinstance(width, int) or width < 1 or width % groups:
            yield f"block_out_channels has {width!r}, no multiple of norm_num_groups ({groups})"
    attended = [widths[-1]] if given["add_attention"] else []
    for name, choices in BLOCKS.items():
        if len(given[name]) != len(widths):
            yield f"{name} has {len(given[name])} entries, block_out_channels {len(widths)}"
        order = -1 if name == "up_block_types" else 1
        for kind, width in zip(given[name], widths[::order], strict=False):
            if kind not in choices:
                yield f"{name} has {kind!r}, not one of {choices}"
            attended += [width] if kind.startswith("Attn") else []
    if attended and (given["attention_head_dim"] or 1) > min(attended):
        yield f"attention_head_dim is {given['attention_head_dim']}, of {min(attended)} channels"
    if widths[-1] % (given["attn_norm_num_groups"] or 1):
        yield f"attn_norm_num_groups is {given['attn_norm_num_groups']}, of {widths[-1]} channels"
    if given["time_embedding_type"] == "positional" and given["freq_shift"] == widths[0] // 2:
        yield f"freq_shift is {given['freq_shift']}, half of {widths[0]} channels"
