"""The KL autoencoder of Stable Diffusion (Rombach et al., arXiv 2112.10752): images to latents and back.

Numerically it is diffusers' ``AutoencoderKL``. Latents here are not scaled; whoever trains on them applies the scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldmscale.errors import UserError
from ldmscale.models.attention import Attention
from ldmscale.models.layers import Conv, Padding
from ldmscale.models.norms import GroupNorm
from ldmscale.models.resnet import Downsample, ResnetBlock, Upsample

NORM_EPSILON = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)
# Stable Diffusion's encoder pads the stride-2 convolutions at the bottom and right only.
DOWNSAMPLE_PADDING: Padding = ((0, 1), (0, 1))


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of the autoencoder; level i has ``channels * channel_mult[i]`` channels and the latents are smaller than
    the images by ``factor``.

    Raises UserError if ``norm_groups`` cannot divide a level's channels.
    """

    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    blocks_per_level: int = 2
    latent_channels: int = 4
    norm_groups: int = 32
    mid_attention: bool = True

    def __post_init__(self):
        object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        for key in ("channels", "blocks_per_level", "latent_channels", "norm_groups"):
            if getattr(self, key) < 1:
                raise UserError(f"autoencoder {key} is {getattr(self, key)}: it must be a positive whole number.")
        for width in self.widths:
            if width % self.norm_groups:
                raise UserError(
                    f"autoencoder channels: {self.channels} gives a level of {width} channels, which norm_groups: "
                    f"{self.norm_groups} does not divide; use a multiple of {self.norm_groups}."
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from the images' resolution down."""
        return tuple(self.channels * m for m in self.channel_mult)

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel along a side."""
        return 2 ** (len(self.channel_mult) - 1)


def _resnet(config: AutoencoderConfig, channels: int, i: int) -> ResnetBlock:
    return ResnetBlock(channels, config.norm_groups, NORM_EPSILON, name=f"resnets_{i}")


class PixelAttention(nn.Module):
    """Single-head self-attention over the pixels of x [B,H,W,C], with a residual."""

    groups: int

    def setup(self):
        self.group_norm = GroupNorm(self.groups, NORM_EPSILON)
        self.attention = Attention(heads=1, use_bias=True)
        nn.share_scope(self, self.attention)  # the published weights keep the projections beside the norm

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = self.attention(self.group_norm(x).reshape(batch, height * width, channels))
        return x + h.reshape(x.shape)


class MidBlock(nn.Module):
    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _resnet(self.config, x.shape[-1], 0)(x)
        if self.config.mid_attention:
            x = PixelAttention(self.config.norm_groups, name="attentions_0")(x)
        return _resnet(self.config, x.shape[-1], 1)(x)


class DownBlock(nn.Module):
    config: AutoencoderConfig
    channels: int
    downsample: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.config.blocks_per_level):
            x = _resnet(self.config, self.channels, i)(x)
        return Downsample(DOWNSAMPLE_PADDING, name="downsamplers_0")(x) if self.downsample else x


class UpBlock(nn.Module):
    config: AutoencoderConfig
    channels: int
    upsample: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.config.blocks_per_level + 1):
            x = _resnet(self.config, self.channels, i)(x)
        return Upsample(name="upsamplers_0")(x) if self.upsample else x


class Encoder(nn.Module):
    """Images [B,H,W,3] -> moments [B,H/f,W/f,2C], before the quantisation convolution."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        widths = self.config.widths
        x = Conv(widths[0], name="conv_in")(x)
        for i, channels in enumerate(widths):
            x = DownBlock(self.config, channels, i < len(widths) - 1, name=f"down_blocks_{i}")(x)
        x = MidBlock(self.config, name="mid_block")(x)
        x = GroupNorm(self.config.norm_groups, NORM_EPSILON, silu=True, name="conv_norm_out")(x)
        return Conv(2 * self.config.latent_channels, name="conv_out")(x)


class Decoder(nn.Module):
    """Latents [B,h,w,C], after the post-quantisation convolution -> images [B,h*f,w*f,3]."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        widths = self.config.widths[::-1]
        x = Conv(widths[0], name="conv_in")(z)
        x = MidBlock(self.config, name="mid_block")(x)
        for i, channels in enumerate(widths):
            x = UpBlock(self.config, channels, i < len(widths) - 1, name=f"up_blocks_{i}")(x)
        x = GroupNorm(self.config.norm_groups, NORM_EPSILON, silu=True, name="conv_norm_out")(x)
        return Conv(3, name="conv_out")(x)


class Autoencoder(nn.Module):
    """Encode images to a diagonal Gaussian over latents, decode latents to images. Float32 throughout."""

    config: AutoencoderConfig

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.quant_conv = Conv(2 * self.config.latent_channels, size=1)
        self.post_quant_conv = Conv(self.config.latent_channels, size=1)

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images [B,H,W,3] in [-1,1] -> (mean, logvar), each [B,H/f,W/f,C]; logvar is clipped to [-30,20].

        Raises UserError if the factor f does not divide the image's sides.
        """
        height, width = images.shape[1:3]
        if height % self.config.factor or width % self.config.factor:
            raise UserError(
                f"images of {height}x{width} pixels do not fit the autoencoder: both sides must be multiples of "
                f"{self.config.factor}, two to the power of its number of levels less one."
            )
        mean, logvar = jnp.split(self.quant_conv(self.encoder(images)), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, z: jax.Array) -> jax.Array:
        """Latents [B,h,w,C] -> images [B,h*f,w*f,3], nominally in [-1,1] and not clipped."""
        return self.decoder(self.post_quant_conv(z))

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Images -> (reconstruction from the mean, mean, logvar); touches every parameter, so ``init`` uses it."""
        mean, logvar = self.encode(images)
        return self.decode(mean), mean, logvar
