"""CLIP (Radford et al., arXiv 2103.00020): an image and a text encoder into one space.

Numerically it is transformers' ``CLIPModel`` (quick GELU, pre-norm, causal text); parameter names follow it in the same
way as in :mod:`ldmscale.models.layers`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldmscale.errors import UserError
from ldmscale.models.layers import Dense, LayerNorm, attend

INITIAL_TEMPERATURE = 0.07


@dataclass(frozen=True)
class CLIPConfig:
    """Shape of CLIP. Token ids: padding 0, start ``vocab_size - 2``, end ``vocab_size - 1``.

    Raises UserError if ``patch`` does not divide ``image_size`` or ``heads`` a width.
    """

    image_size: int
    patch: int
    image_width: int
    image_depth: int
    text_width: int
    text_depth: int
    heads: int
    vocab_size: int
    context_length: int
    embed_dim: int

    def __post_init__(self):
        if self.image_size % self.patch:
            raise UserError(f"clip patch: {self.patch} does not divide image_size: {self.image_size}.")
        for key in ("image_width", "text_width"):
            if getattr(self, key) % self.heads:
                raise UserError(f"clip heads: {self.heads} does not divide {key}: {getattr(self, key)}.")

    @property
    def end_token(self) -> int:
        """Id of the end-of-text token, where the text embedding is read."""
        return self.vocab_size - 1


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), CLIP's activation."""
    return x * nn.sigmoid(1.702 * x)


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases on x [B,T,C]; ``mask`` [T,T] is added to the scores."""

    heads: int
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        channels = x.shape[-1]
        # CLIP's initialisation: residual branches shrink with the depth of the network.
        init = nn.initializers.normal(channels**-0.5 * (2 * self.depth) ** -0.5)
        query, key, value = (Dense(channels, init=init, name=f"{n}_proj")(x) for n in "qkv")
        out_init = nn.initializers.normal(channels**-0.5)
        return Dense(channels, init=out_init, name="out_proj")(attend(query, key, value, self.heads, mask))


class MLP(nn.Module):
    """[B,T,C] -> 4C -> [B,T,C] with quick GELU."""

    depth: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        first = nn.initializers.normal((2 * channels) ** -0.5)
        second = nn.initializers.normal(channels**-0.5 * (2 * self.depth) ** -0.5)
        x = quick_gelu(Dense(4 * channels, init=first, name="fc1")(x))
        return Dense(channels, init=second, name="fc2")(x)


class EncoderLayer(nn.Module):
    heads: int
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        x = x + SelfAttention(self.heads, self.depth, name="self_attn")(LayerNorm(name="layer_norm1")(x), mask)
        return x + MLP(self.depth, name="mlp")(LayerNorm(name="layer_norm2")(x))


class Encoder(nn.Module):
    """``depth`` transformer layers on x [B,T,C]."""

    heads: int
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        for i in range(self.depth):
            x = EncoderLayer(self.heads, self.depth, name=f"layers_{i}")(x, mask)
        return x


class Table(nn.Module):
    """A learned table ``embedding`` [rows, width]."""

    rows: int
    width: int
    deviation: float

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("embedding", nn.initializers.normal(self.deviation), (self.rows, self.width))


class VisionEmbeddings(nn.Module):
    """Images [B,S,S,3] -> [B,1+(S/patch)^2,C]: a class token and one token per patch, with positions."""

    config: CLIPConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        patch, width = self.config.patch, self.config.image_width
        batch, side = images.shape[0], self.config.image_size // patch
        if images.shape[1:3] != (self.config.image_size, self.config.image_size):
            raise UserError(
                f"CLIP takes images of {self.config.image_size}x{self.config.image_size} pixels, "
                f"not {images.shape[1]}x{images.shape[2]}."
            )
        patches = images.reshape(batch, side, patch, side, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(batch, side * side, patch * patch * 3)
        # One row per (row, column, colour) of a patch: the flattened kernel of the published patch convolution.
        tokens = Dense(width, use_bias=False, init=nn.initializers.normal(0.02), name="patch_embedding")(patches)
        class_token = self.param("class_embedding", nn.initializers.normal(width**-0.5), (width,))
        tokens = jnp.concatenate([jnp.broadcast_to(class_token, (batch, 1, width)), tokens], axis=1)
        return tokens + Table(side * side + 1, width, 0.02, name="position_embedding")()


class VisionModel(nn.Module):
    """Images -> the class token's final state [B,C], layer-normalised."""

    config: CLIPConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = LayerNorm(name="pre_layrnorm")(VisionEmbeddings(self.config, name="embeddings")(images))
        x = Encoder(self.config.heads, self.config.image_depth, name="encoder")(x)
        return LayerNorm(name="post_layernorm")(x[:, 0])


class TextEmbeddings(nn.Module):
    """Tokens [B,L] int32 -> [B,L,C], with positions."""

    config: CLIPConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        table = Table(self.config.vocab_size, self.config.text_width, 0.02, name="token_embedding")()
        positions = Table(self.config.context_length, self.config.text_width, 0.01, name="position_embedding")()
        return table[tokens] + positions[: tokens.shape[1]]


class TextModel(nn.Module):
    """Tokens [B,L] -> states [B,L,C] after the final layer norm; a token sees itself and those before it."""

    config: CLIPConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        length = tokens.shape[1]
        mask = jnp.where(jnp.tril(jnp.ones((length, length), bool)), 0.0, jnp.finfo(jnp.float32).min)
        x = TextEmbeddings(self.config, name="embeddings")(tokens)
        x = Encoder(self.config.heads, self.config.text_depth, name="encoder")(x, mask)
        return LayerNorm(name="final_layer_norm")(x)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class CLIP(nn.Module):
    """Both encoders, their projections and the learned temperature. Images are in [-1,1], float32, square."""

    config: CLIPConfig

    def setup(self):
        config = self.config
        self.vision_model = VisionModel(config)
        self.text_model = TextModel(config)
        self.visual_projection = Dense(
            config.embed_dim, use_bias=False, init=nn.initializers.normal(config.image_width**-0.5)
        )
        self.text_projection = Dense(
            config.embed_dim, use_bias=False, init=nn.initializers.normal(config.text_width**-0.5)
        )
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(-math.log(INITIAL_TEMPERATURE)), ())

    def encode_image(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images [B,S,S,3] -> (features [B,image_width] before the projection, embedding [B,E] of unit norm)."""
        features = self.vision_model(images)
        return features, _unit(self.visual_projection(features))

    def encode_text(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Tokens [B,L] int32 -> (states [B,L,text_width], embedding [B,E] of unit norm, read at the end token)."""
        states = self.text_model(tokens)
        end = jnp.argmax(tokens == self.config.end_token, axis=-1)
        pooled = jnp.take_along_axis(states, end[:, None, None], axis=1)[:, 0]
        return states, _unit(self.text_projection(pooled))

    def __call__(self, images: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """-> (image embedding [B,E], text embedding [B,E], logit_scale []): the logits are logit_scale * I @ T.T,
        that is, logit_scale is the factor itself, the exponential of the parameter."""
        return self.encode_image(images)[1], self.encode_text(tokens)[1], jnp.exp(self.logit_scale)
