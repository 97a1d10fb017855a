"""Embeddings of timestep and guidance weight, which both families of networks have, and the U-Net's transformer over
pixels.

Types, names and layouts as in :mod:`ldmscale.models.layers`.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldmscale.errors import UserError
from ldmscale.models.attention import Attention
from ldmscale.models.layers import Dense
from ldmscale.models.norms import GroupNorm, LayerNorm

TRANSFORMER_NORM_EPSILON = 1e-6
MAX_PERIOD = 10_000
DTYPES = ("float32", "bfloat16")


def rematerialised(block: type[nn.Module], remat: bool) -> type[nn.Module]:
    """``block``, or with ``remat`` the same block, of the same parameters, whose activations are not kept for the
    gradient but computed again: a third more work for the memory of all but its inputs."""
    return nn.remat(block) if remat else block


def check_common(guidance_width: int, dtype: str) -> None:
    """What every network's config asks of these two: UserError for a width too small to embed, another type."""
    if guidance_width < 0 or 0 < guidance_width < 4:
        raise UserError(f"guidance_width is {guidance_width}: it must be 0 (none) or a number from 4 on.")
    if dtype not in DTYPES:
        raise UserError(f"dtype is '{dtype}': it must be {' or '.join(DTYPES)}.")


def timestep_features(t: jax.Array, width: int) -> jax.Array:
    """Sinusoidal features of timesteps ``t`` [B] -> [B,width]: cosines first, lowest period 2 pi (diffusers' Timesteps
    with flip_sin_to_cos=True, downscale_freq_shift=0)."""
    half = width // 2
    angles = t.astype(jnp.float32)[:, None] * jnp.exp(-math.log(MAX_PERIOD) * jnp.arange(half) / half)
    features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(features, ((0, 0), (0, width % 2)))


def guidance_features(w: jax.Array, width: int) -> jax.Array:
    """Sinusoidal features of guidance weights ``w`` = CFG - 1 [B] -> [B,width]: sines first, of 1000 w, lowest period
    2 pi (latent consistency models' get_guidance_scale_embedding; Luo et al., arXiv 2310.04378)."""
    half = width // 2
    angles = 1000.0 * w.astype(jnp.float32)[:, None]
    angles = angles * jnp.exp(-math.log(MAX_PERIOD) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(features, ((0, 0), (0, width % 2)))


class TimestepEmbedding(nn.Module):
    """Two dense layers on the sinusoidal features: [B,F] -> [B,width]; those of a guidance weight, ``guidance`` [B,G],
    are added to them through a projection that starts at zero."""

    width: int

    @nn.compact
    def __call__(self, features: jax.Array, guidance: jax.Array | None = None) -> jax.Array:
        if guidance is not None:
            zeros = nn.initializers.zeros
            features = features + Dense(features.shape[-1], use_bias=False, init=zeros, name="cond_proj")(guidance)
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
