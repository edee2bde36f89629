"""A model of this library as a PyTorch module, for tools that know only those.

The module computes what the model does, from a copy of its parameters,

    D(x, tau) = c_skip x + c_out F(c_noise, c_in x)             of a `Denoiser`
    phi(t, x), s(t, x)                                          of a `PotentialMLP`, a `ScoreMLP`

layer by layer: every linear map is a `torch.nn.Linear`, every convolution a `torch.nn.Conv2d`,
every normalisation torch's own, under the names they have in JAX (`network.blocks.0.linear1`).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from scoresens.importers._torch import needed_torch
from scoresens.models import Denoiser, PotentialMLP, ResidualMLP, ScoreMLP, UNet, mlp, unet
from scoresens.models.potential import SHARPNESS
from scoresens.models.preconditioning import FREQUENCIES, TAU_FLOOR, NoiseEmbedding

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
    network = getattr(model, "network", model)
    known = isinstance(network, ResidualMLP | UNet) if isinstance(model, Denoiser) else False
    if not known and not isinstance(model, PotentialMLP | ScoreMLP):
        raise ValueError(
            f"cannot make a torch module of a {type(network).__name__}: only of a Denoiser "
            "of a ResidualMLP or a UNet, a PotentialMLP or a ScoreMLP"
        )
    return _translated(model)


# ------------------------------------------------------------------ what each module computes


def _denoised(model: Denoiser) -> Callable[..., Tensor]:
    shape, sigma_data = tuple(model.shape), model.sigma_data

    def rule(m, tau: Tensor, x: Tensor) -> Tensor:
        _check_shape("tau", shape, tau, x)
        level = tau.reshape(*tau.shape, *[1] * len(shape))
        total = level**2 + sigma_data**2
        c_noise = tau.clamp(min=TAU_FLOOR).log() / 4
        inner = m.network(c_noise, x * total.rsqrt())
        return sigma_data**2 / total * x + level * sigma_data * total.rsqrt() * inner

    return rule


def _check_shape(name: str, shape: tuple[int, ...], time: Tensor, x: Tensor) -> None:
    if tuple(x.shape) != (*time.shape, *shape):
        raise ValueError(
            f"expected x of shape {(*time.shape, *shape)}, {name}'s and one sample's, "
            f"got {tuple(x.shape)}"
        )


def _layers(network: PotentialMLP | ScoreMLP) -> Callable[..., Tensor]:
    shape, scalar = tuple(network.shape), isinstance(network, PotentialMLP)
    softplus = needed_torch("to_torch").nn.functional.softplus

    def rule(m, t: Tensor, x: Tensor) -> Tensor:
        _check_shape("t", shape, t, x)
        h = m.cat([t[..., None], x], -1)
        for layer in (m.input, m.hidden1, m.hidden2):
            h = softplus(layer(h), beta=SHARPNESS, threshold=STEEPEST)
        return m.output(h)[..., 0] if scalar else m.output(h)

    return rule


def _mlp(network: ResidualMLP) -> Callable[..., Tensor]:
    axes = len(network.shape)

    def rule(m, c_noise: Tensor, x: Tensor) -> Tensor:
        e = m.embedding(c_noise)
        h = m.read(x.flatten(-axes))
        for block in m.blocks:
            h = block(h, e)
        return m.write(_silu(m.norm(h))).reshape(x.shape)

    return rule


def _mlp_block(m, h: Tensor, e: Tensor) -> Tensor:
    scale, shift = m.modulation(e).chunk(2, -1)
    r = m.linear1(_silu(m.norm1(h)))
    r = (1 + scale) * m.norm2(r) + shift
    return h + m.linear2(_silu(r))


def _unet(m, c_noise: Tensor, x: Tensor) -> Tensor:
    """Channels first within."""
    e = m.embedding(c_noise.reshape(-1))
    h = m.read(x.reshape(-1, *x.shape[-3:]).movedim(-1, 1))
    seen = []
    for level, block in enumerate(m.down):
        h = block(_halve(h) if level else h, e)
        seen.append(h)
    h = m.middle(h, e)
    for level in reversed(range(len(seen))):
        h = m.up[level](m.cat([h, seen[level]], 1), e)
        h = _double(h) if level else h
    return m.write(_silu(m.norm(h.contiguous()))).movedim(1, -1).reshape(x.shape)


def _unet_block(m, h: Tensor, e: Tensor) -> Tensor:
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


def _embedding(m, c_noise: Tensor) -> Tensor:
    angles = c_noise[..., None] * m.frequencies
    return _silu(m.linear(m.cat([angles.cos(), angles.sin()], -1)))


def _silu(h: Tensor) -> Tensor:
    return h * h.sigmoid()


RULES: dict[type, Callable[..., Callable[..., Tensor]]] = {
    Denoiser: _denoised, PotentialMLP: _layers, ScoreMLP: _layers,
    ResidualMLP: _mlp, mlp.Block: lambda _: _mlp_block,
    UNet: lambda _: _unet, unet.Block: lambda _: _unet_block,
    NoiseEmbedding: lambda _: _embedding,
}  # fmt: skip


# ------------------------------------------------------------------ modules


def _translated(module: Any) -> "torch.nn.Module | None":
    """A module of this library, a list of them or a layer as torch's: of the same parts, under the
    same names."""
    torch = needed_torch("to_torch")
    nn = torch.nn
    if isinstance(module, nnx.List):
        return nn.ModuleList([_translated(part) for part in module])
    if layer := _of_kind(LAYERS, module):
        return layer(nn, module)
    rule = _of_kind(RULES, module)(module)

    class Module(nn.Module):
        cat = staticmethod(torch.cat)  # torch's compiler refuses a module that imports as it runs

        def forward(self, *inputs):
            return rule(self, *inputs)

    translated = Module()
    for name, part in vars(module).items():
        if part is None or isinstance(part, nnx.Module):
            translated.register_module(name, None if part is None else _translated(part))
    if isinstance(module, NoiseEmbedding):
        dtype = module.linear.kernel.dtype
        frequencies = jnp.geomspace(0.5, 32.0, FREQUENCIES, dtype=dtype)
        translated.register_buffer("frequencies", _tensor(frequencies))
    return translated


def _of_kind(table: dict[type, Any], module: Any) -> Any:
    return next((found for kind, found in table.items() if isinstance(module, kind)), None)


def _linear(nn: Any, layer: nnx.Linear) -> Tensor:
    kernel = np.asarray(layer.kernel[...])
    return _filled(nn.Linear(*kernel.shape), kernel.T, layer.bias)


def _conv(nn: Any, layer: nnx.Conv) -> Tensor:
    kernel = np.asarray(layer.kernel[...])  # [height, width, before, after]
    torch_layer = nn.Conv2d(*kernel.shape[2:], kernel.shape[:2], padding="same")
    return _filled(torch_layer, kernel.transpose(3, 2, 0, 1), layer.bias)


def _layer_norm(nn: Any, layer: nnx.LayerNorm) -> Tensor:
    scale = np.asarray(layer.scale)
    return _filled(nn.LayerNorm(len(scale), eps=layer.epsilon), scale, layer.bias)


def _group_norm(nn: Any, layer: nnx.GroupNorm) -> Tensor:
    scale = np.asarray(layer.scale)
    torch_layer = nn.GroupNorm(layer.num_groups, len(scale), eps=layer.epsilon)
    return _filled(torch_layer, scale, layer.bias)


LAYERS: dict[type, Callable[[Any, Any], Tensor]] = {
    nnx.Linear: _linear, nnx.Conv: _conv, nnx.LayerNorm: _layer_norm, nnx.GroupNorm: _group_norm,
}  # fmt: skip


def _filled(layer: Any, weight: np.ndarray, bias: Any) -> Any:
    """The layer with other parameters, and in their dtype; none of these networks' layers goes
    without a bias."""
    parameter = needed_torch("to_torch").nn.Parameter
    layer.weight, layer.bias = parameter(_tensor(weight)), parameter(_tensor(bias[...]))
    return layer


def _tensor(values: Any) -> Tensor:
    return needed_torch("to_torch").from_numpy(np.array(values, order="C"))
