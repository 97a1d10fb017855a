"""Images that a finetuned network drew of its subject → a row of :mod:`ldmscale.metrics.dreambooth`'s metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldmscale.errors import UserError
from ldmscale.generation.encode import in_batches
from ldmscale.metrics.clip_score import clip_scores
from ldmscale.metrics.dinov2 import resized
from ldmscale.metrics.dreambooth import (
    Distance,
    cosine_distance,
    diversity,
    per_prompt,
    real_similarity,
    subject_similarity,
)
from ldmscale.metrics.features import Features
from ldmscale.metrics.perceptual import LPIPS_LABELS
from ldmscale.models.vit import DINO_S16, ViT, imagenet_normalise
from ldmscale.models.vit_weights import load_vit
from ldmscale.training.sharding import spread

SPLIT = "dreambooth"
DINO_LABEL = "DINO ViT-S/16"
DINO_RESIZED = 256  # pixels of the shorter side, of which the centre is cropped


@dataclass(frozen=True)
class SubjectNetworks:
    """What images of subjects are compared with.

    ``features`` maps uint8 [N,S,S,3] to (FID features [N,D], CLIP embeddings [N,E]); ``label`` names the first,
    ``clip_label`` the network of the second. ``dino`` maps images to DINO's features (:func:`dino_features`) and
    ``lpips`` gives the distance of two arrays of them; the FID features stand in for either where it is None.
    """

    features: Features
    label: str
    clip_label: str
    dino: Callable[[np.ndarray], np.ndarray] | None = None
    lpips: Distance | None = None


def dreambooth_row(
    subject: str,
    images: np.ndarray,
    class_images: np.ndarray,
    real: np.ndarray,
    prompts: np.ndarray,
    networks: SubjectNetworks,
) -> dict[str, Any]:
    """Scores of ``images`` uint8 [P*K,S,S,3], the K images of each of P prompts in succession.

    ``class_images`` [M,S,S,3] were drawn of the subject's class alone, ``real`` [R,S,S,3] show the subject, ``prompts``
    [P,E] are CLIP's embeddings of the prompts without the identifier.

    ``dino``, ``clip_i``, ``clip_t``, ``div`` are lists over prompts, ``pres`` over class images; ``real_dino`` and
    ``real_clip_i`` are what the real images reach among themselves. Raises UserError where the images are no whole
    number of prompts, or fewer than 2 of one, and for fewer than 2 real images.
    """
    count, left = divmod(len(images), len(prompts)) if len(prompts) else (0, 1)
    if left or not count:
        raise UserError(
            f"subject {subject} has {len(images)} images of {len(prompts)} prompts; it must have as many of each."
        )
    everything = np.concatenate([images, class_images, real])
    ends = np.cumsum([len(images), len(class_images)])
    pooled, embeddings = networks.features(everything)
    if networks.dino is None:
        label, subject_features = networks.label, pooled
    else:
        label, subject_features = DINO_LABEL, networks.dino(everything)
    mine, of_class, of_real = np.split(subject_features, ends)
    clip, _, clip_real = np.split(embeddings, ends)
    if networks.lpips is None:
        items, distance, apart = pooled[: len(images)], cosine_distance, f"{networks.label}, 1 - cosine"
    else:
        items, distance, apart = images, networks.lpips, LPIPS_LABELS["alex"]
    fidelity = {
        "dino": subject_similarity(mine, of_real, label),
        "clip_i": subject_similarity(clip, clip_real, networks.clip_label),
        "clip_t": clip_scores(clip, np.repeat(prompts, count, axis=0)),
    }
    return {
        "split": SPLIT,
        "n": len(images),
        "subject": subject,
        "subject_features": label,
        "clip_features": networks.clip_label,
        "diversity_features": apart,
        **{name: per_prompt(values, count).tolist() for name, values in fidelity.items()},
        "div": diversity(items.reshape(len(prompts), count, *items.shape[1:]), distance).tolist(),
        "pres": subject_similarity(of_class, of_real, label).tolist(),
        "real_dino": float(real_similarity(of_real, label).mean()),
        "real_clip_i": float(real_similarity(clip_real, networks.clip_label).mean()),
    }


def dino_features(weights: str | Path, batch: int = 32) -> Callable[[np.ndarray], np.ndarray]:
    """Images uint8 [N,S,S,3] -> features [N,384] of DINO ViT-S/16, as DINO's own evaluation takes them.

    ``weights`` is ``dino_deitsmall16_pretrain.pth`` of facebookresearch, or timm's of the same network. Raises
    UserError where the file does not fit.
    """
    program = jax.jit(lambda params, pixels: ViT(DINO_S16).apply({"params": params}, imagenet_normalise(pixels)))
    network = spread(program, load_vit(weights, DINO_S16), batch)
    return lambda images: in_batches(lambda part: network(dino_pixels(part)), batch, images)


def dino_pixels(images: np.ndarray) -> np.ndarray:
    """Square images uint8 [N,S,S,3] -> uint8 [N,224,224,3]: resized to 256 (PIL's antialiased bicubic), then cropped.

    facebookresearch/dino's evaluations (eval_knn.py) do so.
    """
    if images.shape[1] != images.shape[2]:
        raise UserError(f"images are {images.shape[1]} pixels high and {images.shape[2]} wide; DINO needs square ones.")
    edge = (DINO_RESIZED - DINO_S16.image_size) // 2
    kept = slice(edge, edge + DINO_S16.image_size)
    return resized(images, DINO_RESIZED)[:, kept, kept]
