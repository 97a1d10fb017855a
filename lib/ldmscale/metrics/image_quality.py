"""Fidelity of super-resolved images to the originals (PSNR, SSIM), and Inception score.

PSNR and SSIM are of the luma alone, as BasicSR and Real-ESRGAN evaluate: ITU-R BT.601's, for R, G, B in 0..255

    Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255

in 16..235 and not rounded, compared on a scale of 255. The whole image counts, no border is cut off.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import correlate1d
from scipy.special import rel_entr

from ldmscale.errors import UserError

LUMA = np.array([65.481, 128.553, 24.966]) / 255
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def luma(images: np.ndarray) -> np.ndarray:
    """BT.601 luma, float64 [...,H,W] in 16..235, of RGB images uint8 [...,H,W,3]."""
    return 16 + images.astype(np.float64) @ LUMA


def psnr_y(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of luma, dB, float64 [N], of images against reference, both uint8 [N,H,W,3].

    10 log10(255^2 / mean squared error); infinite where an image equals its reference. Raises UserError where the two
    are not such arrays of one shape.
    """
    _check_pairs(images, reference)
    errors = np.array([np.mean((luma(a) - luma(b)) ** 2) for a, b in zip(images, reference, strict=True)])
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / errors)


def ssim_y(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Structural similarity of luma (Wang et al., IEEE TIP 13(4), 2004, eq. 13), float64 [N] in -1..1.

    Window 11 x 11, Gaussian of sigma 1.5, where it lies inside the image; K1 = 0.01, K2 = 0.03, L = 255. images,
    reference: uint8 [N,H,W,3]; UserError where they are not of one shape, or H or W is below 11.
    """
    _check_pairs(images, reference)
    if min(np.shape(images)[1:3]) < SSIM_WINDOW:
        height, width = np.shape(images)[1:3]
        raise UserError(f"images are {height} pixels high and {width} wide; SSIM needs at least {SSIM_WINDOW} of both.")
    return np.array([_ssim(luma(a), luma(b)) for a, b in zip(images, reference, strict=True)])


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    mean_a, mean_b, aa, bb, ab = (_windowed(x) for x in (a, b, a * a, b * b, a * b))
    variance_a, variance_b, covariance = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
    similarity /= (mean_a**2 + mean_b**2 + C1) * (variance_a + variance_b + C2)
    return float(similarity.mean())


def _windowed(x: np.ndarray) -> np.ndarray:
    """Gaussian means of x [H,W] over all windows inside it, [H-10,W-10]."""
    half = SSIM_WINDOW // 2
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / SSIM_SIGMA) ** 2)
    weights /= weights.sum()
    means = correlate1d(correlate1d(x, weights, axis=0), weights, axis=1)
    return means[half:-half, half:-half]


def _check_pairs(images: np.ndarray, reference: np.ndarray) -> None:
    for name, x in (("images", images), ("reference images", reference)):
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] != 3 or not x.size:
            raise UserError(f"{name} are {x.dtype} {list(x.shape)}; PSNR and SSIM need uint8 [N,H,W,3].")
    if images.shape != reference.shape:
        raise UserError(
            f"images have shape {list(images.shape)} and their references {list(reference.shape)}; "
            "PSNR and SSIM compare pairs of one size."
        )


def inception_score(probabilities: np.ndarray, splits: int, seed: int) -> tuple[float, float]:
    """Inception score (Salimans et al., arXiv 1606.03498): (mean, standard deviation) over ``splits`` parts.

    A part's score is exp(mean_i KL(p_i || mean_j p_j)) over its rows of probabilities [N,K] (the classifier's
    softmax). Rows are shuffled by ``seed`` first, since the files' order goes by content. Small parts score low: with
    n rows none can exceed n, so compare at one N and one number of splits only.

    Raises UserError where rows are not probabilities, or ``splits`` is not between 1 and N.
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or not p.size:
        raise UserError(f"class probabilities have shape {list(p.shape)}; the Inception score needs [N,K].")
    if not (p >= 0).all() or np.abs(p.sum(axis=1) - 1).max() > 1e-3:  # NaN is not >= 0
        raise UserError("class probabilities are negative, not finite or do not sum to 1; give the softmax's output.")
    if not 1 <= splits <= len(p):
        raise UserError(f"splits is {splits}; it must lie between 1 and the number of images, {len(p)}.")
    parts = np.array_split(p[np.random.default_rng(seed).permutation(len(p))], splits)
    scores = [np.exp(rel_entr(part, part.mean(axis=0)).sum(axis=1).mean()) for part in parts]
    return float(np.mean(scores)), float(np.std(scores))
