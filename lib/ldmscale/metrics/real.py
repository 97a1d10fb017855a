"""Drawn images against real ones in every way that the tidy table tells: distances, and neighbours."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from ldmscale.metrics.bootstrap import fid_replicates, mean_replicates, resample_counts
from ldmscale.metrics.extrapolation import fid_infinity
from ldmscale.metrics.finite import require_varied
from ldmscale.metrics.frechet import Reference
from ldmscale.metrics.kernels import CMMD, KID, Discrepancy
from ldmscale.metrics.neighbours import DENSITY_K, RECALL_K, Neighbourhoods

NEIGHBOURS = ("precision", "recall", "density", "coverage")


def reference_files(split: str, dinov2: bool) -> list[str]:
    """Names of the arrays of a split's real images, in the order that :class:`Real` takes them."""
    return [f"{split}.npy", f"{split}_clip.npy", *([f"{split}_dinov2.npy"] if dinov2 else [])]


class Real:
    """The real images of a split: their FID features [M,D], CLIP embeddings [M,E], and DINOv2 features, if any.

    The real images are held fixed, also in the replicates: see :func:`ldmscale.metrics.bootstrap.fid_replicates`.
    Raises UserError where one of these is the same for all images.
    """

    def __init__(self, features: np.ndarray, embeddings: np.ndarray, dinov2: np.ndarray | None = None):
        self.features, self.embeddings, self.dinov2 = features, embeddings, dinov2
        for name, array in (("FID features", features), ("CLIP embeddings", embeddings), ("DINOv2 features", dinov2)):
            if array is not None:
                require_varied(array, name)

    # Each is found once, and only where a cell asks for it: among 30,000 images that takes minutes.
    fid = cached_property(lambda self: Reference(self.features))
    kid = cached_property(lambda self: KID(self.features))
    cmmd = cached_property(lambda self: CMMD(self.embeddings))
    fd_dino = cached_property(lambda self: Reference(self.dinov2))
    neighbourhoods = cached_property(lambda self: Neighbourhoods(self.features))

    def distances(self, features: np.ndarray, embeddings: np.ndarray, dinov2: np.ndarray | None,
                  replicates: int, seed: int) -> dict[str, Any]:  # fmt: skip
        """``fid``, ``kid``, ``cmmd``, and with DINOv2 ``fd_dino``, each with its bootstrap replicates; ``fid_inf``.

        Row j of features [N,D], embeddings [N,E] and dinov2 is prompt j's image. ``fid_inf`` is None of fewer than 4.
        """
        row = {
            **_frechet("fid", self.fid, features, replicates, seed),
            "fid_inf": fid_infinity(features, self.fid, seed) if len(features) >= 4 else None,
            **_discrepancy("kid", self.kid, features, replicates, seed),
            **_discrepancy("cmmd", self.cmmd, embeddings, replicates, seed),
        }
        return row | ({} if self.dinov2 is None else _frechet("fd_dino", self.fd_dino, dinov2, replicates, seed))

    def neighbours(self, features: np.ndarray, replicates: int, seed: int) -> dict[str, Any]:
        """``precision``, ``recall``, ``density`` and ``coverage`` of features [N,D], and the replicates of two.

        Precision and density are means over drawn images, which a bootstrap resamples. The others are shares of the
        real images, of which it would find fewer in any resample for the drawn ones that it leaves out: they have no
        replicates. All are None of fewer than 6 real images or 4 drawn ones, which have no neighbourhoods.
        """
        if len(self.features) <= DENSITY_K or len(features) <= RECALL_K:
            return dict.fromkeys((*NEIGHBOURS, "precision_reps", "density_reps"))
        found = self.neighbourhoods.of(features)
        values = (found.precise, found.recalled, found.dense, found.covered)
        means = {name: float(value.mean()) for name, value in zip(NEIGHBOURS, values, strict=True)}
        return means | {
            f"{name}_reps": mean_replicates(value, replicates, seed).tolist()
            for name, value in (("precision", found.precise), ("density", found.dense))
        }


def _frechet(name: str, real: Reference, features: np.ndarray, replicates: int, seed: int) -> dict[str, Any]:
    reps = fid_replicates(features, real, replicates, seed)
    return {name: real.distance(features), f"{name}_reps": reps.tolist()}


def _discrepancy(name: str, real: Discrepancy, features: np.ndarray, replicates: int, seed: int) -> dict[str, Any]:
    n = len(features)
    point, *reps = real.of_resamples(features, np.vstack([np.ones((1, n)), resample_counts(n, replicates, seed)]))
    return {name: float(point), f"{name}_reps": [float(rep) for rep in reps]}
