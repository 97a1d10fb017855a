"""A text-conditioned diffusion transformer, the other family of networks: DiT with PixArt-alpha's cross-attention.

Blocks, patches, positions and final layer are those of Peebles & Xie (arXiv 2212.09748): a transformer over patches of
the latent whose norms are scaled, shifted and gated by the timestep (adaLN-zero), each block by a linear layer of its
own. Between a block's self-attention and its MLP its tokens attend to the text states as in Chen et al. (arXiv
2310.00426): without a norm, and through an output projection that starts at zero. DiT's sizes with patches of 2 are S
(width 384, depth 12, heads 6), B (768, 12, 12), L (1024, 24, 16) and XL (1152, 28, 16).

Types as in :mod:`ldmscale.models.layers`. Parameters are called as in diffusers' ``DiTTransformer2DModel``, whose
blocks hold copies of the timestep's embedding: ours is ``time_embedding``, once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldmscale.errors import UserError
from ldmscale.models.attention import attend
from ldmscale.models.layers import Dense
from ldmscale.models.unet_layers import (
    MAX_PERIOD,
    TimestepEmbedding,
    check_common,
    guidance_features,
    rematerialised,
    timestep_features,
)

NORM_EPSILON = 1e-6
TIME_FEATURES = 256  # sinusoidal ones of a timestep, at every width
# DiT's start: every kernel but the time embedding's, which starts as the U-Net's, and those that start at zero.
KERNEL_INIT = nn.initializers.xavier_uniform()
ZEROS = nn.initializers.zeros


@dataclass(frozen=True)
class DiTConfig:
    """Shape of a DiT: ``depth`` blocks of ``width`` channels with ``heads`` attention heads and an MLP of ``mlp_ratio``
    times the width, on patches of ``patch`` x ``patch`` latent pixels.

    ``dtype``, ``guidance_width`` and ``remat`` (of blocks) as in :class:`ldmscale.models.unet.UNetConfig`. Raises
    UserError for a number that is not positive, a ``width`` that ``heads`` does not divide or that is no multiple of 4
    (the positions' sines and cosines of rows and columns), or another ``dtype``.
    """

    width: int
    depth: int
    heads: int
    patch: int = 2
    context_width: int = 1024
    in_channels: int = 4
    out_channels: int = 4
    mlp_ratio: int = 4
    dtype: str = "float32"
    guidance_width: int = 0
    remat: bool = False

    def __post_init__(self):
        for key in ("width", "depth", "heads", "patch", "context_width", "in_channels", "out_channels", "mlp_ratio"):
            if getattr(self, key) < 1:
                raise UserError(f"{key} is {getattr(self, key)}: it must be a positive whole number.")
        step = math.lcm(4, self.heads)
        if self.width % step:
            raise UserError(
                f"width is {self.width}: it must be a multiple of 4 and of heads: {self.heads}, for example "
                f"{step * max(1, round(self.width / step))}."
            )
        check_common(self.guidance_width, self.dtype)


def positions(rows: int, columns: int, width: int) -> jax.Array:
    """Sines and cosines of a grid's positions, float32 [rows,columns,width]: those of the column in the first half of
    the channels, of the row in the second (DiT's ``get_2d_sincos_pos_embed``, at any aspect)."""
    quarter = width // 4

    def of(count: int) -> jax.Array:
        angles = jnp.arange(count)[:, None] * jnp.exp(-math.log(MAX_PERIOD) * jnp.arange(quarter) / quarter)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    shape = (rows, columns, 2 * quarter)
    halves = of(columns)[None], of(rows)[:, None]
    return jnp.concatenate([jnp.broadcast_to(half, shape) for half in halves], axis=-1)


def modulated_norm(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Layer normalisation of x [B,T,C] without parameters of its own, times 1 + ``scale`` [B,C], plus ``shift`` [B,C]:
    adaptive layer norm. In float32, as norms are."""
    dtype, x, shift, scale = x.dtype, *(part.astype(jnp.float32) for part in (x, shift, scale))
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + NORM_EPSILON)
    return (x * (1 + scale[:, None]) + shift[:, None]).astype(dtype)


class Modulation(nn.Module):
    """``parts`` vectors [B,C] from the embedding [B,C] of what a norm adapts to; all zero at the start."""

    parts: int

    @nn.compact
    def __call__(self, embedding: jax.Array) -> list[jax.Array]:
        out = Dense(self.parts * embedding.shape[-1], init=ZEROS, name="linear")(nn.silu(embedding))
        return jnp.split(out, self.parts, axis=-1)


class Attention(nn.Module):
    """Multi-head attention of x [B,T,C] over ``source`` [B,S,D], every projection with a bias; ``init`` is that of the
    output's."""

    heads: int
    init: nn.initializers.Initializer = KERNEL_INIT

    @nn.compact
    def __call__(self, x: jax.Array, source: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        query = Dense(channels, init=KERNEL_INIT, name="to_q")(x)
        key = Dense(channels, init=KERNEL_INIT, name="to_k")(source)
        value = Dense(channels, init=KERNEL_INIT, name="to_v")(source)
        return Dense(channels, init=self.init, name="to_out_0")(attend(query, key, value, self.heads))


class GELU(nn.Module):
    """x [B,T,C] -> [B,T,width]: a linear layer, then the GELU's tanh form."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.gelu(Dense(self.width, init=KERNEL_INIT, name="proj")(x), approximate=True)


class FeedForward(nn.Module):
    """``ratio`` times the width, then back: [B,T,C] -> [B,T,C]."""

    ratio: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        return Dense(channels, init=KERNEL_INIT, name="net_2")(GELU(self.ratio * channels, name="net_0")(x))


class DiTBlock(nn.Module):
    """Self-attention, cross-attention on ``context`` [B,L,D], feed-forward; residuals on x [B,T,C]. ``embedding`` [B,C]
    shifts, scales and gates the first and the last. It starts as the identity."""

    config: DiTConfig

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, context: jax.Array) -> jax.Array:
        heads = self.config.heads
        shift, scale, gate, ff_shift, ff_scale, ff_gate = Modulation(6, name="norm1")(embedding)
        h = modulated_norm(x, shift, scale)
        x = x + gate[:, None] * Attention(heads, name="attn1")(h, h)
        x = x + Attention(heads, init=ZEROS, name="attn2")(x, context)
        h = modulated_norm(x, ff_shift, ff_scale)
        return x + ff_gate[:, None] * FeedForward(self.config.mlp_ratio, name="ff")(h)


def dit_block(config: DiTConfig, i: int) -> DiTBlock:
    """Block ``i`` of the transformer of ``config``: a submodule of the module whose compact method calls this."""
    return rematerialised(DiTBlock, config.remat)(config, name=f"transformer_blocks_{i}")


class PatchEmbedding(nn.Module):
    """z [B,H,W,Cin] -> a token a patch [B,HW/patch^2,width], positions added, row by row."""

    config: DiTConfig

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        batch, height, width, channels = z.shape
        patch, rows, columns = self.config.patch, height // self.config.patch, width // self.config.patch
        x = z.reshape(batch, rows, patch, columns, patch, channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, rows, columns, patch * patch * channels)
        x = Dense(self.config.width, init=KERNEL_INIT, name="proj")(x)
        x = x + positions(rows, columns, self.config.width).astype(x.dtype)
        return x.reshape(batch, rows * columns, self.config.width)


def embed(
    config: DiTConfig, z: jax.Array, t: jax.Array, context: jax.Array, w: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the blocks are given, by submodules of the module whose compact method calls this: (tokens
    [B,HW/patch^2,width], embedding [B,width], ``context`` in the type of the activations).

    Raises UserError for latents that ``patch`` does not divide, ValueError if ``w`` is given to a network that does not
    take it, or missing where it does.
    """
    if (w is None) == (config.guidance_width > 0):
        raise ValueError(f"guidance_width is {config.guidance_width}, but w is {'missing' if w is None else 'given'}")
    _, height, width, _ = z.shape
    if height % config.patch or width % config.patch:
        raise UserError(f"latents are {height} x {width}, which patch: {config.patch} does not divide.")
    dtype = jnp.dtype(config.dtype)
    z, context, features = (x.astype(dtype) for x in (z, context, timestep_features(t, TIME_FEATURES)))
    guidance = () if w is None else (guidance_features(w, config.guidance_width).astype(dtype),)
    embedding = TimestepEmbedding(config.width, name="time_embedding")(features, *guidance)
    return PatchEmbedding(config, name="pos_embed")(z), embedding, context


class DiT(nn.Module):
    """Noise prediction, called as :class:`ldmscale.models.unet.UNet`: z [B,H,W,Cin] float32, t [B] int32 in 0..999,
    context [B,L,D] float32 -> eps [B,H,W,Cout] float32; ``w`` [B] likewise.

    ``residuals``, [B,HW/patch^2,width] each, are added to the outputs of the first so many blocks (PixArt-delta's
    control, arXiv 2401.05252). Raises UserError for latents that ``patch`` does not divide, and ValueError where ``w``
    does not fit the configuration or there are more residuals than blocks. The first prediction is 0.
    """

    config: DiTConfig

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        t: jax.Array,
        context: jax.Array,
        w: jax.Array | None = None,
        residuals: Sequence[jax.Array] | None = None,
    ) -> jax.Array:
        config = self.config
        residuals = residuals or ()
        if len(residuals) > config.depth:
            raise ValueError(f"{len(residuals)} residuals for {config.depth} blocks")
        (batch, height, width, _), patch = z.shape, config.patch
        x, embedding, context = embed(config, z, t, context, w)
        for i in range(config.depth):
            x = dit_block(config, i)(x, embedding, context)
            if i < len(residuals):
                x = x + residuals[i].astype(x.dtype)
        x = modulated_norm(x, *Modulation(2, name="proj_out_1")(embedding))
        x = Dense(patch * patch * config.out_channels, init=ZEROS, name="proj_out_2")(x)
        x = x.reshape(batch, height // patch, width // patch, patch, patch, config.out_channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, config.out_channels)
        return x.astype(jnp.float32)
