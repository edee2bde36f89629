"""A model of this library as a PyTorch module, for tools that know only those.

The module computes what the model does, from a copy of its parameters,

    D(x, tau) = c_skip x + c_out F(c_noise, c_in x)             of a `Denoiser`
    phi(t, x), s(t, x)                                          of a `PotentialMLP`, a `ScoreMLP`

layer by layer: every linear map is a `torch.nn.Linear`, every convolution a `torch.nn.Conv2d`,
every normalisation torch's own, under the names they have in JAX (`network.blocks.0.linear1`).
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from scoresens.importers._torch import needed_torch
from scoresens.models import Denoiser, PotentialMLP, ResidualMLP, ScoreMLP, UNet
from scoresens.models.potential import SHARPNESS
from scoresens.models.preconditioning import FREQUENCIES, TAU_FLOOR

if TYPE_CHECKING:
    import torch  # pyright: ignore[reportMissingImports]

Tensor = Any  # torch need not be there to read this file
Model = Denoiser | PotentialMLP | ScoreMLP

STEEPEST = 80.0  # where torch takes softplus for the identity: exp(80) is still finite in float32


def to_torch(model: Model) -> "torch.nn.Module":
    """A model as a torch module of the same outputs.

    Args:
        model: a `Denoiser` of a `ResidualMLP` or a `UNet`, a `PotentialMLP` or a `ScoreMLP`.

    Returns:
        A module of a batch, channels last, in the parameters' dtype, on the CPU, and differentiable
            in its parameters, the time and x:

            - of a `Denoiser`: `(tau [B], x [B, *shape]) -> [B, *shape]`, denoised samples;
            - of a `PotentialMLP`: `(t [B], x [B, d]) -> [B]`, log-densities up to a constant,
              whose gradient in x, by `torch.autograd`, is the score;
            - of a `ScoreMLP`: `(t [B], x [B, d]) -> [B, d]`, scores.

            Any leading axes, none included, may stand in the place of B.

    Raises:
        ImportError: if torch is not installed.
        ValueError: if the model is another. The module raises it for an x that does not fit.

    Notes:
        The parameters are copied: training one model leaves the other. The module's class is made
        on the spot, so that `pickle` cannot write it; keep its `state_dict`.
    """
    needed_torch("to_torch")
    if isinstance(model, PotentialMLP):
        return _layers(model, lambda outputs: outputs[..., 0])
    if isinstance(model, ScoreMLP):
        return _layers(model, lambda outputs: outputs)
    network = getattr(model, "network", model)
    if not isinstance(model, Denoiser) or not isinstance(network, ResidualMLP | UNet):
        raise ValueError(
            f"cannot make a torch module of a {type(network).__name__}: only of a Denoiser "
            "of a ResidualMLP or a UNet, a PotentialMLP or a ScoreMLP"
        )
    inner = _mlp(network) if isinstance(network, ResidualMLP) else _unet(network)
    shape, sigma_data = tuple(network.shape), model.sigma_data
    return _module(lambda m, tau, x: _denoised(m.network, shape, sigma_data, tau, x), network=inner)


def _denoised(network, shape: tuple[int, ...], sigma_data: float, tau: Tensor, x: Tensor) -> Tensor:
    _check_shape("tau", shape, tau, x)
    level = tau.reshape(*tau.shape, *[1] * len(shape))
    total = level**2 + sigma_data**2
    c_noise = tau.clamp(min=TAU_FLOOR).log() / 4
    inner = network(c_noise, x * total.rsqrt())
    return sigma_data**2 / total * x + level * sigma_data * total.rsqrt() * inner


def _check_shape(name: str, shape: tuple[int, ...], time: Tensor, x: Tensor) -> None:
    if tuple(x.shape) != (*time.shape, *shape):
        raise ValueError(
            f"expected x of shape {(*time.shape, *shape)}, {name}'s and one sample's, "
            f"got {tuple(x.shape)}"
        )


# ------------------------------------------------------------------ potential and score network


def _layers(
    network: PotentialMLP | ScoreMLP, read_out: Callable[[Tensor], Tensor]
) -> "torch.nn.Module":
    shape = tuple(network.shape)
    return _module(
        lambda m, t, x: read_out(_layers_rule(m, shape, t, x)),
        input=_linear(network.input),
        hidden1=_linear(network.hidden1),
        hidden2=_linear(network.hidden2),
        output=_linear(network.output),
    )


def _layers_rule(m, shape: tuple[int, ...], t: Tensor, x: Tensor) -> Tensor:
    _check_shape("t", shape, t, x)
    h = _joined(t[..., None], x, axis=-1)
    for layer in (m.input, m.hidden1, m.hidden2):
        h = _softplus(layer(h))
    return m.output(h)


def _softplus(h: Tensor) -> Tensor:
    functional = needed_torch("to_torch").nn.functional
    return functional.softplus(h, beta=SHARPNESS, threshold=STEEPEST)


# ------------------------------------------------------------------ the residual MLP


def _mlp(network: ResidualMLP) -> "torch.nn.Module":
    axes = len(network.shape)
    return _module(
        lambda m, c_noise, x: _mlp_rule(m, axes, c_noise, x),
        embedding=_embedding(network.embedding),
        read=_linear(network.read),
        blocks=_each(_mlp_block, network.blocks),
        norm=_layer_norm(network.norm),
        write=_linear(network.write),
    )


def _mlp_rule(m, axes: int, c_noise: Tensor, x: Tensor) -> Tensor:
    e = m.embedding(c_noise)
    h = m.read(x.flatten(-axes))
    for block in m.blocks:
        h = block(h, e)
    return m.write(_silu(m.norm(h))).reshape(x.shape)


def _mlp_block(block) -> "torch.nn.Module":
    return _module(
        _mlp_block_rule,
        norm1=_layer_norm(block.norm1),
        linear1=_linear(block.linear1),
        norm2=_layer_norm(block.norm2),
        modulation=_linear(block.modulation),
        linear2=_linear(block.linear2),
    )


def _mlp_block_rule(m, h: Tensor, e: Tensor) -> Tensor:
    scale, shift = m.modulation(e).chunk(2, -1)
    r = m.linear1(_silu(m.norm1(h)))
    r = (1 + scale) * m.norm2(r) + shift
    return h + m.linear2(_silu(r))


# ------------------------------------------------------------------ the U-Net, channels first


def _unet(network: UNet) -> "torch.nn.Module":
    return _module(
        _unet_rule,
        embedding=_embedding(network.embedding),
        read=_conv(network.read),
        down=_each(_unet_block, network.down),
        middle=_unet_block(network.middle),
        up=_each(_unet_block, network.up),
        norm=_group_norm(network.norm),
        write=_conv(network.write),
    )


def _unet_rule(m, c_noise: Tensor, x: Tensor) -> Tensor:
    e = m.embedding(c_noise.reshape(-1))
    h = m.read(x.reshape(-1, *x.shape[-3:]).movedim(-1, 1))
    seen = []
    for level, block in enumerate(m.down):
        h = block(_halve(h) if level else h, e)
        seen.append(h)
    h = m.middle(h, e)
    for level in reversed(range(len(seen))):
        h = m.up[level](_joined(h, seen[level], axis=1), e)
        h = _double(h) if level else h
    return m.write(_silu(m.norm(h.contiguous()))).movedim(1, -1).reshape(x.shape)


def _unet_block(block) -> "torch.nn.Module":
    return _module(
        _unet_block_rule,
        norm1=_group_norm(block.norm1),
        conv1=_conv(block.conv1),
        norm2=_group_norm(block.norm2),
        modulation=_linear(block.modulation),
        conv2=_conv(block.conv2),
        match=None if block.match is None else _linear(block.match),
    )


def _unet_block_rule(m, h: Tensor, e: Tensor) -> Tensor:
    scale, shift = m.modulation(e)[..., None, None].chunk(2, 1)
    # torch's forward derivative of a group norm refuses images with channels last in memory
    r = m.conv1(_silu(m.norm1(h.contiguous())))
    r = (1 + scale) * m.norm2(r.contiguous()) + shift
    if m.match is not None:
        h = m.match(h.movedim(1, -1)).movedim(-1, 1)
    return h + m.conv2(_silu(r))


def _halve(h: Tensor) -> Tensor:
    return h.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).mean((-3, -1))


def _double(h: Tensor) -> Tensor:
    return h.repeat_interleave(2, -2).repeat_interleave(2, -1)


# ------------------------------------------------------------------ layers


def _embedding(embedding) -> "torch.nn.Module":
    dtype = embedding.linear.kernel.dtype
    frequencies = _tensor(jnp.geomspace(0.5, 32.0, FREQUENCIES, dtype=dtype))
    return _module(
        _embedding_rule, buffers={"frequencies": frequencies}, linear=_linear(embedding.linear)
    )


def _embedding_rule(m, c_noise: Tensor) -> Tensor:
    angles = c_noise[..., None] * m.frequencies
    return _silu(m.linear(_joined(angles.cos(), angles.sin(), axis=-1)))


def _linear(layer: nnx.Linear) -> "torch.nn.Module":
    nn = needed_torch("to_torch").nn
    kernel = np.asarray(layer.kernel[...])
    return _filled(nn.Linear(*kernel.shape), weight=kernel.T, bias=_given(layer.bias))


def _conv(layer: nnx.Conv) -> "torch.nn.Module":
    nn = needed_torch("to_torch").nn
    kernel = np.asarray(layer.kernel[...])  # [height, width, before, after]
    torch_layer = nn.Conv2d(*kernel.shape[2:], kernel.shape[:2], padding="same")
    return _filled(torch_layer, weight=kernel.transpose(3, 2, 0, 1), bias=_given(layer.bias))


def _layer_norm(layer: nnx.LayerNorm) -> "torch.nn.Module":
    nn = needed_torch("to_torch").nn
    torch_layer = nn.LayerNorm(len(_given(layer.scale)), eps=layer.epsilon)
    return _filled(torch_layer, weight=_given(layer.scale), bias=_given(layer.bias))


def _group_norm(layer: nnx.GroupNorm) -> "torch.nn.Module":
    nn = needed_torch("to_torch").nn
    torch_layer = nn.GroupNorm(layer.num_groups, len(_given(layer.scale)), eps=layer.epsilon)
    return _filled(torch_layer, weight=_given(layer.scale), bias=_given(layer.bias))


def _filled(layer: Any, **parameters: np.ndarray) -> "torch.nn.Module":
    """The layer with other values, and in their dtype."""
    nn = needed_torch("to_torch").nn
    for name, value in parameters.items():
        setattr(layer, name, nn.Parameter(_tensor(value)))
    return layer


def _given(parameter: nnx.Param | None) -> np.ndarray:
    assert parameter is not None  # no layer of these networks goes without
    return np.asarray(parameter[...])


def _tensor(values: Any) -> Tensor:
    return needed_torch("to_torch").from_numpy(np.array(values, order="C"))


def _silu(h: Tensor) -> Tensor:
    return h * h.sigmoid()


def _joined(first: Tensor, second: Tensor, *, axis: int) -> Tensor:
    return needed_torch("to_torch").cat([first, second], axis)


def _each(make: Callable[[Any], "torch.nn.Module"], blocks: Iterable[Any]) -> "torch.nn.Module":
    return needed_torch("to_torch").nn.ModuleList([make(block) for block in blocks])


def _module(
    rule: Callable[..., Any], buffers: dict[str, Tensor] | None = None, **parts: Any
) -> "torch.nn.Module":
    """A module of the given parts, whose output is `rule(module, *inputs)`."""
    nn = needed_torch("to_torch").nn

    class Module(nn.Module):
        def forward(self, *inputs):
            return rule(self, *inputs)

    module = Module()
    for name, part in parts.items():
        module.register_module(name, part)
    for name, values in (buffers or {}).items():
        module.register_buffer(name, values)
    return module
