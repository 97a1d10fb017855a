"""Fréchet distance between Gaussians fitted to features (FID: Heusel et al., arXiv 1706.08500, eq. 6).

    d^2 = |mu1 - mu2|^2 + tr(sigma1) + tr(sigma2) - 2 tr((sigma1 sigma2)^(1/2))

``frechet_distance`` is clean-fid's own code and the number to report; ``fast_frechet`` is the same quantity through
symmetric eigenvalues, for the bootstrap and wherever starting PyTorch costs more than the distance.
"""

from __future__ import annotations

import warnings

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
    """Squared Fréchet distance by ``cleanfid.fid.frechet_distance``; mu [D], sigma [D,D].

    Raises :class:`UserError` where the two Gaussians are not of one dimension.
    """
    _check(mu1, sigma1, mu2, sigma2)
    from ldmscale.metrics.torch_guard import guard_torchvision

    guard_torchvision()
    from cleanfid.fid import frechet_distance as cleanfid_frechet_distance
    from scipy.linalg import LinAlgWarning

    with warnings.catch_warnings():
        # Covariances of fewer samples than dimensions are singular, and clean-fid's call of sqrtm is deprecated.
        warnings.simplefilter("ignore", LinAlgWarning)
        warnings.filterwarnings("ignore", "The `disp` argument is deprecated", DeprecationWarning)
        return float(cleanfid_frechet_distance(mu1, sigma1, mu2, sigma2))


def fast_frechet(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Squared Fréchet distance; mu [D], sigma [D,D] symmetric positive semidefinite, of any rank.

    sigma1 sigma2 has the eigenvalues of the symmetric R sigma1 R with R = sigma2^(1/2), and these are >= 0.
    Raises :class:`UserError` where the two Gaussians are not of one dimension.
    """
    _check(mu1, sigma1, mu2, sigma2)
    root = matrix_root(sigma2)
    difference = np.asarray(mu1, np.float64) - mu2
    return float(difference @ difference + np.trace(sigma1) + np.trace(sigma2) - 2 * root_trace(root @ sigma1 @ root))


def matrix_root(sigma: np.ndarray) -> np.ndarray:
    """Symmetric square root, float64 [D,D], of a symmetric positive semidefinite sigma [D,D]."""
    values, vectors = np.linalg.eigh(np.asarray(sigma, np.float64))
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def root_trace(sigma: np.ndarray) -> float:
    """tr(sigma^(1/2)) of a symmetric positive semidefinite sigma [D,D]; eigenvalues below 0 are rounding."""
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(sigma), 0.0)).sum())


def _check(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> None:
    shapes = [np.shape(x) for x in (mu1, sigma1, mu2, sigma2)]
    if len(shapes[0]) != 1 or shapes != [shapes[0], shapes[0] * 2] * 2:
        raise UserError(
            f"mu1, sigma1, mu2, sigma2 have shapes {', '.join(str(list(s)) for s in shapes)}; "
            "they must be [D], [D,D], [D], [D,D] of one D (features of one extractor)."
        )
