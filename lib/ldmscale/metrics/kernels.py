"""Maximum mean discrepancies of features to real ones: CMMD and KID (Gretton et al., JMLR 13, 2012).

CMMD (Jayasumana et al., arXiv 2401.09603) is the minimum-variance estimate (means over whole kernel matrices, the
diagonals too) of unit CLIP image embeddings under exp(-|x - y|^2 / 2 sigma^2) with sigma = 10, times 1000. Its authors'
program takes CLIP ViT-L/14 at 336 pixels and drops the images of a last, incomplete batch; here none is dropped, and
the CLIP is the study's.

KID (Binkowski et al., arXiv 1801.01401) is the unbiased estimate under (x y / D + 1)^3 of the features that FID is
measured in. Programs such as clean-fid average it over random subsets of 1,000 images, to save memory; here it is the
same estimate over all images, with no draw in it. Being unbiased it can be a little below 0.

Kernel matrices exist a block at a time, so 30,000 images against 30,000 take no more memory than 1,000.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ldmscale.errors import UserError
from ldmscale.metrics.clip_score import unit_rows

SIGMA = 10.0
CMMD_SCALE = 1000.0
BLOCK = 1024  # rows and columns of a kernel matrix that exist at once: 8 MB each, and three of them

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Discrepancy:
    """Squared maximum mean discrepancy to real features [M,D], of which what does not change is computed once.

    ``unbiased`` leaves out a kernel's diagonals, the products of images with themselves. Raises UserError for
    features that are not finite, not [M,D], or too few: unbiased, at least 2.
    """

    def __init__(self, real: np.ndarray, kernel: Kernel, unbiased: bool, scale: float = 1.0):
        self.kernel, self.unbiased, self.scale = kernel, unbiased, scale
        self.real = self._checked(real)
        self._among_real = self._among(self.real, np.ones((1, len(self.real))))[0]

    def __call__(self, features: np.ndarray) -> float:
        """The discrepancy of features [N,D]. Raises UserError as above, and for another D."""
        return float(self.of_resamples(features, np.ones((1, len(features))))[0])

    def of_resamples(self, features: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The discrepancies, float64 [R], of R resamples of features [N,D]: image i is in resample r counts[r,i] times.

        Rows of counts [R,N] sum to N (:func:`ldmscale.metrics.bootstrap.resample_counts`); a row of ones is the set
        itself. Exact: an image that is drawn twice counts as two images.
        """
        x, counts = self._checked(features), np.asarray(counts, np.float64)
        if x.shape[1] != self.real.shape[1]:
            raise UserError(
                f"features have {x.shape[1]} dimensions and the real ones {self.real.shape[1]}; "
                "both must come from one feature extractor."
            )
        across = sum(self.kernel(x, self.real[block]).sum(axis=1) for block in _blocks(len(self.real), len(x)))
        across = counts @ across / (len(x) * len(self.real))
        return self.scale * (self._among(x, counts) + self._among_real - 2 * across)

    def _among(self, x: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Mean kernel [R] among the images of each resample; the matrix is symmetric, so half of its blocks do."""
        total = np.zeros(len(counts))
        n = len(x)
        for rows in _blocks(n):
            for columns in _blocks(n):
                if columns.start < rows.start:
                    continue
                products = self.kernel(x[rows], x[columns])
                part = np.einsum("rn,rn->r", counts[:, rows] @ products, counts[:, columns])
                total += part if rows == columns else 2 * part
                if self.unbiased and rows == columns:
                    total -= counts[:, rows] @ np.diagonal(products)
        return total / (n * (n - 1) if self.unbiased else n * n)

    def _checked(self, features: np.ndarray) -> np.ndarray:
        features, least = np.asarray(features, np.float64), 2 if self.unbiased else 1
        if features.ndim != 2 or len(features) < least or not np.isfinite(features).all():
            raise UserError(
                f"features have shape {list(features.shape)}; "
                f"a discrepancy needs finite ones [N,D], N of at least {least}."
            )
        return features


class CMMD(Discrepancy):
    """CMMD to real CLIP image embeddings [M,E], which need not be of length 1.

    Raises UserError, naming the row, for an embedding that is zero or not finite.
    """

    def __init__(self, real: np.ndarray):
        super().__init__(real, gaussian, unbiased=False, scale=CMMD_SCALE)

    def _checked(self, features: np.ndarray) -> np.ndarray:
        return super()._checked(unit_rows(features, "CLIP embeddings of image"))


class KID(Discrepancy):
    """KID to real features [M,D]."""

    def __init__(self, real: np.ndarray):
        super().__init__(real, cubic, unbiased=True)


def gaussian(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """exp(-|x - y|^2 / 2 sigma^2), float64 [N,M], of unit rows x [N,E] and y [M,E]."""
    return np.exp((x @ y.T - 1) / SIGMA**2)


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x y / D + 1)^3, float64 [N,M], of rows x [N,D] and y [M,D]."""
    products = x @ y.T / x.shape[1] + 1
    return products * products * products


def _blocks(count: int, beside: int = BLOCK) -> list[slice]:
    """Slices that cut ``count`` into blocks of BLOCK, or of fewer where each has more than BLOCK ``beside`` it."""
    size = max(1, BLOCK * BLOCK // max(beside, BLOCK))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
