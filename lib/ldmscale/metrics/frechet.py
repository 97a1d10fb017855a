"""Fréchet distance between Gaussians fitted to features (FID: Heusel et al., arXiv 1706.08500, eq. 6).

    d^2 = |mu1 - mu2|^2 + tr(sigma1) + tr(sigma2) - 2 tr((sigma1 sigma2)^(1/2))

The number is clean-fid's (``cleanfid.fid.frechet_distance``; the tests hold it to a relative 1e-6, with singular
covariances and with fewer samples than dimensions too). It comes from symmetric eigenvalues instead of the square root
of a product that is not symmetric: with sigma2 = H H^T the last trace is that of (H^T sigma1 H)^(1/2), whose matrix is
no larger than sigma2's rank, and H is found once for all that is compared with one reference. PyTorch is not started.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ldmscale.errors import UserError


def gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean float64 [D] and unbiased covariance float64 [D,D] of features [N,D], as clean-fid computes them.

    The mean too is accumulated in float64 (clean-fid keeps the features' float32 there: a difference of rounding).
    Raises :class:`UserError` unless features are finite, two-dimensional and at least two.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise UserError(f"features have shape {list(features.shape)}; a Gaussian needs [N,D] with N of at least 2.")
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise UserError(f"features hold a value that is not finite (first in row {row}); every value must be finite.")
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Squared Fréchet distance; mu [D], sigma [D,D] symmetric positive semidefinite, of any rank.

    Raises :class:`UserError` where the two Gaussians are not of one dimension.
    """
    shapes = [np.shape(x) for x in (mu1, sigma1, mu2, sigma2)]
    if len(shapes[0]) != 1 or shapes != [shapes[0], shapes[0] * 2] * 2:
        raise UserError(
            f"mu1, sigma1, mu2, sigma2 have shapes {', '.join(str(list(s)) for s in shapes)}; "
            "they must be [D], [D,D], [D], [D,D] of one D (features of one extractor)."
        )
    half = half_root(sigma2)
    difference = np.asarray(mu1, np.float64) - mu2
    overlap = root_trace(half.T @ np.asarray(sigma1, np.float64) @ half)
    return float(difference @ difference + np.trace(sigma1) + np.trace(sigma2) - 2 * overlap)


def half_root(sigma: np.ndarray) -> np.ndarray:
    """H, float64 [D,K], with H H^T = sigma [D,D], symmetric positive semidefinite of numerical rank K."""
    values, vectors = np.linalg.eigh(np.asarray(sigma, np.float64))
    # What lies below is rounding (numpy.linalg.matrix_rank's bound): its square roots would add up to something.
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def root_trace(sigma: np.ndarray) -> float:
    """tr(sigma^(1/2)) of a symmetric positive semidefinite sigma; eigenvalues below 0 are rounding."""
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(sigma), 0.0)).sum()) if len(sigma) else 0.0


class Reference:
    """Real features [M,D] that sets of others are compared with: their Gaussian, and the half of its root."""

    def __init__(self, features: np.ndarray):
        self.count = len(features)
        self.mu, self.sigma = gaussian(features)

    @cached_property
    def half(self) -> np.ndarray:
        """:func:`half_root` of the covariance."""
        return half_root(self.sigma)

    def centred(self, features: np.ndarray) -> np.ndarray:
        """Features less the reference's mean, float64 [N,D].

        Raises :class:`UserError` for features that have no Gaussian (see :func:`gaussian`) or another D.
        """
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
            gaussian(features)
        if features.shape[1] != len(self.mu):
            raise UserError(
                f"features have {features.shape[1]} dimensions and the reference {len(self.mu)}; "
                "both must come from one feature extractor."
            )
        return features - self.mu

    def distance(self, features: np.ndarray) -> float:
        """Squared Fréchet distance of features [N,D] to the reference: FID. Raises as :meth:`centred`."""
        y = self.centred(features)
        mean, n = y.mean(axis=0), len(y)
        spread = y - mean
        z = spread @ self.half
        inner = z.T @ z if z.shape[1] <= n else z @ z.T  # both have the eigenvalues that count
        variance = float(np.einsum("nd,nd->", spread, spread)) / (n - 1)
        return float(mean @ mean + variance + np.trace(self.sigma) - 2 * root_trace(inner / (n - 1)))
