"""CLIP score: how well an image fits its caption (Hessel et al., arXiv 2104.08718)."""

from __future__ import annotations

import numpy as np

from ldmscale.errors import UserError


def clip_scores(image_embedding: np.ndarray, text_embedding: np.ndarray) -> np.ndarray:
    """Cosine similarity, float64 [N], of image embeddings [N,E] and their captions' embeddings [N,E].

    Plain cosines: not times 100 or 2.5, and negative ones are not set to 0. Raises :class:`UserError` where the shapes
    differ, or an embedding is zero or not finite.
    """
    image, text = np.asarray(image_embedding, np.float64), np.asarray(text_embedding, np.float64)
    if image.ndim != 2 or image.shape != text.shape:
        raise UserError(
            f"image embeddings have shape {list(image.shape)} and text embeddings {list(text.shape)}; "
            "they must both be [N,E], one caption per image."
        )
    norms = np.linalg.norm(image, axis=1) * np.linalg.norm(text, axis=1)
    if not np.all(np.isfinite(norms) & (norms > 0)):
        row = int(np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))[0])
        raise UserError(f"the image or text embedding of row {row} is zero or not finite; it has no direction.")
    return np.einsum("ne,ne->n", image, text) / norms


def unit_rows(features: np.ndarray, name: str) -> np.ndarray:
    """Features [N,D] as float64 rows of length 1.

    Raises UserError for another shape, no rows, and rows that are zero or not finite: "the <name> <row> are zero".
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not features.size:
        raise UserError(f"the {name}s have shape {list(features.shape)}; they must be [N,D] of at least one image.")
    norms = np.linalg.norm(features, axis=1)
    bad = ~(np.isfinite(norms) & (norms > 0))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        what = "zero" if norms[row] == 0 else "not finite"
        raise UserError(f"the {name} {row} are {what}; they have no direction.")
    return features / norms[:, None]
