"""Precision, recall, density and coverage: fidelity and variety apart, from nearest neighbours among features.

A set of images covers the balls around its members, each as wide as the distance to the member's k-th nearest other.
Precision is the share of drawn images in some ball of a real one, recall the share of real images in some ball of a
drawn one (Kynkäänniemi et al., arXiv 1904.06991, k = 3). Density counts the balls of real images that a drawn one lies
in, over k, and coverage is the share of real images with a drawn one in their ball (Naeem et al., arXiv 2002.09797,
k = 5); the two do not widen with single outliers. All four as the latter's package prdc computes them: balls are open.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldmscale.errors import UserError

RECALL_K = 3
DENSITY_K = 5
BLOCK = 2**22  # distances that exist at once: 32 MB


@dataclass(frozen=True)
class Neighbours:
    """Of N drawn and M real images: ``precise`` bool [N], whether each drawn one is in a real one's ball; ``dense``
    [N], the balls that each is in, over k; ``recalled`` and ``covered`` bool [M]. The scores are their means."""

    precise: np.ndarray
    dense: np.ndarray
    recalled: np.ndarray
    covered: np.ndarray


class Neighbourhoods:
    """Real features [M,D] and the balls around them.

    Raises UserError for features that are not finite or not [M,D], for fewer than 6 (a ball needs its 5 neighbours),
    and for ones of which each is there so often that its ball is a point.
    """

    def __init__(self, features: np.ndarray):
        self.features = _checked(features, DENSITY_K + 1)
        self.radii = _radii(self.features, (RECALL_K, DENSITY_K))
        if not self.radii.any(axis=1).all():
            raise UserError(
                f"every real image's features are there {RECALL_K + 1} times or more: "
                "neighbourhoods need real images that differ."
            )

    def of(self, features: np.ndarray) -> Neighbours:
        """Where drawn images of features [N,D] lie. Raises UserError as above, for fewer than 4, and for another D."""
        x = _checked(features, RECALL_K + 1)
        if x.shape[1] != self.features.shape[1]:
            raise UserError(
                f"features have {x.shape[1]} dimensions and the real ones {self.features.shape[1]}; "
                "both must come from one feature extractor."
            )
        (own,) = _radii(x, (RECALL_K,))
        narrow, wide = self.radii
        precise, dense = np.zeros(len(x), bool), np.zeros(len(x))
        recalled, nearest = np.zeros(len(self.features), bool), np.full(len(self.features), np.inf)
        for rows in _blocks(len(x), len(self.features)):
            distances = _squared(x[rows], self.features)
            precise[rows] = (distances < narrow).any(axis=1)
            dense[rows] = (distances < wide).sum(axis=1) / DENSITY_K
            recalled |= (distances < own[rows, None]).any(axis=0)
            np.minimum(nearest, distances.min(axis=0), out=nearest)
        return Neighbours(precise, dense, recalled, nearest < wide)


def _radii(x: np.ndarray, neighbours: tuple[int, ...]) -> np.ndarray:
    """Squared distance of each of x [N,D] to its k-th nearest other, for each k of ``neighbours``: [K,N]."""
    found = np.empty((len(neighbours), len(x)))
    places = [k - 1 for k in neighbours]
    for rows in _blocks(len(x), len(x)):
        distances = _squared(x[rows], x)
        distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = np.inf
        found[:, rows] = np.partition(distances, places, axis=1)[:, places].T
    return found


def _squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances [N,M] of rows x [N,D] and y [M,D]; what rounding leaves of equal rows is 0."""
    lengths = np.einsum("nd,nd->n", x, x)[:, None] + np.einsum("md,md->m", y, y)
    distances = lengths - 2 * (x @ y.T)
    distances[distances <= x.shape[1] * np.finfo(np.float64).eps * lengths] = 0
    return distances


def _checked(features: np.ndarray, least: int) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < least or not np.isfinite(features).all():
        raise UserError(
            f"features have shape {list(features.shape)}; neighbourhoods need finite ones [N,D], N of at least {least}."
        )
    return features


def _blocks(count: int, beside: int) -> list[slice]:
    """Slices that cut ``count`` rows so that each has at most BLOCK distances to the ``beside`` others."""
    size = max(1, BLOCK // beside)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
