"""The Stable Diffusion U-Net (Rombach et al., arXiv 2112.10752), the network whose width the study scales.

Numerically it is diffusers' ``UNet2DConditionModel`` with one transformer block per attention and GroupNorm, SiLU and
GEGLU throughout; ``heads`` is the number of heads (what diffusers calls ``attention_head_dim`` for Stable Diffusion 1).
With the default configuration ``filters=320`` is the 866M model of arXiv 2404.01367, Table 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldmscale.errors import UserError
from ldmscale.models.layers import Attention, Conv, Dense, Downsample, GroupNorm, LayerNorm, ResnetBlock, Upsample

NORM_EPSILON = 1e-5
TRANSFORMER_NORM_EPSILON = 1e-6
MAX_PERIOD = 10_000
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a U-Net: level i has ``filters * channel_mult[i]`` channels, ``blocks_per_level`` resnet blocks on the
    way down and one more on the way up, each followed by a transformer where ``attention_levels[i]``.

    ``heads`` is one number or, as in Stable Diffusion 2, one a level. ``dtype`` is the type of the activations and
    products, "float32" or "bfloat16"; parameters, norms, softmax and the prediction are float32 either way.

    Raises UserError if the lengths disagree or if ``norm_groups`` or ``heads`` cannot divide a level's channels.
    """

    filters: int
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    blocks_per_level: int = 2
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    heads: int | tuple[int, ...] = 8
    norm_groups: int = 32
    context_width: int = 1024
    in_channels: int = 4
    out_channels: int = 4
    dtype: str = "float32"

    def __post_init__(self):
        if not isinstance(self.heads, int):
            object.__setattr__(self, "heads", tuple(self.heads))
        object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        object.__setattr__(self, "attention_levels", tuple(self.attention_levels))
        levels = len(self.channel_mult)
        for key in ("attention_levels", "level_heads"):
            if len(getattr(self, key)) != levels:
                raise UserError(
                    f"{key.removeprefix('level_')} has {len(getattr(self, key))} entries and channel_mult {levels}: "
                    "give one of each per level of the U-Net."
                )
        for key in ("filters", "blocks_per_level", "norm_groups", "context_width"):
            if getattr(self, key) < 1:
                raise UserError(f"{key} is {getattr(self, key)}: it must be a positive whole number.")
        if min(self.level_heads) < 1:
            raise UserError(f"heads is {self.heads}: it must be a positive whole number.")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype is '{self.dtype}': it must be {' or '.join(DTYPES)}.")
        # The middle block always attends, so the last level's channels count as an attention's.
        attended = [*self.attention_levels[:-1], True]
        for channels, heads, has_attention in zip(self.widths, self.level_heads, attended, strict=True):
            for key, divisor, divides in (("norm_groups", self.norm_groups, True), ("heads", heads, has_attention)):
                if divides and channels % divisor:
                    step = math.lcm(self.norm_groups, *self.level_heads)
                    raise UserError(
                        f"filters: {self.filters} gives a level of {channels} channels, which {key}: {divisor} does "
                        f"not divide; use a multiple of {step}, for example {step * max(1, round(self.filters / step))}"
                    )

    @property
    def level_heads(self) -> tuple[int, ...]:
        """Attention heads of each level, from the full resolution down."""
        return (self.heads,) * len(self.channel_mult) if isinstance(self.heads, int) else self.heads

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from the full resolution down."""
        return tuple(self.filters * m for m in self.channel_mult)


def timestep_features(t: jax.Array, width: int) -> jax.Array:
    """Sinusoidal features of timesteps ``t`` [B] -> [B,width]: cosines first, lowest period 2 pi (diffusers' Timesteps
    with flip_sin_to_cos=True, downscale_freq_shift=0)."""
    half = width // 2
    angles = t.astype(jnp.float32)[:, None] * jnp.exp(-math.log(MAX_PERIOD) * jnp.arange(half) / half)
    features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(features, ((0, 0), (0, width % 2)))


class TimestepEmbedding(nn.Module):
    """Two dense layers on the sinusoidal features: [B,F] -> [B,width]."""

    width: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        return Dense(self.width, name="linear_2")(nn.silu(Dense(self.width, name="linear_1")(features)))


class GEGLU(nn.Module):
    """x [B,T,C] -> [B,T,width]: a linear layer gated by the exact GELU of another (Shazeer, arXiv 2002.05202)."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        value, gate = jnp.split(Dense(2 * self.width, name="proj")(x), 2, axis=-1)
        # The exact GELU through erf: XLA:CPU spends less on it than on jax.nn.gelu's erfc, forward and backward.
        return value * gate * (0.5 + 0.5 * jax.lax.erf(gate * math.sqrt(0.5)))


class FeedForward(nn.Module):
    """GEGLU of four times the width, then back: [B,T,C] -> [B,T,C]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Dense(x.shape[-1], name="net_2")(GEGLU(4 * x.shape[-1], name="net_0")(x))


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention on ``context`` [B,L,D], feed-forward; pre-norm residuals on x [B,T,C]."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        x = x + Attention(self.heads, name="attn1")(LayerNorm(name="norm1")(x))
        x = x + Attention(self.heads, name="attn2")(LayerNorm(name="norm2")(x), context)
        return x + FeedForward(name="ff")(LayerNorm(name="norm3")(x))


class Transformer(nn.Module):
    """A transformer over the pixels of x [B,H,W,C] with one block (diffusers Transformer2DModel)."""

    heads: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, TRANSFORMER_NORM_EPSILON, name="norm")(x).reshape(batch, height * width, channels)
        h = Dense(channels, name="proj_in")(h)
        h = BasicTransformerBlock(self.heads, name="transformer_blocks_0")(h, context)
        h = Dense(channels, init=nn.initializers.zeros, name="proj_out")(h)
        return x + h.reshape(x.shape)


class _Level(nn.Module):
    """What the blocks of level ``level`` share."""

    config: UNetConfig
    level: int

    @property
    def channels(self) -> int:
        return self.config.widths[self.level]

    @property
    def attention(self) -> bool:
        """Whether a transformer follows each resnet block."""
        return self.config.attention_levels[self.level]

    def resnet(self, i: int) -> ResnetBlock:
        return ResnetBlock(
            self.channels, self.config.norm_groups, NORM_EPSILON, zero=True, name=f"resnets_{i}", parent=self
        )

    def transformer(self, i: int) -> Transformer:
        heads = self.config.level_heads[self.level]
        return Transformer(heads, self.config.norm_groups, name=f"attentions_{i}", parent=self)


class DownBlock(_Level):
    """One level on the way down -> (x, skips); all but the last end in half the resolution."""

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, context: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        skips = []
        for i in range(self.config.blocks_per_level):
            x = self.resnet(i)(x, embedding)
            if self.attention:
                x = self.transformer(i)(x, context)
            skips.append(x)
        if self.level < len(self.config.widths) - 1:
            x = Downsample(name="downsamplers_0")(x)
            skips.append(x)
        return x, skips


class MidBlock(_Level):
    """Resnet block, transformer, resnet block at the lowest resolution."""

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, context: jax.Array) -> jax.Array:
        x = self.resnet(0)(x, embedding)
        x = self.transformer(0)(x, context)
        return self.resnet(1)(x, embedding)


class UpBlock(_Level):
    """One level on the way up; takes its skips from the end of ``skips`` and upsamples to the next skip's size."""

    @nn.compact
    def __call__(self, x: jax.Array, skips: list[jax.Array], embedding: jax.Array, context: jax.Array) -> jax.Array:
        for i in range(self.config.blocks_per_level + 1):
            x = self.resnet(i)(jnp.concatenate([x, skips.pop()], axis=-1), embedding)
            if self.attention:
                x = self.transformer(i)(x, context)
        if self.level > 0:
            x = Upsample(name="upsamplers_0")(x, skips[-1].shape[1:3])
        return x


class UNet(nn.Module):
    """Noise prediction: z [B,H,W,Cin] float32, t [B] int32 in 0..999, context [B,L,D] float32 -> eps [B,H,W,Cout].

    The last convolution of every resnet block and transformer and of the network start at zero, as in the latent
    diffusion authors' code: each residual branch starts as the identity and the first prediction is 0.
    """

    config: UNetConfig

    @nn.compact
    def __call__(self, z: jax.Array, t: jax.Array, context: jax.Array) -> jax.Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        first, last = config.widths[0], len(config.widths) - 1
        z, context, features = (x.astype(dtype) for x in (z, context, timestep_features(t, first)))
        embedding = TimestepEmbedding(4 * first, name="time_embedding")(features)
        x = Conv(first, name="conv_in")(z)
        skips = [x]
        for level in range(last + 1):
            x, new_skips = DownBlock(config, level, name=f"down_blocks_{level}")(x, embedding, context)
            skips += new_skips
        x = MidBlock(config, last, name="mid_block")(x, embedding, context)
        for i in range(last + 1):
            x = UpBlock(config, last - i, name=f"up_blocks_{i}")(x, skips, embedding, context)
        x = nn.silu(GroupNorm(config.norm_groups, NORM_EPSILON, name="conv_norm_out")(x))
        return Conv(config.out_channels, zero=True, name="conv_out")(x).astype(jnp.float32)


def skeleton(config: UNetConfig, latent_size: int) -> list[dict]:
    """The blocks of the network in order, for drawing (the paper's Fig. 2).

    Each is {level, kind, channels, resolution, attention}: ``kind`` is one of conv_in, resnet, downsample, upsample,
    conv_out; ``channels`` and ``resolution`` (pixels per side) are those of its output; ``attention`` says whether a
    transformer follows.
    """
    blocks: list[dict] = []

    def add(kind: str, level: int, channels: int, resolution: int, attention: bool = False) -> None:
        entry = {"level": level, "kind": kind, "channels": channels, "resolution": resolution, "attention": attention}
        blocks.append(entry)

    widths, last = config.widths, len(config.widths) - 1
    sizes = [latent_size]
    for _ in range(last):
        sizes.append(-(-sizes[-1] // 2))
    add("conv_in", 0, widths[0], latent_size)
    for level, channels in enumerate(widths):
        for _ in range(config.blocks_per_level):
            add("resnet", level, channels, sizes[level], config.attention_levels[level])
        if level < last:
            add("downsample", level + 1, channels, sizes[level + 1])
    add("resnet", last, widths[last], sizes[last], True)
    add("resnet", last, widths[last], sizes[last])
    for level in reversed(range(last + 1)):
        for _ in range(config.blocks_per_level + 1):
            add("resnet", level, widths[level], sizes[level], config.attention_levels[level])
        if level > 0:
            add("upsample", level - 1, widths[level], sizes[level - 1])
    add("conv_out", 0, config.out_channels, latent_size)
    return blocks
