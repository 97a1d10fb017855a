"""Group and layer normalisation, with gradients of their own on the CPU.

Types, names and layouts as in :mod:`ldmscale.models.layers`.

XLA:CPU compiles every sum over an axis, and every small step between two of them, to a loop of its own, and where it
fuses a sum it computes again what is summed. Here sums are products with ones (:func:`~ldmscale.models.layers.
column_sums`), which have nothing to be compiled, and a gradient is written as few passes over the data: a training step
compiles sooner, and on large planes, such as the autoencoder's, the passes take half the time.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldmscale.models.layers import backend, column_sums, parameter, spread

LAYER_NORM_EPSILON = 1e-5
LARGE = 4096  # values of an image: without gradients, sums of fewer are quicker by XLA's loops than by products


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al., arXiv 1607.06450); ``scale``, ``bias`` [C]."""

    epsilon: float = LAYER_NORM_EPSILON

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = parameter(self, "scale", nn.initializers.ones, (x.shape[-1],))
        bias = parameter(self, "bias", nn.initializers.zeros, (x.shape[-1],))
        normalise = _layer_norm_cpu if backend() == "cpu" else _layer_norm
        return normalise(x.astype(jnp.float32), scale, bias, self.epsilon).astype(x.dtype)


class GroupNorm(nn.Module):
    """Group normalisation over (H, W, channels of the group) of x [B,H,W,C] (Wu & He, arXiv 1803.08494), and then SiLU
    with ``silu``; ``scale``, ``bias`` [C]."""

    groups: int
    epsilon: float
    silu: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = parameter(self, "scale", nn.initializers.ones, (x.shape[-1],))
        bias = parameter(self, "bias", nn.initializers.zeros, (x.shape[-1],))
        normalise = _group_norm_cpu if backend() == "cpu" else _group_norm
        return normalise(x.astype(jnp.float32), scale, bias, self.groups, self.epsilon, self.silu).astype(x.dtype)


def _layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
    return x * spread(scale, x.shape) + spread(bias, x.shape)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm_cpu(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    return _layer_norm(x, scale, bias, epsilon)  # without gradients there is less to compile, and this is quicker


def _weighed(x: jax.Array, weights: jax.Array) -> jax.Array:
    """The mean over C of ``x`` [...,C] times ``weights`` [C]: [...,1], of two equal columns of a product, for one would
    be a loop of XLA's."""
    columns = jnp.broadcast_to(weights[:, None] / x.shape[-1], (x.shape[-1], 2))
    return (x.reshape(-1, x.shape[-1]) @ columns)[:, :1].reshape(*x.shape[:-1], 1)


def _layer_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    ones = jnp.ones_like(scale)
    mean = _weighed(x, ones)
    rate = jax.lax.rsqrt(_weighed(jnp.square(x - mean), ones) + epsilon)
    return (x - mean) * rate * scale + bias, (x, scale, mean, rate)


def _layer_norm_backward(epsilon: float, kept: tuple[jax.Array, ...], g: jax.Array) -> tuple[jax.Array, ...]:
    x, scale, mean, rate = kept
    normal = (x - mean) * rate
    along = g * normal
    dx = rate * (g * scale - _weighed(g, scale) - normal * _weighed(along, scale))
    rows = -1, x.shape[-1]
    return dx, column_sums(along.reshape(rows)), column_sums(g.reshape(rows))


_layer_norm_cpu.defvjp(_layer_norm_forward, _layer_norm_backward)


def _group_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float, silu: bool) -> jax.Array:
    """Sums over pixels come first, so the passes over the data stay contiguous in the channels; what is per group
    happens on [B,C], and the normalisation itself is one multiply-add."""
    batch, height, width, channels = x.shape

    def group_mean(sums: jax.Array) -> jax.Array:
        per_group = sums.reshape(batch, groups, -1).mean(-1, keepdims=True) / (height * width)
        return jnp.broadcast_to(per_group, (batch, groups, channels // groups)).reshape(batch, channels)

    # One axis after the other: XLA:CPU makes a sum over 32 values or more a reduce-window, of both axes together.
    mean, square = group_mean(x.sum(1).sum(1)), group_mean(jnp.square(x).sum(1).sum(1))
    factor, shift = _affine(scale, bias, mean, square, epsilon)
    x = x * factor[:, None, None] + shift[:, None, None]
    return nn.silu(x) if silu else x


def _affine(
    scale: jax.Array, bias: jax.Array, mean: jax.Array, square: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """Factor and shift [B,C] that normalise, of the groups' means of x and of its square."""
    factor = scale * _rate(mean, square, epsilon)
    return factor, bias - mean * factor


def _rate(mean: jax.Array, square: jax.Array, epsilon: float) -> jax.Array:
    return jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + epsilon)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _group_norm_cpu(
    x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float, silu: bool
) -> jax.Array:
    if x[0].size < LARGE:
        return _group_norm(x, scale, bias, groups, epsilon, silu)
    return _group_norm_forward(x, scale, bias, groups, epsilon, silu)[0]


def _pixel_sums(x: jax.Array) -> jax.Array:
    """[B,H,W,C] -> [B,C]"""
    return column_sums(x.reshape(len(x), -1, x.shape[-1]))


def _group_means(sums: jax.Array, groups: int, pixels: int) -> jax.Array:
    """Means over each channel's group of what ``sums`` [B,C] adds up over ``pixels``: [B,C]."""
    channels = sums.shape[1]
    member = np.repeat(np.eye(groups, dtype=np.float32), channels // groups, axis=0)  # [C,groups]
    return (sums @ (member / (channels // groups * pixels))) @ member.T


def _group_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float, silu: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    pixels = x.shape[1] * x.shape[2]
    mean = _group_means(_pixel_sums(x), groups, pixels)
    square = _group_means(_pixel_sums(x * x), groups, pixels)
    factor, shift = _affine(scale, bias, mean, square, epsilon)
    y = x * factor[:, None, None] + shift[:, None, None]
    return nn.silu(y) if silu else y, (x, scale, bias, mean, square)


def _group_norm_backward(
    groups: int, epsilon: float, silu: bool, kept: tuple[jax.Array, ...], g: jax.Array
) -> tuple[jax.Array, ...]:
    x, scale, bias, mean, square = kept
    factor, shift = _affine(scale, bias, mean, square, epsilon)
    if silu:
        y = x * factor[:, None, None] + shift[:, None, None]
        opening = nn.sigmoid(y)
        g = g * (opening * (1 + y * (1 - opening)))
    rate = _rate(mean, square, epsilon)
    dbias = _pixel_sums(g)
    dscale = (_pixel_sums(g * x) - mean * dbias) * rate
    means = partial(_group_means, groups=groups, pixels=x.shape[1] * x.shape[2])
    slope = -rate * rate * means(scale * dscale)
    level = -rate * means(scale * dbias) - mean * slope
    dx = g * factor[:, None, None] + x * slope[:, None, None] + level[:, None, None]
    return dx, column_sums(dscale), column_sums(dbias)


_group_norm_cpu.defvjp(_group_norm_forward, _group_norm_backward)
