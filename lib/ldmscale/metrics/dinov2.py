"""DINOv2 features, whose Fréchet distance is FD-DINOv2 (Stein et al., arXiv 2306.04675)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from ldmscale.generation.encode import in_batches
from ldmscale.models.vit import ViT, imagenet_normalise
from ldmscale.models.vit_weights import load_dinov2
from ldmscale.training.sharding import spread

SIZES = {384: "S", 768: "B", 1024: "L"}


def dinov2_features(weights: str | Path, batch: int = 32) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """Images uint8 [N,S,S,3] -> class-token features float32 [N,width] of a DINOv2 ViT, and the network's name.

    As ``dgm-eval`` takes them: every image at 224 x 224 by PIL's antialiased bicubic, ImageNet's mean and deviation.
    ``weights`` is a file of :func:`ldmscale.models.vit_weights.load_dinov2`, which says what is wrong with others.
    """
    params, config = load_dinov2(weights)
    program = jax.jit(lambda params, pixels: ViT(config).apply({"params": params}, imagenet_normalise(pixels)))
    network = spread(program, params, batch)

    def features(images: np.ndarray) -> np.ndarray:
        return in_batches(lambda part: network(resized(part, config.image_size)), batch, images)

    return features, f"DINOv2 ViT-{SIZES.get(config.width, f'{config.width}-wide')}/{config.patch}"


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Images uint8 [N,H,W,3] -> uint8 [N,size,size,3] by PIL's antialiased bicubic."""
    shrunk = partial(Image.Image.resize, size=(size, size), resample=Image.Resampling.BICUBIC)
    return np.stack([np.asarray(shrunk(Image.fromarray(image))) for image in images])
