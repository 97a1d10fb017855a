"""What the U-Net and the autoencoder are made of: residual blocks, halving and doubling of planes.

Types, names and layouts as in :mod:`ldmscale.models.layers`.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from ldmscale.models.layers import SAME, Conv, Dense, Padding, nearest
from ldmscale.models.norms import GroupNorm


class ResnetBlock(nn.Module):
    """Residual block (diffusers ResnetBlock2D): norm, SiLU, conv, + time embedding, norm, SiLU, conv, + shortcut.

    x [B,H,W,C], ``embedding`` [B,E] or None -> [B,H,W,channels].
    """

    channels: int
    groups: int
    epsilon: float
    zero: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        h = GroupNorm(self.groups, self.epsilon, silu=True, name="norm1")(x)
        h = Conv(self.channels, name="conv1")(h)
        if embedding is not None:
            h = h + Dense(self.channels, name="time_emb_proj")(nn.silu(embedding))[:, None, None, :]
        h = GroupNorm(self.groups, self.epsilon, silu=True, name="norm2")(h)
        h = Conv(self.channels, zero=self.zero, name="conv2")(h)
        if x.shape[-1] != self.channels:
            x = Conv(self.channels, size=1, name="conv_shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """Halve height and width (rounding up) with a stride-2 convolution; ``padding`` as the network's convention."""

    padding: Padding = SAME

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Conv(x.shape[-1], stride=2, padding=self.padding, name="conv")(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by two, cropped to ``size`` (H, W) if given, then a 3x3 convolution."""

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int] | None = None) -> jax.Array:
        channels, doubled = x.shape[-1], (2 * x.shape[1], 2 * x.shape[2])
        if size in (None, doubled):
            return Conv(channels, doubled=True, name="conv")(x)
        return Conv(channels, name="conv")(nearest(x)[:, : size[0], : size[1]])
