"""The Stable Diffusion U-Net (Rombach et al., arXiv 2112.10752), the network whose width the study scales.

Numerically it is diffusers' ``UNet2DConditionModel`` with one transformer block per attention and GroupNorm, SiLU and
GEGLU throughout; ``heads`` is the number of heads (what diffusers calls ``attention_head_dim`` for Stable Diffusion 1).
With the default configuration ``filters=320`` is the 866M model of arXiv 2404.01367, Table 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldmscale.errors import UserError
from ldmscale.models.layers import Conv
from ldmscale.models.norms import GroupNorm
from ldmscale.models.resnet import Downsample, ResnetBlock, Upsample
from ldmscale.models.unet_layers import (
    TimestepEmbedding,
    Transformer,
    check_common,
    guidance_features,
    rematerialised,
    timestep_features,
)

NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a U-Net: level i has ``filters * channel_mult[i]`` channels, ``blocks_per_level`` resnet blocks on the
    way down and one more on the way up, each followed by a transformer where ``attention_levels[i]``.

    ``heads`` is one number or, as in Stable Diffusion 2, one a level. ``dtype`` is the type of the activations and
    products, "float32" or "bfloat16"; parameters, norms, softmax and the prediction are float32 either way.
    ``guidance_width`` is the width of the embedding of the guidance weight, 0 for a network that does not take one.
    ``remat``: resnet blocks and transformers compute their activations again for the gradient.

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
    guidance_width: int = 0
    remat: bool = False

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
        check_common(self.guidance_width, self.dtype)
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
        return rematerialised(ResnetBlock, self.config.remat)(
            self.channels, self.config.norm_groups, NORM_EPSILON, zero=True, name=f"resnets_{i}", parent=self
        )

    def transformer(self, i: int) -> Transformer:
        heads = self.config.level_heads[self.level]
        transformer = rematerialised(Transformer, self.config.remat)
        return transformer(heads, self.config.norm_groups, name=f"attentions_{i}", parent=self)


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


class Residuals(NamedTuple):
    """What is added to a U-Net's ``skips``, in the order in which they arise, and to its middle block's output, all
    [B,h,w,C] in the type of its activations."""

    skips: list[jax.Array]
    mid: jax.Array


def encode(
    config: UNetConfig, z: jax.Array, t: jax.Array, context: jax.Array, w: jax.Array | None = None
) -> tuple[list[jax.Array], jax.Array, jax.Array, jax.Array]:
    """The way down and the middle block, as submodules of the module whose compact method calls this -> (skips, the
    middle block's output, embedding, ``context`` in the type of the activations).

    Raises ValueError if ``w`` is given to a network that does not take it, or missing where it does.
    """
    if (w is None) == (config.guidance_width > 0):
        raise ValueError(f"guidance_width is {config.guidance_width}, but w is {'missing' if w is None else 'given'}")
    dtype, first, last = jnp.dtype(config.dtype), config.widths[0], len(config.widths) - 1
    z, context, features = (x.astype(dtype) for x in (z, context, timestep_features(t, first)))
    guidance = () if w is None else (guidance_features(w, config.guidance_width).astype(dtype),)
    embedding = TimestepEmbedding(4 * first, name="time_embedding")(features, *guidance)
    x = Conv(first, name="conv_in")(z)
    skips = [x]
    for level in range(last + 1):
        x, new_skips = DownBlock(config, level, name=f"down_blocks_{level}")(x, embedding, context)
        skips += new_skips
    return skips, MidBlock(config, last, name="mid_block")(x, embedding, context), embedding, context


class UNet(nn.Module):
    """Noise prediction: z [B,H,W,Cin] float32, t [B] int32 in 0..999, context [B,L,D] float32 -> eps [B,H,W,Cout].

    ``w`` [B] float32, where ``config.guidance_width`` says so, is the guidance weight CFG - 1 whose guided prediction
    this is (Meng et al., arXiv 2210.03142; diffusers' ``timestep_cond``). ``residuals`` are an adapter's
    (:class:`ldmscale.models.adapter.Adapter`). Raises ValueError where ``w`` does not fit the configuration.

    The last convolution of every resnet block and transformer and of the network start at zero, as in the latent
    diffusion authors' code: each residual branch starts as the identity and the first prediction is 0.
    """

    config: UNetConfig

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        t: jax.Array,
        context: jax.Array,
        w: jax.Array | None = None,
        residuals: Residuals | None = None,
    ) -> jax.Array:
        config = self.config
        skips, x, embedding, context = encode(config, z, t, context, w)
        if residuals is not None:
            skips = [skip + residual for skip, residual in zip(skips, residuals.skips, strict=True)]
            x = x + residuals.mid
        last = len(config.widths) - 1
        for i in range(last + 1):
            x = UpBlock(config, last - i, name=f"up_blocks_{i}")(x, skips, embedding, context)
        x = GroupNorm(config.norm_groups, NORM_EPSILON, silu=True, name="conv_norm_out")(x)
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
