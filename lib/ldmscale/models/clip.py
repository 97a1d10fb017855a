"""CLIP (Radford et al., arXiv 2103.00020): an image and a text encoder into one space; each also stands alone.

Numerically it is transformers' ``CLIPModel`` (pre-norm, causal text); parameter names follow it in the same way as in
:mod:`ldmscale.models.layers`. Published weights are read by :mod:`ldmscale.models.clip_weights`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ldmscale.config import published
from ldmscale.errors import UserError
from ldmscale.models.attention import attend
from ldmscale.models.layers import Dense
from ldmscale.models.norms import LayerNorm

INITIAL_TEMPERATURE = 0.07


# Of the images that the published networks were trained on (OpenAI's; OpenCLIP kept them).
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return x * nn.sigmoid(1.702 * x)


# By transformers' names; "gelu" is the exact one, of OpenCLIP's networks.
ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": partial(nn.gelu, approximate=False)}


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A transformer's shape: ``mlp`` is its MLP's inner width, 4 * ``width`` where None.

    Raises UserError if ``heads`` does not divide ``width`` or ``activation`` is none of ACTIVATIONS.
    """

    SIDE: ClassVar[str]

    width: int
    depth: int
    heads: int
    mlp: int | None = None
    activation: str = "quick_gelu"

    def __post_init__(self):
        if self.heads < 1 or self.width % self.heads:
            raise UserError(f"clip heads: {self.heads} does not divide {self.SIDE}_width: {self.width}.")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"clip activation: '{self.activation}' must be one of {', '.join(ACTIVATIONS)}.")

    @property
    def mlp_width(self) -> int:
        return 4 * self.width if self.mlp is None else self.mlp


@dataclass(frozen=True, kw_only=True)
class ImageTower(Tower):
    """A vision transformer over square images of ``image_size`` in square patches; both in pixels.

    Raises UserError if ``patch`` does not divide ``image_size``.
    """

    SIDE = "image"

    image_size: int
    patch: int

    def __post_init__(self):
        super().__post_init__()
        if self.image_size % self.patch:
            raise UserError(f"clip patch: {self.patch} does not divide image_size: {self.image_size}.")


@dataclass(frozen=True, kw_only=True)
class TextTower(Tower):
    """A causal transformer over at most ``context_length`` of ``vocab_size`` tokens, the last one ending a text.

    A ``depth`` below the published one makes the penultimate (or an earlier) layer the last, under the same final
    layer norm: Stable Diffusion 2's text encoder is OpenCLIP's ViT-H/14 without its 24th layer.
    """

    SIDE = "text"

    vocab_size: int = 49408
    context_length: int = 77

    @property
    def end_token(self) -> int:
        """Id of the end-of-text token, where the text embedding is read."""
        return self.vocab_size - 1


@dataclass(frozen=True)
class CLIPConfig:
    """Shape of CLIP: both towers (see :class:`ImageTower`, :class:`TextTower`) and the width of the shared space.

    ``heads`` holds for a tower without a number of its own (``image_heads``, ``text_heads``). ``pixels`` says what
    images it takes: "unit", in [-1,1] at its size, or "openai", what :func:`preprocess` makes of any. Token ids: start
    ``vocab_size - 2``, end ``vocab_size - 1``. Raises UserError for what the towers refuse, and without heads.
    """

    image_size: int
    patch: int
    image_width: int
    image_depth: int
    text_width: int
    text_depth: int
    vocab_size: int
    context_length: int
    embed_dim: int
    heads: int | None = None
    image_heads: int | None = None
    text_heads: int | None = None
    image_mlp: int | None = None
    text_mlp: int | None = None
    activation: str = "quick_gelu"
    pixels: str = "unit"

    def __post_init__(self):
        if self.heads is None and None in (self.image_heads, self.text_heads):
            raise UserError("clip needs heads, or image_heads and text_heads.")
        _ = self.image, self.text  # their checks

    @property
    def image(self) -> ImageTower:
        return ImageTower(
            image_size=self.image_size,
            patch=self.patch,
            width=self.image_width,
            depth=self.image_depth,
            heads=self.heads if self.image_heads is None else self.image_heads,
            mlp=self.image_mlp,
            activation=self.activation,
        )

    @property
    def text(self) -> TextTower:
        return TextTower(
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            width=self.text_width,
            depth=self.text_depth,
            heads=self.heads if self.text_heads is None else self.text_heads,
            mlp=self.text_mlp,
            activation=self.activation,
        )


PRESETS = {name: CLIPConfig(**shape) for name, shape in published.CLIPS.items()}
TEXT_ENCODERS = {name: TextTower(**shape) for name, shape in published.TEXT_ENCODERS.items()}


def preprocess(images: np.ndarray, image_size: int) -> np.ndarray:
    """What a published CLIP takes: uint8 [N,H,W,3] -> float32 [N,S,S,3] with S = ``image_size``.

    The shorter side is scaled to S with PIL's antialiased bicubic filter, the centre cropped and the colours
    standardised, as transformers' ``CLIPImageProcessor`` does. OpenAI's and OpenCLIP's own transforms are the same,
    but round half pixels where they crop: of an oblong image they may take the window one pixel further on.
    """
    height, width = images.shape[1:3]
    short = min(height, width)
    rows, columns = int(image_size * height / short), int(image_size * width / short)
    top, left = (rows - image_size) // 2, (columns - image_size) // 2
    scaled = [np.asarray(Image.fromarray(i).resize((columns, rows), Image.Resampling.BICUBIC)) for i in images]
    cropped = np.stack(scaled)[:, top : top + image_size, left : left + image_size].astype(np.float32)
    return (cropped / 255 - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_DEVIATION)


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
    """[B,T,C] -> the tower's MLP width -> [B,T,C]."""

    tower: Tower

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        first = nn.initializers.normal((2 * channels) ** -0.5)
        second = nn.initializers.normal(channels**-0.5 * (2 * self.tower.depth) ** -0.5)
        x = ACTIVATIONS[self.tower.activation](Dense(self.tower.mlp_width, init=first, name="fc1")(x))
        return Dense(channels, init=second, name="fc2")(x)


class EncoderLayer(nn.Module):
    tower: Tower

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        attention = SelfAttention(self.tower.heads, self.tower.depth, name="self_attn")
        x = x + attention(LayerNorm(name="layer_norm1")(x), mask)
        return x + MLP(self.tower, name="mlp")(LayerNorm(name="layer_norm2")(x))


class Encoder(nn.Module):
    """The tower's layers on x [B,T,C]."""

    tower: Tower

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        for i in range(self.tower.depth):
            x = EncoderLayer(self.tower, name=f"layers_{i}")(x, mask)
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

    tower: ImageTower

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        patch, width = self.tower.patch, self.tower.width
        batch, side = images.shape[0], self.tower.image_size // patch
        if images.shape[1:3] != (self.tower.image_size, self.tower.image_size):
            raise UserError(
                f"CLIP takes images of {self.tower.image_size}x{self.tower.image_size} pixels, "
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

    tower: ImageTower

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = LayerNorm(name="pre_layrnorm")(VisionEmbeddings(self.tower, name="embeddings")(images))
        x = Encoder(self.tower, name="encoder")(x)
        return LayerNorm(name="post_layernorm")(x[:, 0])


class TextEmbeddings(nn.Module):
    """Tokens [B,L] int32 -> [B,L,C], with positions."""

    tower: TextTower

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        if tokens.shape[1] > self.tower.context_length:
            raise UserError(f"CLIP takes texts of {self.tower.context_length} tokens, not {tokens.shape[1]}.")
        table = Table(self.tower.vocab_size, self.tower.width, 0.02, name="token_embedding")()
        positions = Table(self.tower.context_length, self.tower.width, 0.01, name="position_embedding")()
        return table[tokens] + positions[: tokens.shape[1]]


class TextModel(nn.Module):
    """Tokens [B,L] int32 -> states [B,L,C] after the final layer norm; a token sees itself and those before it.

    Alone it is the text encoder of a latent diffusion model.
    """

    tower: TextTower

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        length = tokens.shape[1]
        mask = jnp.where(jnp.tril(jnp.ones((length, length), bool)), 0.0, jnp.finfo(jnp.float32).min)
        x = TextEmbeddings(self.tower, name="embeddings")(tokens)
        x = Encoder(self.tower, name="encoder")(x, mask)
        return LayerNorm(name="final_layer_norm")(x)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class CLIP(nn.Module):
    """Both encoders, their projections and the learned temperature.

    Images are float32 and square: in [-1,1] for a network trained here, as :func:`preprocess` makes them for a
    published one. :meth:`encode_image` and :meth:`encode_text` need the parameters of their own side and
    ``logit_scale`` only.
    """

    config: CLIPConfig

    def setup(self):
        config = self.config
        self.vision_model = VisionModel(config.image)
        self.text_model = TextModel(config.text)
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
        end = jnp.argmax(tokens == self.config.text.end_token, axis=-1)
        pooled = jnp.take_along_axis(states, end[:, None, None], axis=1)[:, 0]
        return states, _unit(self.text_projection(pooled))

    def __call__(self, images: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """-> (image embedding [B,E], text embedding [B,E], logit_scale []): the logits are logit_scale * I @ T.T,
        that is, logit_scale is the factor itself, the exponential of the parameter."""
        return self.encode_image(images)[1], self.encode_text(tokens)[1], jnp.exp(self.logit_scale)
