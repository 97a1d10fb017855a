"""Which features FID is measured in: Inception's where its weights are given, the study's own CLIP's where not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ldmscale.generation.encode import Encoders
from ldmscale.metrics.inception import inception_features
from ldmscale.models.clip import CLIPConfig

INCEPTION_FEATURES = "Inception-v3 pool3 (clean-fid)"

Features = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def study_features(
    config: CLIPConfig, params: Any, clip_name: str, inception: str | None, batch: int = 64
) -> tuple[Features, str]:
    """uint8 [N,S,S,3] -> (FID features [N,D], CLIP embeddings [N,E]), and the name of the FID features.

    Raises:
        UserError: ``inception`` is no readable Inception file.
    """
    encoders = Encoders(clip=config, batch=batch)

    def features(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pooled, embedding = encoders.image_features(params, images)
        return (inception_features(images, inception, batch) if inception else pooled), embedding

    return features, INCEPTION_FEATURES if inception else f"{clip_name} image features"
