"""FID-infinity: what FID would be of endlessly many drawn images (Chong and Forsyth, arXiv 1911.07023).

FID of N images is larger than that, by about a constant over N, and the constant differs between models. The value is
the intercept of the straight line through FID at 15 numbers of images, evenly spaced, against their inverses, by least
squares: ``dgm-eval``'s way (Stein et al., arXiv 2306.04675). Two things differ from it, for the sake of few images.
The least number is 5,000 as in Chong and Forsyth, but half of the images where those are fewer than 10,000 (dgm-eval:
a tenth): with fewer images than dimensions FID is no longer a line in 1/N. And at each number of images FID is the mean
over as many disjoint subsets as there are, where dgm-eval takes one. On simulated features of 64 dimensions, 192
images, this brings the error from -0.25 (+-0.08) to -0.04 (+-0.04), where FID's own is +0.57; of 55 images, fewer than
dimensions, from +0.7 to -0.6, where FID's own is +1.8, and that is as far as it can be trusted.

The reference is what it is, finite; its share of the bias is the same for all cells and stays. Like other estimates
that are free of a bias, this one can come out below 0.
"""

from __future__ import annotations

import numpy as np

from ldmscale.errors import UserError
from ldmscale.metrics.frechet import Reference

POINTS = 15
FEWEST = 5000


def fid_infinity(features: np.ndarray, reference: Reference, seed: int) -> float:
    """The value for features [N,D], which one shuffle from ``seed`` and N cuts into subsets: the same for all cells.

    It has no bootstrap replicates: they would take some 3,000 Fréchet distances a cell. Raises UserError for fewer
    than 4 images, and for features that ``reference`` does not take.
    """
    n = len(features)
    if n < 4:
        raise UserError(f"{n} images; FID-infinity needs at least 4, to cut them in halves that have a covariance.")
    shuffled = np.asarray(features)[np.random.default_rng(seed).permutation(n)]
    sizes = np.unique(np.linspace(min(FEWEST, n // 2), n, POINTS).astype(int))
    distances = [np.mean([reference.distance(part) for part in subsets(shuffled, size)]) for size in sizes]
    return float(np.polyfit(1 / sizes, distances, 1)[1])


def subsets(features: np.ndarray, size: int) -> list[np.ndarray]:
    """As many disjoint subsets of ``size`` successive rows as features [N,D] have."""
    return [features[start : start + size] for start in range(0, len(features) - size + 1, size)]
