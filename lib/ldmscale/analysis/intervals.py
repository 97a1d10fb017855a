"""Intervals for the table's numbers, from bootstrap replicates that are paired over cells."""

from __future__ import annotations

import numpy as np

from ldmscale.metrics import bootstrap

LEVEL = 0.95


def centred(values: np.ndarray, reps: np.ndarray) -> np.ndarray:
    """Replicates moved to lie around the values: values [N], reps [N,R] -> [N,R] (see :func:`bootstrap.interval`)."""
    values, reps = np.asarray(values, np.float64), np.asarray(reps, np.float64)
    return values[:, None] + reps - reps.mean(axis=1, keepdims=True) if reps.shape[1] else reps


def interval(value: float, reps: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """:func:`bootstrap.interval`, or (NaN, NaN) where the table has no replicates."""
    if len(reps) < 2 or not np.isfinite(value):
        return float("nan"), float("nan")
    return bootstrap.interval(float(value), reps, level)
