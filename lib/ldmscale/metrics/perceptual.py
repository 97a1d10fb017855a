"""LPIPS of images as they lie on disk."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from ldmscale.generation.encode import in_batches
from ldmscale.metrics.dreambooth import Distance
from ldmscale.models.lpips import LPIPS
from ldmscale.models.lpips_weights import load_lpips
from ldmscale.tasks.autoencoder import to_unit
from ldmscale.training.sharding import spread

LPIPS_LABELS = {"alex": "LPIPS AlexNet", "vgg": "LPIPS VGG"}


def lpips_distance(net: str, backbone: str | Path, linear: str | Path, batch: int = 16) -> Distance:
    """LPIPS, float64 [N], of two arrays of images uint8 [N,S,S,3], in batches of one compiled shape.

    ``net`` is a key of LPIPS_LABELS; the files are those of :func:`ldmscale.models.lpips_weights.load_lpips`. Raises
    UserError for files that do not fit, and, when called, for images too small for the network (31 pixels for "alex",
    16 for "vgg").
    """
    program = jax.jit(lambda params, one, other: LPIPS(net).apply({"params": params}, to_unit(one), to_unit(other)))
    network = spread(program, load_lpips(backbone, linear, net), batch)

    def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return in_batches(network, batch, one, other).astype(np.float64)

    return distance
