"""Vision transformers of DINO (Caron et al., arXiv 2104.14294) and DINOv2 (Oquab et al., arXiv 2304.07193).

Numerically they are timm's ``VisionTransformer``; parameter names are those of facebookresearch/dino and /dinov2, which
are timm's too, in the same way as in :mod:`ldmscale.models.layers`.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldmscale.errors import UserError
from ldmscale.models.attention import attend
from ldmscale.models.layers import Dense
from ldmscale.models.norms import LayerNorm

NORM_EPSILON = 1e-6
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ViTConfig:
    """Shape of the network; ``layer_scale``: residual branches have a learned factor per channel (DINOv2).

    Raises UserError if ``patch`` does not divide ``image_size`` or ``heads`` the width.
    """

    image_size: int
    patch: int
    width: int
    depth: int
    heads: int
    layer_scale: bool = False

    def __post_init__(self):
        if self.image_size % self.patch:
            raise UserError(f"vit patch: {self.patch} does not divide image_size: {self.image_size}.")
        if self.width % self.heads:
            raise UserError(f"vit heads: {self.heads} does not divide width: {self.width}.")

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch


# DreamBooth's subject fidelity takes the first, the Fréchet distance of Stein et al. (arXiv 2306.04675) the second.
DINO_S16 = ViTConfig(image_size=224, patch=16, width=384, depth=12, heads=6)
DINOV2_L14 = ViTConfig(image_size=224, patch=14, width=1024, depth=24, heads=16, layer_scale=True)


def imagenet_normalise(images: jax.Array | np.ndarray) -> jax.Array:
    """Images uint8 [N,H,W,3] -> float32, as the networks take them: ImageNet's mean 0 and deviation 1 per colour."""
    if images.dtype != np.uint8:
        raise UserError(f"images are {images.dtype}; ImageNet's normalisation takes uint8 [N,H,W,3].")
    return (jnp.asarray(images) / jnp.float32(255) - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)


class PatchEmbedding(nn.Module):
    """Images [N,S,S,3] -> one token per patch [N,(S/patch)^2,C]."""

    config: ViTConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        grid, patch = self.config.grid, self.config.patch
        x = images.reshape(-1, grid, patch, grid, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        return Dense(self.config.width, name="proj")(x.reshape(-1, grid * grid, patch * patch * 3))


class SelfAttention(nn.Module):
    """Multi-head self-attention of x [N,T,C], query, key and value in one projection."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        query, key, value = jnp.split(Dense(3 * x.shape[-1], name="qkv")(x), 3, axis=-1)
        return Dense(x.shape[-1], name="proj")(attend(query, key, value, self.heads))


class MLP(nn.Module):
    """[N,T,C] -> 4C -> [N,T,C] with the exact GELU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.gelu(Dense(4 * x.shape[-1], name="fc1")(x), approximate=False)
        return Dense(x.shape[-1], name="fc2")(hidden)


class LayerScale(nn.Module):
    """x times ``gamma`` [C]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("gamma", nn.initializers.constant(1e-5), (x.shape[-1],))


class Block(nn.Module):
    """Pre-norm transformer block on x [N,T,C]."""

    heads: int
    layer_scale: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        branches = (SelfAttention(self.heads, name="attn"), MLP(name="mlp"))
        for i, branch in enumerate(branches, start=1):
            h = branch(LayerNorm(epsilon=NORM_EPSILON, name=f"norm{i}")(x))
            x = x + (LayerScale(name=f"ls{i}")(h) if self.layer_scale else h)
        return x


class ViT(nn.Module):
    """Images float32 [N,S,S,3] from :func:`imagenet_normalise` -> class-token features [N,width], in full float32.

    Raises UserError for images of another size than the config's.
    """

    config: ViTConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        size, width = self.config.image_size, self.config.width
        if images.shape[1:] != (size, size, 3):
            raise UserError(f"this ViT takes images [N,{size},{size},3], not {list(images.shape)}: resize them first.")
        init = nn.initializers.normal(0.02)
        class_token = self.param("cls_token", init, (1, 1, width))
        positions = self.param("pos_embed", init, (1, 1 + self.config.grid**2, width))
        with jax.default_matmul_precision("highest"):  # as in :mod:`ldmscale.models.inception`
            x = PatchEmbedding(self.config, name="patch_embed")(images)
            x = jnp.concatenate([jnp.broadcast_to(class_token, (len(x), 1, width)), x], axis=1) + positions
            for i in range(self.config.depth):
                x = Block(self.config.heads, self.config.layer_scale, name=f"blocks_{i}")(x)
            return LayerNorm(epsilon=NORM_EPSILON, name="norm")(x[:, 0])
