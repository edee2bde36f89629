"""The U-Net of diffusers, `UNet2DModel`, for images `[H, W, C]`: the same function in JAX.

Residual blocks go down through the resolutions and come back up, each joined with what the way
down saw; at some resolutions every pixel then attends to every other:

    e = B silu(A features(step)) + embedding(label)
    h <- (W h + conv act norm(conv act(norm(h)) + b(act(e)))) / s                     default
    h <- (W h + conv act((1 + a(act(e))) norm(conv act(norm(h))) + b(act(e)))) / s    scale_shift
    h <- (h + O softmax(Q K^T / sqrt(d)) V) / s,    Q, K, V = q, k, v of norm(h)      attention

The features of a time step are `sin(w step), cos(w step)` with frequencies w from 1 down to 1e-4
("positional"), or `sin(w log step), cos(w log step)` with frequencies from the checkpoint
("fourier"); in the second case the output is also divided by the time step.

The modules bear the names of the checkpoint's tensors: a tensor's name is its place.

References: Ho, Jain, Abbeel 2020, arXiv 2006.11239; Song et al. 2021, arXiv 2011.13456.
"""

from scoresens.importers.unet2d.network import UNet2D, checkpoint_of, unet2d
from scoresens.importers.unet2d.settings import malformed, unsupported

__all__ = ["UNet2D", "checkpoint_of", "malformed", "unet2d", "unsupported"]
