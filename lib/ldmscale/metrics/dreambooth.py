"""DreamBooth's metrics (Ruiz et al., arXiv 2208.12242, section 4.1 and its supplement), from features made elsewhere.

With DINO ViT-S/16 features :func:`subject_similarity` is "DINO", with CLIP image embeddings "CLIP-I"; applied to images
that the finetuned network draws of the class alone it is "PRES", where lower is better. "CLIP-T" is
:func:`ldmscale.metrics.clip_score.clip_scores` of the images and their prompts without the identifier. "DIV" is
:func:`diversity` under LPIPS.

Each gives a value per image; the score is their mean, and :func:`per_prompt` of them is what a bootstrap over prompts
(:func:`ldmscale.metrics.bootstrap.mean_replicates`) resamples. Values of several subjects are laid end to end.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ldmscale.errors import UserError
from ldmscale.generation.encode import in_batches
from ldmscale.metrics.clip_score import unit_rows

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def subject_similarity(images: np.ndarray, real: np.ndarray, network: str) -> np.ndarray:
    """Mean cosine of each image's features [N,D] to all of the subject's real images' [R,D]: float64 [N], -1..1.

    network: what made the features, for messages. Raises UserError for features of other shapes, or none, or an image
    whose features are zero or not finite, naming it.
    """
    images, real = (
        unit_rows(images, f"{network} features of image"),
        unit_rows(real, f"{network} features of real image"),
    )
    if images.shape[1] != real.shape[1]:
        raise UserError(
            f"the images have {images.shape[1]} {network} features and the real images {real.shape[1]}; "
            "both must come from one network."
        )
    return images @ real.mean(axis=0)


def real_similarity(real: np.ndarray, network: str) -> np.ndarray:
    """Mean cosine of each real image's features [R,D] to those of the others: float64 [R], the ceiling of DINO, CLIP-I.

    Raises UserError as :func:`subject_similarity` does, and for fewer than 2 images.
    """
    real = unit_rows(real, f"{network} features of real image")
    if len(real) < 2:
        raise UserError("one real image has no others to be like; a subject needs at least 2.")
    return (real @ real.sum(axis=0) - 1) / (len(real) - 1)


def diversity(items: np.ndarray, distance: Distance, batch: int = 64) -> np.ndarray:
    """Mean distance among the K images of each prompt, items [P,K,...]: float64 [P].

    distance maps two arrays [B,...] of items to their distances [B], and is given ``batch`` pairs at a time: LPIPS of
    images, or :func:`cosine_distance` of features. It is taken to be symmetric: each pair is asked for once. Raises
    UserError for fewer than 2 images a prompt, and distances that are negative or not finite, naming the images.
    """
    items = np.asarray(items)
    prompts, count = items.shape[:2] if items.ndim > 2 else (0, 0)
    if prompts < 1 or count < 2:
        raise UserError(f"images have shape {list(items.shape)}; diversity needs [P,K,...] with at least 2 a prompt.")
    first, second = np.triu_indices(count, 1)
    one, other = (items[:, chosen].reshape(-1, *items.shape[2:]) for chosen in (first, second))
    found = np.asarray(in_batches(distance, batch, one, other), np.float64).reshape(prompts, len(first))
    bad = ~(np.isfinite(found) & (found >= -1e-6))  # rounding may leave equal features a little closer than equal
    if bad.any():
        prompt, pair = (int(i) for i in np.argwhere(bad)[0])
        raise UserError(
            f"the distance of images {first[pair]} and {second[pair]} of prompt {prompt} is {found[prompt, pair]}; "
            "a distance must be finite and not negative."
        )
    return found.mean(axis=1)


def cosine_distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 - cosine of features [N,D] and [N,D], row by row: float64 [N], 0..2; stands in where there is no LPIPS.

    Raises UserError for features of different shapes, or that are zero or not finite.
    """
    if np.shape(one) != np.shape(other):
        raise UserError(f"features have shapes {list(np.shape(one))} and {list(np.shape(other))}; they must be equal.")
    return 1 - np.einsum("nd,nd->n", unit_rows(one, "features of image"), unit_rows(other, "features of image"))


def per_prompt(values: np.ndarray, images_per_prompt: int) -> np.ndarray:
    """Means [P] of values [P*K], the K images of a prompt in succession.

    Raises UserError where the values are not a whole number of prompts.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or images_per_prompt < 1 or not len(values) or len(values) % images_per_prompt:
        raise UserError(f"values have shape {list(values.shape)}; they must be [P*{images_per_prompt}].")
    return values.reshape(-1, images_per_prompt).mean(axis=1)
