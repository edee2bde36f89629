"""Models of latents: the autoencoder around a score, and questions about what it decodes.

A latent model is a score of `z = scale (mean(encoder(image)) - shift)`. Its data are the latents of
the images, and a question about an image is one about the decoder's output,

    f(z) = functional(decode(z)),

so that sensitivities and attributions of decoded images are those of latents, with another
functional.

References: Rombach et al. 2022, arXiv 2112.10752.
"""

from dataclasses import dataclass, field

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from scoresens._pytrees import register_dataclass
from scoresens.importers.program import Program
from scoresens.sensitivity.functionals import Functional


@register_dataclass
@dataclass(frozen=True)
class Autoencoder:
    """An encoder and a decoder, of one image at a time; made by `autoencoder_from_diffusers`.

    Args:
        encoder: images `[1, C, H, W]` to latents `[1, c, h, w]`.
        decoder: latents to images.
        scale, shift: of the latents that the score knows.
    """

    encoder: Program
    decoder: Program
    scale: float = field(metadata={"static": True})
    shift: float = field(metadata={"static": True})

    def encode(self, image: Float[Array, "H W C"]) -> Float[Array, "h w c"]:
        """The latent of an image in [-1, 1]: the mean of its law, as the score knows it."""
        return self.scale * (_channels_last(self.encoder, image) - self.shift)

    def decode(self, latent: Float[Array, "h w c"]) -> Float[Array, "H W C"]:
        """The image of a latent."""
        return _channels_last(self.decoder, latent / self.scale + self.shift)


def decoded(functional: Functional, autoencoder: Autoencoder) -> Functional:
    """The functional of a latent's image: `z -> functional(decode(z))`.

    Args:
        functional: of an image `[H, W, C]`.
        autoencoder: whose decoder makes the image.

    Returns:
        A functional of a latent, as `attribute` takes it. Its gradient is one reverse pass through
            the decoder.
    """
    return Partial(_decoded, functional, autoencoder)


def _decoded(functional, autoencoder, z):
    return functional(autoencoder.decode(z))


def _channels_last(program, x):
    return jnp.moveaxis(program(jnp.moveaxis(x, -1, 0)[None])[0], 0, -1)
