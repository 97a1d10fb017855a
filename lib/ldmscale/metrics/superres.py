"""Super-resolved images against their originals: FID, PSNR, SSIM, a perceptual distance and Inception score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.special import softmax, xlogy

from ldmscale.errors import UserError
from ldmscale.metrics.bootstrap import fid_replicates, mean_replicates, resample_counts
from ldmscale.metrics.dreambooth import Distance, cosine_distance
from ldmscale.metrics.features import Features
from ldmscale.metrics.finite import require_varied
from ldmscale.metrics.frechet import Reference
from ldmscale.metrics.image_quality import SSIM_WINDOW, inception_score, psnr_y, ssim_y
from ldmscale.metrics.perceptual import LPIPS_LABELS
from ldmscale.models.inception import class_probabilities
from ldmscale.models.inception_weights import load_inception
from ldmscale.tasks.clip import MAX_LOGIT_SCALE

SPLIT = "superres"
IS_SPLITS = 10
# An image that equals its original has an infinite PSNR and would make the mean one. Two pictures that differ by less
# than the rounding to whole grey levels (a mean squared error of 1/12) cannot be told apart, so PSNR ends there.
PSNR_CEILING = 10 * math.log10(12 * 255.0**2)  # 58.9 dB

# (FID features [N,D], CLIP embeddings [N,E]) -> class probabilities [N,K], rows of sum 1.
Classes = Callable[[np.ndarray, np.ndarray], np.ndarray]


def image_classes(
    inception: str | Path | None, logit_scale: float, captions: np.ndarray, clip_name: str
) -> tuple[Classes, str]:
    """What the Inception score tells apart, and its name: Inception's 1,008 classes, or the study's own captions.

    With ``inception``, the file that FID's features come from too, its classifier on these features. Without, CLIP's
    zero-shot classifier: softmax of the logit scale (CLIP's parameter, a logarithm) times the cosines of an image and
    of ``captions``, unit embeddings [K,E].

    Raises:
        UserError: ``inception`` is no readable Inception file, or there are fewer than two captions.
    """
    if inception:
        head = {"fc": jax.tree.map(np.asarray, load_inception(inception)["fc"])}
        return lambda features, _: np.asarray(class_probabilities(head, features)), "Inception-v3 classes"
    if len(captions) < 2:
        raise UserError(f"the Inception score has {len(captions)} captions for classes; it needs at least 2.")
    text = np.asarray(captions, np.float64)
    factor = min(math.exp(logit_scale), MAX_LOGIT_SCALE)
    label = f"{clip_name}, zero-shot over {len(text)} captions"
    return lambda _, embeddings: softmax(factor * (np.asarray(embeddings, np.float64) @ text.T), axis=1), label


@dataclass(frozen=True)
class SuperresScorer:
    """What every set of super-resolved images of a study is scored against.

    ``features`` maps uint8 [N,S,S,3] to (FID features [N,D], CLIP embeddings [N,E]) and ``label`` names the first;
    ``hr`` uint8 [N,S,S,3] are the originals and ``reference`` [N,D] their FID features; ``classes`` and
    ``class_label`` are what :func:`image_classes` gives; ``lpips`` holds the distances under "alex", "vgg", both or
    none (:func:`ldmscale.metrics.perceptual.lpips_distance`).
    """

    features: Features
    label: str
    hr: np.ndarray
    reference: np.ndarray
    classes: Classes
    class_label: str
    lpips: Mapping[str, Distance]
    replicates: int
    seed: int

    def __post_init__(self):
        if len(self.hr) != len(self.reference):
            raise UserError(f"{len(self.reference)} images have features, of {len(self.hr)} originals; all must have.")
        require_varied(self.reference, "FID features")
        object.__setattr__(self, "_real", Reference(self.reference))

    def row(self, images: np.ndarray) -> dict[str, Any]:
        """Scores of ``images`` uint8 [N,S,S,3], image i the restored original i, with their bootstrap replicates.

        The perceptual distance is the first there is of LPIPS with AlexNet, with VGG, and 1 - cosine of the FID
        features. None where there is no number: SSIM of images under 11 pixels, ``is10`` of fewer than 10 images.
        PSNR is at most PSNR_CEILING. Raises UserError for images of another shape than the originals'.
        """
        psnr = np.minimum(psnr_y(images, self.hr), PSNR_CEILING)
        ssim = ssim_y(images, self.hr) if min(images.shape[1:3]) >= SSIM_WINDOW else None
        features, embeddings = self.features(images)
        lpips = {net: distance(images, self.hr) for net, distance in self.lpips.items()}
        perceptual, kind = self._perceptual(lpips, features)
        classes = self.classes(features, embeddings)
        is10 = inception_score(classes, IS_SPLITS, self.seed) if len(images) >= IS_SPLITS else (None, None)
        return {
            "split": SPLIT,
            "n": len(images),
            "n_reference": len(self.reference),
            "fid": self._real.distance(features),
            "fid_features": self.label,
            "fid_reps": fid_replicates(features, self._real, self.replicates, self.seed).tolist(),
            **self._mean("psnr", psnr),
            **self._mean("ssim", ssim),
            **self._mean("perceptual", perceptual),
            "perceptual_features": kind,
            **{f"lpips_{net}": float(lpips[net].mean()) if net in lpips else None for net in LPIPS_LABELS},
            "is1": inception_score(classes, 1, self.seed)[0],
            "is10": is10[0],
            "is10_std": is10[1],
            "is_features": self.class_label,
            "is_reps": inception_replicates(classes, self.replicates, self.seed).tolist(),
        }

    def _perceptual(self, lpips: Mapping[str, np.ndarray], features: np.ndarray) -> tuple[np.ndarray, str]:
        for net, label in LPIPS_LABELS.items():
            if net in lpips:
                return lpips[net], label
        return cosine_distance(features, self.reference), f"{self.label}, 1 - cosine"

    def _mean(self, name: str, values: np.ndarray | None) -> dict[str, Any]:
        if values is None:
            return {name: None, f"{name}_reps": None}
        reps = mean_replicates(values, self.replicates, self.seed)
        return {name: float(values.mean()), f"{name}_reps": reps.tolist()}


def inception_replicates(probabilities: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """Bootstrap replicates, float64 [replicates], of the Inception score (one split) of probabilities [N,K].

    The resamples are those of :func:`ldmscale.metrics.bootstrap.resample_counts`. With weights w of sum 1 the score is
    exp(sum_i w_i p_i log p_i - q log q) with q = sum_i w_i p_i, products summed over classes.
    """
    p = np.asarray(probabilities, np.float64)
    weights = resample_counts(len(p), replicates, seed) / len(p)
    marginal = weights @ p
    return np.exp(weights @ xlogy(p, p).sum(axis=1) - xlogy(marginal, marginal).sum(axis=1))
