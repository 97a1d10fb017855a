"""Scaled dot-product attention (Vaswani et al., arXiv 1706.03762), with gradients of its own on the CPU.

Types, names and layouts as in :mod:`ldmscale.models.layers`.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldmscale.models.layers import Dense, backend


def attend(query: jax.Array, key: jax.Array, value: jax.Array, heads: int, mask: jax.Array | None = None) -> jax.Array:
    """Attention of ``query`` [B,T,C] over ``key``, ``value`` [B,S,C]; -> [B,T,C].

    ``heads`` splits C; ``mask`` [T,S], a constant, is added to the scores. [B,H,T,D] operands keep XLA on matrix
    products (the [B,T,H,D] form is about three times slower on the CPU).
    """
    return (_attend_cpu if backend() == "cpu" else _attend)(query, key, value, mask, heads)


def _split(x: jax.Array, heads: int) -> jax.Array:
    """[B,T,H*D] -> [B,H,T,D]"""
    batch, length, channels = x.shape
    return x.reshape(batch, length, heads, channels // heads).transpose(0, 2, 1, 3)


def _join(x: jax.Array) -> jax.Array:
    """[B,H,T,D] -> [B,T,H*D]"""
    batch, heads, length, depth = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * depth)


def _scaled(query: jax.Array, heads: int) -> jax.Array:
    return query * (query.shape[-1] // heads) ** -0.5


def _attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, heads: int) -> jax.Array:
    query, key, value = (_split(x, heads) for x in (_scaled(query, heads), key, value))
    scores = jnp.matmul(query, key.swapaxes(2, 3), preferred_element_type=jnp.float32)
    if mask is not None:
        scores = scores + mask
    return _join(jax.nn.softmax(scores, axis=-1).astype(value.dtype) @ value)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend_cpu(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, heads: int) -> jax.Array:
    """As :func:`_attend`, with fewer passes over the scores, each of which costs as much as a product with few channels
    a head, and quicker ones: scores are [B,H,S,T], so maxima over keys go along vectors; the sum of a query's
    exponentials is that of a row of ones beside the values, and divides what is weighted, not the weights; for the
    gradient it is the output that is summed, not the weights (Dao et al., arXiv 2205.14135, B.2)."""
    return _attended(query, key, value, mask, heads, 0)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, heads: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    # With one key more than there are the exponentials, which have another shape, do not take the scores' place in
    # memory: XLA's older emitters, which gradients are compiled with, vectorise no loop that writes where it reads.
    return _attended(query, key, value, mask, heads, 1)


def _attended(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, heads: int, more: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The output and what :func:`_backward` takes; the scores are computed of ``more`` keys than there are."""
    length = key.shape[1]
    query, value = (_split(x, heads).swapaxes(2, 3) for x in (_scaled(query, heads), value))
    key = _split(key, heads)
    padded = jnp.pad(key, ((0, 0), (0, 0), (0, more), (0, 0)))
    scores = jnp.matmul(padded, query, preferred_element_type=jnp.float32)[:, :, :length]
    if mask is not None:
        scores = scores + mask.T
    weights = jnp.exp(scores - scores.max(2, keepdims=True)).astype(value.dtype)
    values = jnp.concatenate([value, jnp.ones((*value.shape[:2], 1, length), value.dtype)], axis=2)
    summed = jnp.matmul(values, weights, preferred_element_type=jnp.float32)
    total = summed[:, :, -1:]
    out = (summed[:, :, :-1] / total).astype(value.dtype)
    return _join(out.swapaxes(2, 3)), (query, key, values, weights, total, out)


def _backward(heads: int, kept: tuple[jax.Array, ...], cotangent: jax.Array) -> tuple[jax.Array | None, ...]:
    query, key, values, weights, total, out = kept
    g = _split(cotangent, heads).swapaxes(2, 3) / total.astype(cotangent.dtype)
    mean = (g * out).sum(2, keepdims=True)
    scores = weights * (values.swapaxes(2, 3) @ jnp.concatenate([g, -mean], axis=2))
    dquery = _scaled(_join((key.swapaxes(2, 3) @ scores).swapaxes(2, 3)), heads)
    return dquery, _join(scores @ query.swapaxes(2, 3)), _join(weights @ g.swapaxes(2, 3)), None


_attend_cpu.defvjp(_forward, _backward)


class Attention(nn.Module):
    """Multi-head attention of x [B,T,C] over ``context`` [B,S,D] (itself when None); names as diffusers' Attention."""

    heads: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        source = x if context is None else context
        channels = x.shape[-1]
        query = Dense(channels, use_bias=self.use_bias, name="to_q")(x)
        key = Dense(channels, use_bias=self.use_bias, name="to_k")(source)
        value = Dense(channels, use_bias=self.use_bias, name="to_v")(source)
        return Dense(channels, name="to_out_0")(attend(query, key, value, self.heads))
