"""Cells of interpolation: how close their images are to either end of the way (the paper's appendix E, in numbers)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ldmscale.metrics.clip_score import clip_scores

FILE = "interpolation"


def interpolation_rows(embeddings: np.ndarray, ends: np.ndarray, alphas: list[float]) -> list[dict[str, Any]]:
    """One row a pair and alpha, with the CLIP similarity of each image to the prompts A and B.

    ``embeddings`` [P*A*N,E] are those of the images of P pairs, A alphas and N noises, in this order; ``ends``
    [P,2,E] those of the prompts. ``clip_a`` and ``clip_b`` of a row are float64 [N], image i from noise i throughout.
    """
    by_pair = embeddings.reshape(len(ends), len(alphas), -1, embeddings.shape[-1])
    rows = []
    for pair, (images, texts) in enumerate(zip(by_pair, ends, strict=True)):
        for alpha, mine in zip(alphas, images, strict=True):
            to_a, to_b = (clip_scores(mine, np.broadcast_to(text, mine.shape)).tolist() for text in texts)
            rows.append({"split": FILE, "n": len(mine), "pair": pair, "alpha": alpha, "clip_a": to_a, "clip_b": to_b})
    return rows
