"""Inception-v3 as FID and the Inception Score use it: Google's network of 2015-12-05 (Szegedy et al., 1512.00567).

Numerically it is pytorch-fid's ``fid_inception_v3``, a port of the TensorFlow graph: average pools leave padding out
of the mean, and the last block pools by maximum. Module names are torchvision's ``Inception3``.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldmscale.errors import UserError
from ldmscale.models.layers import KERNEL_INIT, Dense, conv2d

IMAGE_SIZE = 299
FEATURES = 2048
CLASSES = 1008
BATCH_NORM_EPSILON = 1e-3


class BasicConv2d(nn.Module):
    """Convolution, batch norm with its running statistics, ReLU; zero padding keeps the size unless ``valid``.

    ``kernel`` [h,w,Cin,Cout]; ``scale``, ``bias``, ``mean``, ``var`` [Cout].
    """

    channels: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    valid: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        height, width = self.size
        kernel = self.param("kernel", KERNEL_INIT, (height, width, x.shape[-1], self.channels))
        scale, var = (self.param(name, nn.initializers.ones, (self.channels,)) for name in ("scale", "var"))
        bias, mean = (self.param(name, nn.initializers.zeros, (self.channels,)) for name in ("bias", "mean"))
        factor = scale * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
        kernel = kernel * factor
        padding = ((0, 0), (0, 0)) if self.valid else ((height // 2, height // 2), (width // 2, width // 2))
        if height == width:
            x = conv2d(x, kernel, self.stride, padding)
        else:
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return nn.relu(x + (bias - mean * factor))


def _tower(x: jax.Array, name: str, *layers: tuple) -> jax.Array:
    """Convolutions in a row, called ``name``_1, ``name``_2...; each is (channels, height, width)."""
    for i, (channels, *size) in enumerate(layers, start=1):
        x = BasicConv2d(channels, tuple(size), name=f"{name}_{i}")(x)
    return x


def _halved(x: jax.Array, channels: int, name: str) -> jax.Array:
    return BasicConv2d(channels, (3, 3), stride=2, valid=True, name=name)(x)


def _max_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2))


def _pool_branch(x: jax.Array, channels: int) -> jax.Array:
    pooled = nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
    return BasicConv2d(channels, name="branch_pool")(pooled)


class InceptionA(nn.Module):
    """Mixed_5b to 5d: [B,35,35,C] -> [B,35,35,224+pool_channels]."""

    pool_channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        branches = (
            BasicConv2d(64, name="branch1x1")(x),
            _tower(x, "branch5x5", (48, 1, 1), (64, 5, 5)),
            _tower(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
            _pool_branch(x, self.pool_channels),
        )
        return jnp.concatenate(branches, axis=-1)


class InceptionB(nn.Module):
    """Mixed_6a: [B,35,35,288] -> [B,17,17,768]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        double = _tower(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3))
        branches = (_halved(x, 384, "branch3x3"), _halved(double, 96, "branch3x3dbl_3"), _max_pool(x))
        return jnp.concatenate(branches, axis=-1)


class InceptionC(nn.Module):
    """Mixed_6b to 6e: [B,17,17,768] -> [B,17,17,768]; ``channels`` is the width inside the 7x7 towers."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.channels
        branches = (
            BasicConv2d(192, name="branch1x1")(x),
            _tower(x, "branch7x7", (c, 1, 1), (c, 1, 7), (192, 7, 1)),
            _tower(x, "branch7x7dbl", (c, 1, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7)),
            _pool_branch(x, 192),
        )
        return jnp.concatenate(branches, axis=-1)


class InceptionD(nn.Module):
    """Mixed_7a: [B,17,17,768] -> [B,8,8,1280]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = _tower(x, "branch3x3", (192, 1, 1))
        seven = _tower(x, "branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1))
        branches = (_halved(three, 320, "branch3x3_2"), _halved(seven, 192, "branch7x7x3_4"), _max_pool(x))
        return jnp.concatenate(branches, axis=-1)


class InceptionE(nn.Module):
    """Mixed_7b, 7c: [B,8,8,C] -> [B,8,8,2048]; with ``max_pool`` the pool branch takes maxima, as the graph's 7c."""

    max_pool: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def fork(x: jax.Array, name: str) -> list[jax.Array]:
            return [
                BasicConv2d(384, (1, 3), name=f"{name}a")(x),
                BasicConv2d(384, (3, 1), name=f"{name}b")(x),
            ]

        if self.max_pool:
            pool = BasicConv2d(192, name="branch_pool")(nn.max_pool(x, (3, 3), padding="SAME"))
        else:
            pool = _pool_branch(x, 192)
        branches = (
            BasicConv2d(320, name="branch1x1")(x),
            *fork(_tower(x, "branch3x3", (384, 1, 1)), "branch3x3_2"),
            *fork(_tower(x, "branch3x3dbl", (448, 1, 1), (384, 3, 3)), "branch3x3dbl_3"),
            pool,
        )
        return jnp.concatenate(branches, axis=-1)


class InceptionV3(nn.Module):
    """Images float32 [N,299,299,3] in [0,255] -> (pool3 features [N,2048], logits [N,1008]), in full float32.

    Whoever calls resizes: FID depends on how (Parmar et al., 2104.11222). The scaling is the TensorFlow graph's own,
    (x - 128) / 128, as in clean-fid with the TorchScript file and in torch-fidelity; pytorch-fid instead maps to
    2x/255 - 1. Raises UserError for images of another size.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        if images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
            raise UserError(f"Inception takes images [N,299,299,3], not {list(images.shape)}: resize them first.")
        # By default TPUs and recent GPUs multiply float32 with fewer bits; scores are compared to the third digit.
        with jax.default_matmul_precision("highest"):
            x = (images.astype(jnp.float32) - 128) / 128
            x = BasicConv2d(32, (3, 3), stride=2, valid=True, name="Conv2d_1a_3x3")(x)
            x = BasicConv2d(32, (3, 3), valid=True, name="Conv2d_2a_3x3")(x)
            x = BasicConv2d(64, (3, 3), name="Conv2d_2b_3x3")(x)
            x = BasicConv2d(80, name="Conv2d_3b_1x1")(_max_pool(x))
            x = BasicConv2d(192, (3, 3), valid=True, name="Conv2d_4a_3x3")(x)
            x = InceptionA(32, name="Mixed_5b")(_max_pool(x))
            x = InceptionA(64, name="Mixed_5c")(x)
            x = InceptionA(64, name="Mixed_5d")(x)
            x = InceptionB(name="Mixed_6a")(x)
            x = InceptionC(128, name="Mixed_6b")(x)
            x = InceptionC(160, name="Mixed_6c")(x)
            x = InceptionC(160, name="Mixed_6d")(x)
            x = InceptionC(192, name="Mixed_6e")(x)
            x = InceptionD(name="Mixed_7a")(x)
            x = InceptionE(name="Mixed_7b")(x)
            x = InceptionE(max_pool=True, name="Mixed_7c")(x)
            features = x.mean((1, 2))
            return features, Dense(CLASSES, name="fc")(features)


def class_probabilities(params: Any, features: jax.Array) -> jax.Array:
    """Pool3 features [N,2048] -> the probabilities [N,1008] that the Inception Score is computed from.

    Without the classifier's bias, by which they are not the softmax of the network's logits: the original code
    (Salimans et al., 1606.03498) multiplies by the weights alone. So do torch-fidelity ("logits_unbiased", its default
    for the score) and NVIDIA's metrics ("no_output_bias"); pytorch-fid has no Inception Score.
    """
    with jax.default_matmul_precision("highest"):
        return jax.nn.softmax(features @ params["fc"]["kernel"])
