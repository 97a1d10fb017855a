"""Tests of the paper's statements on distilled models."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd

from ldmscale.analysis.distilled import CODI, acceleration, best_setting, distilled_findings
from ldmscale.analysis.findings import (
    CANNOT_TELL,
    NAMES,
    NOT_SUPPORTED,
    SIGNS,
    SUPPORTED,
    Finding,
    Outcome,
    Run,
    Unclear,
    no_replicates,
)


def distilled(run: Run, metric: str, finding: str) -> Outcome:
    """The finding of :func:`distilled_findings` of that name, by ``metric``."""
    found = _findings(run, metric).get(finding)
    if found is None:
        raise Unclear("The run has no models distilled so.")
    name = NAMES[metric]
    numbers = [each._replace(label=each.label.replace("FID", name)) for each in found.numbers]
    return Outcome(found.verdict, numbers, found.note.replace("FID", name))


@lru_cache(maxsize=8)  # all findings come at once, one metric after the other
def _findings(run: Run, metric: str) -> dict[str, Finding]:
    return {found.id: found for found in distilled_findings(in_place_of_fid(run.scores, metric), run.experiments)}


def in_place_of_fid(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """``scores`` with another distance as its ``fid``, for tests that read that column."""
    if SIGNS[metric] > 0:
        raise ValueError(f"{metric} is no distance")
    return scores.assign(fid=scores[metric], fid_reps=scores.get(f"{metric}_reps"))


def codi_factor(run: Run, metric: str, experiment: str, factor: float, within: float) -> Outcome:
    """Whether every model's acceleration factor is about ``factor``: within ``within`` times of it.

    Supported if every model's interval lies there, not supported if one lies wholly beyond.
    """
    grid = run.rows(experiment)
    undistilled = best_setting(grid[grid["sampler"] == "ddim"], metric)
    found = acceleration(best_setting(run.of(CODI), metric), undistilled, metric=metric)
    if not found:
        raise Unclear("The run has no model both distilled, sampled in 4 steps, and undistilled.")
    least, most = factor / within, factor * within
    # Beyond the run a factor is known by a bound alone: at least 5 where it is more than 5, though how much none knows.
    lows = [one.most if np.isposinf(one.low) else one.low for one in found]
    highs = [one.least if np.isneginf(one.high) else one.high for one in found]
    inside = [low > least and high < most for low, high in zip(lows, highs, strict=True)]
    outside = [low > most or high < least for low, high in zip(lows, highs, strict=True)]
    verdict = NOT_SUPPORTED if any(outside) else SUPPORTED if all(inside) else CANNOT_TELL
    numbers = [one.number for one in found]
    note = (
        f"{'; '.join(map(str, found))}. About {factor:g} is {least:g} to {most:g}: {sum(inside)} of {len(found)} "
        f"models lie there with their interval, {sum(outside)} wholly beyond."
    )
    return Outcome(verdict, numbers, note + no_replicates(numbers))
