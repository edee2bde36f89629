"""Tiny torch models of the families that people have checkpoints of, every parameter random.

Written for the tests after the papers, operation by operation as their authors' networks run, so
that what imports these imports those. Dropout and label dropout are left out: they do nothing in
eval mode.
"""

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional
silu = F.silu


class Family(NamedTuple):
    """How to make a model, and example inputs for it, at a batch of one."""

    make: Callable[..., Any]  # (dtype, seed) -> module in eval mode
    inputs: Callable[..., tuple]  # (dtype) -> tensors
    float32_inside: bool = False  # it computes its attention weights in float32, whatever its dtype


def randomised(module, dtype, seed):
    """The module in eval mode, its weights of variance 1 / fan-in, its norms near 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim > 1:
            drawn = drawn * math.prod(parameter.shape[1:]) ** -0.5
        else:
            drawn = 0.3 * drawn + (0.0 if name.endswith("bias") else 1.0)
        parameter.data.copy_(drawn)
    return module.to(dtype).eval()


def normal(*shape, dtype, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def image(dtype, channels=3, side=8):
    return normal(1, channels, side, side, dtype=dtype)


def level(dtype):
    return torch.tensor([0.7], dtype=dtype)


def one_hot(dtype):
    return torch.tensor([[0, 1, 0]], dtype=dtype)


# ------------------------------------------------------------------ Karras et al. 2022: layers


class Dense(nn.Module):
    def __init__(self, before, after, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(after, before))
        self.bias = nn.Parameter(torch.empty(after)) if bias else None

    def forward(self, x):
        y = x @ self.weight.to(x.dtype).t()
        return y if self.bias is None else y.add_(self.bias.to(y.dtype))


class Resample(nn.Module):
    """A convolution (none if kernel is 0) after doubling or halving the image with a FIR filter;
    fused, the convolution pads for the filter, which comes after it when halving."""

    def __init__(self, before, after, kernel, to=None, taps=(1, 1), fused=False):
        super().__init__()
        self.before, self.after, self.to_size, self.fused = before, after, to, fused
        shape = (after, before, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(shape)) if kernel else None
        self.bias = nn.Parameter(torch.empty(after)) if kernel else None
        taps = torch.tensor(taps, dtype=torch.float32)
        taps = taps.ger(taps)[None, None] / taps.sum().square()
        self.register_buffer("taps", taps if to else None)

    def forward(self, x):
        weight = None if self.weight is None else self.weight.to(x.dtype)
        around = 0 if weight is None else weight.shape[-1] // 2
        if self.to_size:
            x, around = self.resized(x, weight, around)
        if weight is not None and around is not None:
            x = F.conv2d(x, weight, padding=around)
        return x if self.bias is None else x.add_(self.bias.to(x.dtype).reshape(1, -1, 1, 1))

    def resized(self, x, weight, around):
        """The image at its new size, and the padding of the convolution, None if that is done."""
        taps = self.taps.to(x.dtype)
        margin = (taps.shape[-1] - 1) // 2
        fused = self.fused and weight is not None
        if self.to_size == "up":
            padding = margin + around if fused else margin
            kernel = taps.mul(4).tile([self.before, 1, 1, 1])
            y = F.conv_transpose2d(x, kernel, groups=self.before, stride=2, padding=padding)
            return y, 0 if fused else around
        if not fused:
            kernel = taps.tile([self.before, 1, 1, 1])
            return F.conv2d(x, kernel, groups=self.before, stride=2, padding=margin), around
        y = F.conv2d(x, weight, padding=around + margin)
        return F.conv2d(y, taps.tile([self.after, 1, 1, 1]), groups=self.after, stride=2), None


class Norm(nn.Module):
    def __init__(self, channels, eps):
        super().__init__()
        self.groups, self.eps = min(32, channels // 4), eps
        self.weight, self.bias = (nn.Parameter(torch.empty(channels)) for _ in range(2))

    def forward(self, x):
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.group_norm(x, num_groups=self.groups, weight=weight, bias=bias, eps=self.eps)


class Weights(torch.autograd.Function):
    """Attention weights, computed in float32."""

    @staticmethod
    def forward(ctx, q, k):
        scaled = (k / np.sqrt(k.shape[1])).float()
        w = torch.einsum("ncq,nck->nqk", q.float(), scaled).softmax(dim=2).to(q.dtype)
        ctx.save_for_backward(q, k, w)
        return w

    @staticmethod
    def backward(ctx, dw):
        q, k, w = ctx.saved_tensors
        dw, w = dw.float(), w.float()
        ds = w * (dw - (dw * w).sum(2, keepdim=True)) / np.sqrt(k.shape[1])
        dq = torch.einsum("nck,nqk->ncq", k.float(), ds)
        return dq.to(q.dtype), torch.einsum("ncq,nqk->nck", q.float(), ds).to(k.dtype)


class Block(nn.Module):
    def __init__(self, before, after, e, heads, to=None, *, adaptive, scale, taps, project, eps):
        super().__init__()
        self.before, self.after, self.heads, self.scale = before, after, heads, scale
        self.adaptive = adaptive
        self.norm0, self.norm1 = Norm(before, eps), Norm(after, eps)
        self.conv0 = Resample(before, after, 3, to, taps)
        self.affine = Dense(e, after * (2 if adaptive else 1))
        self.conv1 = Resample(after, after, 3)
        self.skip = None
        if before != after or to:
            kernel = 1 if project or before != after else 0
            self.skip = Resample(before, after, kernel, to, taps)
        if heads:
            self.norm2 = Norm(after, eps)
            self.qkv, self.proj = Resample(after, 3 * after, 1), Resample(after, after, 1)

    def forward(self, x, e):
        y = self.conv0(silu(self.norm0(x)))
        along = self.affine(e)[:, :, None, None].to(y.dtype)
        if self.adaptive:
            scale, shift = along.chunk(2, dim=1)
            y = silu(torch.addcmul(shift, self.norm1(y), scale + 1))
        else:
            y = silu(self.norm1(y.add_(along)))
        y = self.conv1(y).add_(x if self.skip is None else self.skip(x)) * self.scale
        return self.attended(y) if self.heads else y

    def attended(self, y):
        n, c = y.shape[:2]
        qkv = self.qkv(self.norm2(y)).reshape(n * self.heads, c // self.heads, 3, -1)
        q, k, v = qkv.unbind(2)
        seen = torch.einsum("nqk,nck->ncq", Weights.apply(q, k), v)
        return self.proj(seen.reshape(*y.shape)).add_(y) * self.scale


class Positions(nn.Module):
    def __init__(self, channels, endpoint):
        super().__init__()
        self.pairs, self.last = channels // 2, channels // 2 - endpoint

    def forward(self, c):
        powers = torch.arange(0, self.pairs, dtype=torch.float32, device=c.device) / self.last
        angles = c.ger(((1 / 10000) ** powers).to(c.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class Waves(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("frequencies", normal(channels // 2, dtype=torch.float32, seed=7))

    def forward(self, c):
        angles = c.ger((2 * np.pi * self.frequencies).to(c.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


# ------------------------------------------------------------------ Karras et al. 2022: networks


class Halves(nn.Module):
    """The U-Net they share: residual blocks, attention at the coarser of two resolutions, on the
    way up in its last block or in all."""

    def __init__(self, width, e, heads, block: dict[str, Any], residual=False, attend_all=False):
        super().__init__()
        wide = 2 * width

        def made(before, after, to=None, attention=False):
            return Block(before, after, e, heads if attention else 0, to, **block)

        self.read = Resample(3, width, 3)
        self.enc = nn.ModuleDict({"block": made(width, width), "down": made(width, width, "down")})
        taps = block["taps"]
        self.aux = Resample(3, width, 3, "down", taps, fused=True) if residual else None
        self.coarse = made(width, wide, attention=True)
        self.middle = nn.ModuleList([made(wide, wide, attention=True), made(wide, wide)])
        self.dec = nn.ModuleList(
            [
                made(wide + wide, wide, attention=attend_all),
                made(wide + width, wide, attention=True),
                made(wide, wide, "up"),
                made(wide + width, width),
                made(width + width, width),
            ]
        )
        self.norm, self.write = Norm(width, block["eps"]), Resample(width, 3, 3)

    def forward(self, x, e):
        seen = [self.read(x)]
        for part in self.enc.values():
            seen.append(part(seen[-1], e))
        if self.aux is not None:
            seen[-1] = (seen[-1] + self.aux(x)) / np.sqrt(2)
        seen.append(self.coarse(seen[-1], e))
        y = seen[-1]
        for part in self.middle:
            y = part(y, e)
        for part in self.dec:
            if y.shape[1] != part.before:
                y = torch.cat([y, seen.pop()], dim=1)
            y = part(y, e)
        return self.write(silu(self.norm(y)))


class SongUNet(nn.Module):
    """DDPM++ (positional) or NCSN++ (Fourier features, residual input) as Karras et al. run it."""

    def __init__(self, width, fourier, labels=0, augment=0):
        super().__init__()
        noise, e = width * (2 if fourier else 1), 4 * width
        self.map_noise = Waves(noise) if fourier else Positions(noise, endpoint=True)
        self.map_label = Dense(labels, noise) if labels else None
        self.map_augment = Dense(augment, noise, bias=False) if augment else None
        self.map0, self.map1 = Dense(noise, e), Dense(e, e)
        taps = (1, 3, 3, 1) if fourier else (1, 1)
        block = dict(adaptive=False, scale=np.sqrt(0.5), taps=taps, project=True, eps=1e-6)
        self.body = Halves(width, e, 1, block, residual=fourier)

    def forward(self, x, c_noise, labels, augment=None):
        e = self.map_noise(c_noise)
        e = e.reshape(e.shape[0], 2, -1).flip(1).reshape(*e.shape)
        if self.map_label is not None:
            e = e + self.map_label(labels * np.sqrt(labels.shape[1]))
        if self.map_augment is not None and augment is not None:
            e = e + self.map_augment(augment)
        return self.body(x, silu(self.map1(silu(self.map0(e)))))


class DhariwalUNet(nn.Module):
    """ADM: scale and shift by the embedding, heads of a fixed number of channels."""

    def __init__(self, width, labels, per_head):
        super().__init__()
        e = 4 * width
        self.map_noise = Positions(width, endpoint=False)
        self.map0, self.map1 = Dense(width, e), Dense(e, e)
        self.map_label = Dense(labels, e, bias=False)
        block = dict(adaptive=True, scale=1, taps=(1, 1), project=False, eps=1e-5)
        self.body = Halves(width, e, 2 * width // per_head, block, attend_all=True)

    def forward(self, x, c_noise, labels):
        e = self.map1(silu(self.map0(self.map_noise(c_noise))))
        return self.body(x, silu(e + self.map_label(labels)))


class Preconditioned(nn.Module):
    """(x, sigma, class_labels) -> the denoised x, in `dtype` (in EDM always float32)."""

    def __init__(self, model, labels=0, dtype=torch.float32):
        super().__init__()
        self.model, self.labels, self.sigma_data, self.dtype = model, labels, 0.5, dtype

    def forward(self, x, sigma, class_labels=None, **more):
        x, sigma = x.to(self.dtype), sigma.to(self.dtype).reshape(-1, 1, 1, 1)
        if self.labels == 0:
            class_labels = None
        elif class_labels is None:
            class_labels = torch.zeros([1, self.labels], dtype=self.dtype, device=x.device)
        else:
            class_labels = class_labels.to(self.dtype).reshape(-1, self.labels)
        total = sigma**2 + self.sigma_data**2
        c_skip, c_out = self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt()
        c_in, c_noise = 1 / total.sqrt(), sigma.log() / 4
        return c_skip * x + c_out * self.model(c_in * x, c_noise.flatten(), class_labels, **more)


def edm_ddpmpp(dtype=torch.float32, seed=0):
    model = SongUNet(4, fourier=False, augment=9)
    return randomised(Preconditioned(model, dtype=dtype), dtype, seed)


def edm_ncsnpp(dtype=torch.float32, seed=0):
    return randomised(Preconditioned(SongUNet(4, True, labels=3), 3, dtype), dtype, seed)


def edm_adm(dtype=torch.float32, seed=0):
    return randomised(Preconditioned(DhariwalUNet(4, 3, per_head=4), 3, dtype), dtype, seed)


# ------------------------------------------------------------------ Song et al. 2021: NCSN++


def upfirdn(x, kernel, up=1, down=1, pad=(0, 0)):
    """Insert zeros, pad, convolve with the filter, and keep every down-th pixel."""
    channels, height, width = x.shape[1:]
    y = x.reshape(-1, height, 1, width, 1, 1)
    y = F.pad(y, [0, 0, 0, up - 1, 0, 0, 0, up - 1]).view(-1, height * up, width * up, 1)
    y = F.pad(y, [0, 0, *pad, *pad]).permute(0, 3, 1, 2)
    flipped = torch.flip(kernel, [0, 1]).view(1, 1, *kernel.shape)
    y = F.conv2d(y.reshape(-1, 1, *y.shape[2:]), flipped)
    y = y.reshape(-1, 1, *y.shape[2:]).permute(0, 2, 3, 1)[:, ::down, ::down, :]
    return y.reshape(-1, channels, *y.shape[1:3])


def fir(gain, like):
    kernel = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32)
    return torch.tensor(kernel / kernel.sum() * gain, device=like.device).to(like.dtype)


def doubled(x):
    return upfirdn(x, fir(4, x), up=2, pad=(2, 1))


def halved(x):
    return upfirdn(x, fir(1, x), down=2, pad=(1, 1))


class HalvingConv(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(after, before, 3, 3))
        self.bias = nn.Parameter(torch.empty(after))

    def forward(self, x):
        y = F.conv2d(upfirdn(x, fir(1, x), pad=(2, 2)), self.weight, stride=[2, 2], padding=0)
        return y + self.bias.reshape(1, -1, 1, 1)


class NIN(nn.Module):
    """A linear map of the channels, by einsum."""

    def __init__(self, before, after):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.empty(before, after)), nn.Parameter(torch.empty(after))

    def forward(self, x):
        y = torch.einsum("abcd,de->abce", x.permute(0, 2, 3, 1), self.W) + self.b
        return y.permute(0, 3, 1, 2)


class SongAttention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)
        self.q, self.k, self.v, self.out = (NIN(channels, channels) for _ in range(4))

    def forward(self, x):
        b, c, height, width = x.shape
        y = self.norm(x)
        w = torch.einsum("bchw,bcij->bhwij", self.q(y), self.k(y)) * (int(c) ** -0.5)
        w = F.softmax(torch.reshape(w, (b, height, width, height * width)), dim=-1)
        w = torch.reshape(w, (b, height, width, height, width))
        return (x + self.out(torch.einsum("bhwij,bcij->bchw", w, self.v(y)))) / np.sqrt(2.0)


class BigGAN(nn.Module):
    def __init__(self, before, after, e, resize=None):
        super().__init__()
        self.resize = resize
        self.norm0 = nn.GroupNorm(min(before // 4, 32), before, eps=1e-6)
        self.norm1 = nn.GroupNorm(min(after // 4, 32), after, eps=1e-6)
        self.conv0 = nn.Conv2d(before, after, 3, padding=1)
        self.conv1 = nn.Conv2d(after, after, 3, padding=1)
        self.dense, self.dropout = nn.Linear(e, after), nn.Dropout(0.1)
        self.skip = nn.Conv2d(before, after, 1) if before != after or resize else None

    def forward(self, x, e):
        y = silu(self.norm0(x))
        if self.resize is not None:
            x, y = self.resize(x), self.resize(y)
        y = self.conv0(y)
        y += self.dense(silu(e))[:, :, None, None]
        y = self.conv1(self.dropout(silu(self.norm1(y))))
        return ((x if self.skip is None else self.skip(x)) + y) / np.sqrt(2.0)


class GaussianFourier(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.W = nn.Parameter(torch.empty(size), requires_grad=False)

    def forward(self, x):
        angles = x[:, None] * self.W[None, :] * 2 * np.pi
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


class NCSNpp(nn.Module):
    """(x, sigma) -> the score: BigGAN blocks, FIR resampling, a residual pyramid of the input."""

    def __init__(self, f=4):
        super().__init__()
        self.fourier, e = GaussianFourier(f), 4 * f
        self.dense0, self.dense1 = nn.Linear(2 * f, e), nn.Linear(e, e)
        self.read, self.pyramid = nn.Conv2d(3, f, 3, padding=1), HalvingConv(3, f)
        self.fine, self.down = BigGAN(f, f, e), BigGAN(f, f, e, halved)
        self.coarse, self.attention0 = BigGAN(f, 2 * f, e), SongAttention(2 * f)
        self.middle0, self.attention1 = BigGAN(2 * f, 2 * f, e), SongAttention(2 * f)
        self.middle1, self.up = BigGAN(2 * f, 2 * f, e), BigGAN(2 * f, 2 * f, e, doubled)
        self.up_coarse = nn.ModuleList([BigGAN(4 * f, 2 * f, e), BigGAN(3 * f, 2 * f, e)])
        self.attention2 = SongAttention(2 * f)
        self.up_fine = nn.ModuleList([BigGAN(3 * f, f, e), BigGAN(2 * f, f, e)])
        self.norm = nn.GroupNorm(min(f // 4, 32), f, eps=1e-6)
        self.write = nn.Conv2d(f, 3, 3, padding=1)

    def forward(self, x, labels):
        e = self.dense1(silu(self.dense0(self.fourier(torch.log(labels)))))
        seen = [self.read(x)]
        seen.append(self.fine(seen[-1], e))
        seen.append((self.pyramid(x) + self.down(seen[-1], e)) / np.sqrt(2.0))
        seen.append(self.attention0(self.coarse(seen[-1], e)))
        h = self.middle1(self.attention1(self.middle0(seen[-1], e)), e)
        for block in self.up_coarse:
            h = block(torch.cat([h, seen.pop()], dim=1), e)
        h = self.up(self.attention2(h), e)
        for block in self.up_fine:
            h = block(torch.cat([h, seen.pop()], dim=1), e)
        h = self.write(silu(self.norm(h)))
        return h / labels.reshape((x.shape[0], *([1] * len(x.shape[1:]))))


def song_ncsnpp(dtype=torch.float32, seed=0):
    return randomised(NCSNpp(), dtype, seed)


# ------------------------------------------------------------------ smalldiffusion


def sines(batch, sigma):
    """The embedding of a noise level, or of one a sample: [batch, 2]."""
    if sigma.shape == torch.Size([]):
        sigma = sigma.unsqueeze(0).repeat(batch)
    angle = torch.log(sigma).unsqueeze(1) * 0.5
    return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)


class TimeInputMLP(nn.Module):
    def __init__(self, size=2, hidden=(16, 32, 16)):
        super().__init__()
        widths, layers = (size + 2, *hidden), []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.net = nn.Sequential(*layers, nn.Linear(hidden[-1], size))

    def forward(self, x, sigma, cond=None):
        return self.net(torch.cat([x, sines(x.shape[0], sigma.squeeze())], dim=1))


class SmallAttention(nn.Module):
    def __init__(self, channels, heads=1):
        super().__init__()
        self.heads, self.norm = heads, nn.GroupNorm(2, channels, eps=1e-6)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out, self.write = nn.Linear(channels, channels), nn.Conv2d(channels, channels, 1)

    def forward(self, x, e):
        b, c, height, width = x.shape
        rows = self.norm(x).permute(0, 2, 3, 1).reshape(b, height * width, c)
        qkv = self.qkv(rows).reshape(b, -1, 3, self.heads, c // self.heads)
        seen = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        rows = self.out(seen.permute(0, 2, 1, 3).reshape(b, height * width, c))
        return x + self.write(rows.reshape(b, height, width, c).permute(0, 3, 1, 2))


class SmallBlock(nn.Module):
    def __init__(self, before, after, e):
        super().__init__()
        conv = nn.Conv2d(before, after, 3, 1, 1)
        self.layer1 = nn.Sequential(nn.GroupNorm(2, before, eps=1e-6), nn.SiLU(), conv)
        self.project = nn.Sequential(nn.SiLU(), nn.Linear(e, after))
        conv = nn.Conv2d(after, after, 3, 1, 1)
        norm = nn.GroupNorm(2, after, eps=1e-6)
        self.layer2 = nn.Sequential(norm, nn.SiLU(), nn.Dropout(0.1), conv)
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, x, e):
        h = self.layer2(self.layer1(x) + self.project(e)[:, :, None, None])
        return (x if self.shortcut is None else self.shortcut(x)) + h


class SmallUNet(nn.Module):
    def __init__(self, c=4, e=16):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(2, e), nn.SiLU(), nn.Linear(e, e))
        self.read = nn.Conv2d(3, c, 3, padding=1)
        self.down = nn.ModuleList([SmallBlock(c, c, e), SmallBlock(c, 2 * c, e)])
        self.shrink = nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), 0), nn.Conv2d(c, c, 3, 2))
        middle = [SmallBlock(2 * c, 2 * c, e), SmallAttention(2 * c, 2)]
        self.middle = nn.ModuleList([*middle, SmallBlock(2 * c, 2 * c, e)])
        self.up_coarse = nn.ModuleList([SmallBlock(4 * c, 2 * c, e), SmallBlock(3 * c, 2 * c, e)])
        conv = nn.Conv2d(2 * c, 2 * c, 3, padding=1)
        self.grow = nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), conv)
        self.up_fine = nn.ModuleList([SmallBlock(3 * c, c, e), SmallBlock(2 * c, c, e)])
        conv = nn.Conv2d(c, 3, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(2, c, eps=1e-6), nn.SiLU(), conv)

    def forward(self, x, sigma, cond=None):
        e = self.embed(sines(x.shape[0], sigma.squeeze()))
        seen = [self.read(x)]
        seen.append(self.down[0](seen[-1], e))
        seen.append(self.shrink(seen[-1]))
        seen.append(self.down[1](seen[-1], e))
        h = seen[-1]
        for block in self.middle:
            h = block(h, e)
        for block in self.up_coarse:
            h = block(torch.cat([h, seen.pop()], dim=1), e)
        h = self.grow(h)
        for block in self.up_fine:
            h = block(torch.cat([h, seen.pop()], dim=1), e)
        return self.out(h)


def small_mlp(dtype=torch.float32, seed=0):
    return randomised(TimeInputMLP(), dtype, seed)


def small_unet(dtype=torch.float32, seed=0):
    return randomised(SmallUNet(), dtype, seed)


# ------------------------------------------------------------------ a transformer


class AttentionBlock(nn.Module):
    """A DiT block (Peebles and Xie 2023), and attention to a context by torch's own module."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.norm3 = (
            nn.LayerNorm(width, elementwise_affine=affine, eps=1e-6)
            for affine in (False, True, False)
        )
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.context = nn.MultiheadAttention(width, heads, batch_first=True)
        gelu = nn.GELU(approximate="tanh")
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), gelu, nn.Linear(2 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, e):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(e)[:, None].chunk(6, -1)
        x = x + gate1 * self.attended(self.norm1(x) * (1 + scale1) + shift1)
        asked, context = self.norm2(x), torch.stack([e, silu(e)], dim=1)
        x = x + self.context(asked, context, context, need_weights=False)[0]
        return x + gate2 * self.mlp(self.norm3(x) * (1 + scale2) + shift2)

    def attended(self, x):
        b, n, width = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(q, k, v)
        return self.out(seen.transpose(1, 2).reshape(b, n, width))


class Transformer(nn.Module):
    """(x, t, label) -> an image: patches, positions, two blocks."""

    def __init__(self, width=16, heads=2, patch=2, side=8):
        super().__init__()
        self.patch, self.pairs, self.rows = patch, width // 2, side // patch
        self.read = nn.Conv2d(3, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.empty(1, self.rows**2, width))
        self.embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(4, width)
        self.blocks = nn.ModuleList([AttentionBlock(width, heads) for _ in range(2)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.write = nn.Linear(width, 3 * patch**2)

    def forward(self, x, t, label):
        powers = torch.arange(self.pairs, dtype=torch.float32, device=t.device) / self.pairs
        angles = t[:, None] * torch.exp(-math.log(10000) * powers).to(t.dtype)[None]
        e = self.embed(torch.cat([torch.cos(angles), torch.sin(angles)], -1)) + self.labels(label)
        h = self.read(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            h = block(h, e)
        shift, scale = self.modulation(e)[:, None].chunk(2, -1)
        h = self.write(self.norm(h) * (1 + scale) + shift)
        h = h.reshape(-1, self.rows, self.rows, self.patch, self.patch, 3)
        h = torch.einsum("nhwpqc->nchpwq", h)
        return h.reshape(-1, 3, self.rows * self.patch, self.rows * self.patch)


def transformer(dtype=torch.float32, seed=0):
    return randomised(Transformer(), dtype, seed)


# ------------------------------------------------------------------ diffusers


class Called(nn.Module):
    """A module whose output is `rule(model, *inputs)`."""

    def __init__(self, model, rule):
        super().__init__()
        self.model, self.rule = model, rule

    def forward(self, *inputs):
        return self.rule(self.model, *inputs)


def diffusers_model(name, **config):
    pytest.importorskip("diffusers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages, while it imports them
        import diffusers  # pyright: ignore[reportMissingImports]

        return getattr(diffusers, name)(**config)


def sampled(model, *inputs):
    return model(*inputs, return_dict=False)[0]


def unet2d(dtype=torch.float32, seed=0):
    model = diffusers_model(
        "UNet2DModel",
        sample_size=8,
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=2,
    )
    return randomised(Called(model, sampled), dtype, seed)


def unet2d_condition(dtype=torch.float32, seed=0):
    model = diffusers_model(
        "UNet2DConditionModel",
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=2,
        norm_num_groups=2,
    )
    return randomised(Called(model, sampled), dtype, seed)


def dit(dtype=torch.float32, seed=0):
    model = diffusers_model(
        "DiTTransformer2DModel",
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        norm_num_groups=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    return randomised(Called(model, dit_called), dtype, seed)


def dit_called(model, x, timestep, labels):
    return model(x, timestep=timestep, class_labels=labels, return_dict=False)[0]


def autoencoder(rule, dtype, seed):
    model = diffusers_model(
        "AutoencoderKL",
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=2,
        norm_num_groups=2,
        sample_size=8,
    )
    return randomised(Called(model, rule), dtype, seed)


def vae_decoder(dtype=torch.float32, seed=0):
    return autoencoder(lambda m, z: m.decode(z, return_dict=False)[0], dtype, seed)


def vae_encoder(dtype=torch.float32, seed=0):
    return autoencoder(lambda m, x: m.encode(x).latent_dist.mean, dtype, seed)


# ------------------------------------------------------------------ the table


def noisy_image(dtype):
    return image(dtype), level(dtype)


def labelled_image(dtype):
    return image(dtype), level(dtype), one_hot(dtype)


def timed_image(dtype):
    return image(dtype), torch.tensor([37.0], dtype=dtype)


def numbered_image(dtype):
    return *timed_image(dtype), torch.tensor([2])


def prompted_image(dtype):
    return *timed_image(dtype), normal(1, 5, 6, dtype=dtype, seed=3)


FAMILIES = {
    "edm ddpm++": Family(edm_ddpmpp, noisy_image, float32_inside=True),
    "edm ncsn++": Family(edm_ncsnpp, labelled_image, float32_inside=True),
    "edm adm": Family(edm_adm, labelled_image, float32_inside=True),
    "song ncsn++": Family(song_ncsnpp, noisy_image),
    "small mlp": Family(small_mlp, lambda dtype: (normal(1, 2, dtype=dtype), level(dtype))),
    "small unet": Family(small_unet, noisy_image),
    "transformer": Family(transformer, numbered_image),
    "unet2d": Family(unet2d, timed_image),
    "unet2d condition": Family(unet2d_condition, prompted_image),
    "dit": Family(dit, numbered_image),
    "vae decoder": Family(vae_decoder, lambda dtype: (image(dtype, 2, 4),)),
    "vae encoder": Family(vae_encoder, lambda dtype: (image(dtype),)),
}
