"""Fréchet distance between Gaussians fitted to features (FID: Heusel et al., arXiv 1706.08500, eq. 6).

    d^2 = |mu1 - mu2|^2 + tr(sigma1) + tr(sigma2) - 2 tr((sigma1 sigma2)^(1/2))

The number is clean-fid's (``cleanfid.fid.frechet_distance``; the tests hold it to a relative 1e-6, with singular
covariances and with fewer samples than dimensions too). It comes from symmetric eigenvalues instead of the square root
of a product that is not symmetric: with sigma = H H^T the last trace is that of (H2^T sigma1 H2)^(1/2). H comes from a
Cholesky factorisation, pivoted where sigma is singular, so that no matrix is larger than the smaller of the two ranks:
the square roots of the zeros beyond, which are rounding, would add up to something. PyTorch is not started.
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

    Raises :class:`UserError` where the two Gaussians are not of one dimension, or hold what is not finite.
    """
    shapes = [np.shape(x) for x in (mu1, sigma1, mu2, sigma2)]
    if len(shapes[0]) != 1 or shapes != [shapes[0], shapes[0] * 2] * 2:
        raise UserError(
            f"mu1, sigma1, mu2, sigma2 have shapes {', '.join(str(list(s)) for s in shapes)}; "
            "they must be [D], [D,D], [D], [D,D] of one D (features of one extractor)."
        )
    if not all(np.isfinite(x).all() for x in (mu1, sigma1, mu2, sigma2)):
        raise UserError("mu1, sigma1, mu2 or sigma2 holds a value that is not finite; every value must be finite.")
    sigma1, difference = np.asarray(sigma1, np.float64), np.asarray(mu1, np.float64) - mu2
    overlap = shared_root_trace(sigma1, half_root(sigma2))
    return float(difference @ difference + np.trace(sigma1) + np.trace(sigma2) - 2 * overlap)


def half_root(sigma: np.ndarray) -> np.ndarray:
    """H, float64 [D,K], with H H^T = sigma [D,D], symmetric positive semidefinite of numerical rank K.

    A lower triangle where sigma has full rank, and not square where it has not.
    """
    from scipy.linalg.lapack import dpotrf, dpstrf

    sigma = np.asarray(sigma, np.float64)
    floor = sigma.diagonal().max() * len(sigma) * np.finfo(np.float64).eps  # what a pivot of rounding may reach
    half, failed = dpotrf(sigma.T, lower=1)
    if not failed and (half.diagonal() ** 2).min() > floor:
        return half
    lower, pivots, rank, _ = dpstrf(sigma.T, tol=floor, lower=1)
    rank = min(rank, len(sigma) - 1)  # a pivot as small as rounding was found above, so there is an eigenvalue as small
    half = np.empty((len(sigma), rank))
    half[pivots - 1] = np.tril(lower)[:, :rank]
    return half


def shared_root_trace(sigma: np.ndarray, half: np.ndarray) -> float:
    """tr((sigma H H^T)^(1/2)) of sigma, float64 [D,D] positive semidefinite, and a :func:`half_root` [D,K]."""
    from scipy.linalg.lapack import dsygst

    own = half_root(sigma)
    if own.shape == half.shape == sigma.shape:  # both are triangles
        return root_trace(dsygst(sigma.T, half, itype=2, lower=1)[0])  # H^T sigma H, at a quarter of the work
    return product_root_trace(own.T @ half)


def product_root_trace(product: np.ndarray) -> float:
    """The sum of the singular values of ``product`` [N,K] = H1^T H2: tr((sigma1 sigma2)^(1/2))."""
    n, k = product.shape
    return root_trace(product.T @ product if k <= n else product @ product.T)


def root_trace(sigma: np.ndarray) -> np.ndarray:
    """tr(sigma^(1/2)), float64 [...], of symmetric positive semidefinite matrices [...,D,D], of which the lower
    triangles alone are read; eigenvalues below 0 are rounding."""
    return np.sqrt(np.maximum(np.linalg.eigvalsh(sigma), 0.0)).sum(axis=-1)


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
        if n > len(mean):
            overlap = shared_root_trace(spread.T @ spread / (n - 1), self.half)
        else:
            overlap = product_root_trace(spread @ self.half) / np.sqrt(n - 1)
        variance = float(np.einsum("nd,nd->", spread, spread)) / (n - 1)
        return float(mean @ mean + variance + np.trace(self.sigma) - 2 * overlap)
