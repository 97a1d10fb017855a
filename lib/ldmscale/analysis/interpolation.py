"""How straight a model's images go from one prompt to another as the text states do (the paper's Fig. 24, measured)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ldmscale.analysis.intervals import LEVEL
from ldmscale.metrics.bootstrap import resample_counts

REPLICATES = 1000


@dataclass(frozen=True)
class Way:
    """One model's way from prompt B (alpha 0) to prompt A (alpha 1), means over its starting noises.

    ``alphas`` [K] descend; ``clip_a``, ``clip_b`` [K] are the CLIP similarities to the two prompts. With d = clip_a -
    clip_b, the progress p = (d - d(0)) / (d(1) - d(0)) of a straight way equals alpha; ``bend`` is the largest |p -
    alpha|, from ``low`` to ``high`` by paired bootstrap over noises. All three are NaN where the interval of d(1) -
    d(0) holds 0: the images do not tell the prompts apart, and the progress has no scale. ``reps``: the bend in each
    resample of the noises [R], the same for all ways of as many noises; R is 0 where there is no bend.
    """

    alphas: np.ndarray
    clip_a: np.ndarray
    clip_b: np.ndarray
    bend: float
    low: float
    high: float
    reps: np.ndarray = field(repr=False, compare=False)


def way(rows: pd.DataFrame) -> Way:
    """The way of one cell and pair, from its rows of the scores table (one an alpha, both ends among them)."""
    rows = rows.sort_values("alpha", ascending=False)
    alphas = rows["alpha"].to_numpy(float)
    to_a, to_b = (np.stack(rows[column].to_list()).astype(float) for column in ("clip_a", "clip_b"))
    difference = to_a - to_b  # [K,N]
    counts = resample_counts(difference.shape[1], REPLICATES, seed=0)
    means = difference @ counts.T / difference.shape[1]  # [K,REPLICATES]
    tail = 100 * (1 - LEVEL) / 2
    span = np.percentile(means[0] - means[-1], [tail, 100 - tail])
    if span[0] <= 0 <= span[1]:
        bend = low = high = float("nan")
        reps = np.empty(0)
    else:
        bend = float(_bend(difference.mean(1, keepdims=True), alphas)[0])
        reps = _bend(means, alphas)
        low, high = (float(x) for x in np.percentile(reps, [tail, 100 - tail]))
    return Way(alphas, to_a.mean(1), to_b.mean(1), bend, low, high, reps)


def _bend(difference: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """[K,R] -> [R]"""
    progress = (difference - difference[-1]) / (difference[0] - difference[-1])
    return np.abs(progress - alphas[:, None]).max(0)
