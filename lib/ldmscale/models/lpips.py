"""LPIPS, the learned perceptual distance between images (Zhang et al., arXiv 1801.03924), version 0.1.

Numerically it is the ``lpips`` package with its calibrated linear weights; the features are torchvision's AlexNet
("alex", for evaluation) or VGG16 ("vgg", for training losses), whose parameter names are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldmscale.errors import UserError
from ldmscale.models.layers import Conv, Dense

# From [-1,1] to the ImageNet normalisation that the backbones were trained with.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
NORM_EPSILON = 1e-10


@dataclass(frozen=True)
class Backbone:
    """Convolutions (index in torchvision's ``features``, channels, kernel, stride, padding) by stages.

    Each is followed by a ReLU; a stage's last output is compared. ``pooled`` are the stages that a max pool of
    ``window`` and stride 2 precedes; images are at least ``smallest`` pixels high and wide.
    """

    stages: tuple[tuple[tuple[int, int, int, int, int], ...], ...]
    pooled: tuple[int, ...]
    window: int
    smallest: int


def _vgg_stage(channels: int, *indices: int) -> tuple[tuple[int, int, int, int, int], ...]:
    return tuple((i, channels, 3, 1, 1) for i in indices)


BACKBONES = {
    "alex": Backbone(
        stages=(
            ((0, 64, 11, 4, 2),),
            ((3, 192, 5, 1, 2),),
            ((6, 384, 3, 1, 1),),
            ((8, 256, 3, 1, 1),),
            ((10, 256, 3, 1, 1),),
        ),
        pooled=(1, 2),
        window=3,
        smallest=31,
    ),
    "vgg": Backbone(
        stages=(
            _vgg_stage(64, 0, 2),
            _vgg_stage(128, 5, 7),
            _vgg_stage(256, 10, 12, 14),
            _vgg_stage(512, 17, 19, 21),
            _vgg_stage(512, 24, 26, 28),
        ),
        pooled=(1, 2, 3, 4),
        window=2,
        smallest=16,
    ),
}


def _unit(x: jax.Array) -> jax.Array:
    return x / (jnp.sqrt(jnp.square(x).sum(-1, keepdims=True)) + NORM_EPSILON)


class LPIPS(nn.Module):
    """Two batches of images float32 [N,H,W,3] in [-1,1] -> distances [N], in full float32.

    ``net`` is "alex" or "vgg". Raises UserError for another, for batches of different shapes and for images that are
    too small for the backbone's pools.
    """

    net: str

    @nn.compact
    def __call__(self, images: jax.Array, others: jax.Array) -> jax.Array:
        if self.net not in BACKBONES:
            raise UserError(f"LPIPS has no backbone '{self.net}'; it has {', '.join(BACKBONES)}.")
        backbone = BACKBONES[self.net]
        if images.shape != others.shape:
            raise UserError(f"LPIPS compares images of one shape, not {images.shape} with {others.shape}.")
        if min(images.shape[1:3]) < backbone.smallest:
            raise UserError(
                f"images of {images.shape[1]}x{images.shape[2]} pixels are too small for LPIPS-{self.net}: "
                f"both sides must be {backbone.smallest} or more."
            )
        with jax.default_matmul_precision("highest"):  # as in :mod:`ldmscale.models.inception`
            x = (jnp.concatenate([images, others]) - jnp.array(SHIFT)) / jnp.array(SCALE)
            distance = jnp.zeros(len(images))
            for i, stage in enumerate(backbone.stages):
                if i in backbone.pooled:
                    x = nn.max_pool(x, (backbone.window, backbone.window), (2, 2))
                for index, channels, size, stride, pad in stage:
                    padding = ((pad, pad), (pad, pad))
                    x = nn.relu(Conv(channels, size, stride, padding, name=f"features_{index}")(x))
                one, other = jnp.split(_unit(x), 2)
                weighted = Dense(1, use_bias=False, name=f"lin{i}")(jnp.square(one - other))
                distance = distance + weighted.mean((1, 2, 3))
            return distance
