"""Paired bootstrap over prompts: how far a score would move with other prompts (and their starting noises).

Replicate r is one resample of the prompt indices, drawn from a seed and the number of prompts alone. It is the same
for every cell, so the difference of two cells' replicates is a replicate of their difference, and the luck of the
prompts that both share cancels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ldmscale.errors import UserError
from ldmscale.metrics.frechet import Reference, root_trace
from ldmscale.runtime import in_threads

BLOCK = 2**18  # values, 2 MB: what replicates that are worked through together may take


@lru_cache(maxsize=2)  # every score of every cell asks for those of the same two splits
def resample_counts(n: int, replicates: int, seed: int) -> np.ndarray:
    """How often each of n prompts is drawn in each replicate, int64 [replicates, n], not to be written to; rows sum to
    n."""
    if n < 1 or replicates < 1:
        raise UserError(f"a bootstrap of {replicates} replicates over {n} prompts; both must be at least 1.")
    drawn = np.random.default_rng(seed).integers(n, size=(replicates, n))
    counts = np.stack([np.bincount(row, minlength=n) for row in drawn])
    counts.flags.writeable = False
    return counts


def mean_replicates(values: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """Bootstrap replicates, float64 [replicates], of the mean of values [N] (the CLIP score; value j is prompt j's)."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise UserError(f"values have shape {list(values.shape)}; a mean over prompts needs [N].")
    return resample_counts(len(values), replicates, seed) @ values / len(values)


def fid_replicates(features: np.ndarray, reference: Reference, replicates: int, seed: int) -> np.ndarray:
    """Bootstrap replicates, float64 [replicates], of the Fréchet distance of features [N,D] to ``reference``.

    Row j of features is prompt j's image. The reference is held fixed, also where it shows the same prompts: FID is
    defined against a reference set, all cells of a study share it, so its luck is common to them and would mostly
    cancel in differences; and its size need not be N. The intervals are therefore about other prompts against *this*
    reference.

    The covariance of a resample is one weighted by its counts w. With the reference's H (H H^T its covariance) a
    replicate is the eigenvalues of H^T S_w H; with fewer drawn rows than these have, those of the equally valued Gram
    matrix. Those that draw about as many different rows are worked through together, a few megabytes at a time, on the
    threads that the process has (:func:`ldmscale.runtime.in_threads`).

    Raises :class:`UserError` for features that have no Gaussian or another D (see :meth:`Reference.centred`).
    """
    y = reference.centred(features)
    n = len(y)
    counts = resample_counts(n, replicates, seed)
    means = counts @ y / n
    distance = np.einsum("rd,rd->r", means, means)
    variance = (counts @ np.einsum("nd,nd->n", y, y) - n * distance) / (n - 1)
    z = y @ reference.half
    gram = z @ z.T if _gram_is_smaller(n, z.shape[1]) else None
    overlap = np.empty(len(counts))

    def fill(those: np.ndarray) -> None:
        overlap[those] = root_trace(_products(z, gram, counts[those]))

    in_threads(fill, _alike(counts, None if gram is not None else z.shape[1]))
    return distance + variance + np.trace(reference.sigma) - 2 * overlap


def interval(point: float, replicates: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Centred bootstrap interval (low, high) around ``point`` at ``level``.

    A resample holds about 63 % of the distinct images, and FID grows as they get fewer: its replicates lie well above
    the point estimate, so their own percentiles may not even contain it. Only their spread is used: the percentiles of
    replicate - mean(replicates), added to the point. The bias of the point estimate itself (FID at finite N) stays.
    Where N is only a few times D the spread of FID replicates is too wide (on simulated Gaussian features by 1.4 to
    1.7 at N = 256, by 1.1 to 1.2 at N = 1024, D = 64), so such an interval errs on the cautious side.

    Raises :class:`UserError` for fewer than 2 replicates or a level outside 0..1.
    """
    replicates = np.asarray(replicates, np.float64)
    if replicates.ndim != 1 or len(replicates) < 2:
        raise UserError(f"replicates have shape {list(replicates.shape)}; an interval needs at least 2 of them.")
    if not 0 < level < 1:
        raise UserError(f"level is {level}; it must lie between 0 and 1, as 0.95.")
    tail = (1 - level) / 2
    low, high = np.quantile(replicates - replicates.mean(), (tail, 1 - tail))
    return float(point + low), float(point + high)


def paired_difference(
    point_a: float, replicates_a: np.ndarray, point_b: float, replicates_b: np.ndarray, level: float = 0.95
) -> tuple[float, float, float]:
    """Difference a - b of two cells' scores and its interval: (difference, low, high).

    The replicates must be of the same prompts, count and seed; :class:`UserError` where their number differs.
    """
    a, b = np.asarray(replicates_a, np.float64), np.asarray(replicates_b, np.float64)
    if a.shape != b.shape:
        raise UserError(f"{a.size} replicates against {b.size}; a paired difference needs the same number of both.")
    difference = float(point_a) - float(point_b)
    return difference, *interval(difference, a - b, level)


def _gram_is_smaller(n: int, d: int) -> bool:
    """Whether the drawn rows (a share 1 - 1/e of n) are fewer than the dimensions."""
    return (1 - np.exp(-1)) * n < d


def _alike(counts: np.ndarray, width: int | None) -> list[np.ndarray]:
    """The rows of ``counts`` [R,N] by how many different prompts they draw, cut where BLOCK is full of as many rows of
    ``width``, or (None) of their products with one another."""
    drawn = np.count_nonzero(counts, axis=1)
    most = int(drawn.max())
    at_once = max(1, BLOCK // (most * (width or most)))
    return np.split(np.argsort(drawn, kind="stable"), range(at_once, len(counts), at_once))


def _products(z: np.ndarray, gram: np.ndarray | None, counts: np.ndarray) -> np.ndarray:
    """H^T S_w H for rows z = y H [N,K] and each row w of counts [R,N], or (gram = z z^T given) matrices of the same
    eigenvalues, and further zeros: [R,K,K], or [R,M,M] where at most M different rows are drawn."""
    n, most = len(z), np.count_nonzero(counts, axis=1).max()
    drawn = np.argsort(counts == 0, axis=1, kind="stable")[:, :most]  # and, where it is fewer, some of weight 0
    w = np.take_along_axis(counts, drawn, 1).astype(np.float64)
    scale = np.sqrt(w / (n - 1))[:, :, None]
    if gram is None:
        rows = z[drawn]
        rows -= w[:, None] @ rows / n
        rows *= scale
        return rows.swapaxes(1, 2) @ rows
    inner = gram[drawn[:, :, None], drawn[:, None, :]]
    to_mean = inner @ w[:, :, None] / n  # products of each row with the weighted mean
    inner += w[:, None] @ to_mean / n - to_mean
    inner -= to_mean.swapaxes(1, 2)
    inner *= scale
    inner *= scale.swapaxes(1, 2)
    return inner
