"""Reading the scores table: rows of an experiment, replicates, and the guidance weight chosen on the tuning split.

Guidance is chosen on tuning prompts and reported on held-out ones: the minimum of several noisy FIDs is biased low, and
a table that chose and reported on the same prompts would flatter whatever has most guidance weights to choose from.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from ldmscale.cells.cell import Cell
from ldmscale.errors import UserError

TUNING, HELDOUT = "tuning", "heldout"
# The sign of an improvement.
METRICS = {"fid": -1, "clip": +1, "cmmd": -1, "kid": -1, "fid_inf": -1, "precision": +1, "recall": +1, "density": +1,
           "coverage": +1, "fd_dino": -1}  # fmt: skip
METRIC_NAMES = {"fid": "FID", "clip": "CLIP score", "cmmd": "CMMD", "kid": "KID", "fid_inf": "FID-infinity",
                "precision": "precision", "recall": "recall", "density": "density", "coverage": "coverage",
                "fd_dino": "FD-DINOv2"}  # fmt: skip
SERIES = ["task", "model", "weights", "sampler"]
GROUP = [*SERIES, "steps"]


def select(scores: pd.DataFrame, cells: Iterable[Cell]) -> pd.DataFrame:
    """The rows (both splits) of ``cells``.

    Raises:
        UserError: the table lacks one of the cells, or holds one twice in a split.
    """
    wanted = list(dict.fromkeys(cell.path for cell in cells))
    rows = scores[scores["cell"].isin(wanted)]
    missing = set(wanted) - set(rows["cell"])
    if missing:
        raise UserError(
            f"the scores table has no row for {min(missing)} ({len(missing)} of {len(wanted)} cells missing): "
            "gather it again from the experiments of this config"
        )
    twice = rows.duplicated(["cell", "split"])
    if twice.any():
        raise UserError(f"the scores table holds {rows.loc[twice, 'cell'].iloc[0]} twice in one split")
    return rows


def heldout(rows: pd.DataFrame) -> pd.DataFrame:
    """The held-out rows, whose numbers are reported, smallest model first."""
    return rows[rows["split"] == HELDOUT].sort_values(["params", "model", "train_step", "steps", "cfg"])


def chosen_on_tuning(rows: pd.DataFrame, by: list[str], metric: str = "fid") -> pd.DataFrame:
    """For each group of ``by``, the held-out row of the cell whose ``metric`` is best on the tuning split.

    Ties go to the smaller cost, then the smaller guidance weight. The tuning value stands beside it as
    ``tuning_<metric>``. Groups come out sorted.

    Raises:
        UserError: the table lacks the metric, a group has no tuning row with a finite value, or the chosen cell has no
            held-out row.
    """
    check_metric(rows, metric)
    tuning = rows[(rows["split"] == TUNING) & np.isfinite(rows[metric].astype(float))].copy()
    held = rows[rows["split"] == HELDOUT]
    lost = held.loc[~_keys(held, by).isin(_keys(tuning, by)), "cell"]
    if len(lost):
        raise UserError(
            f"the scores table has no tuning-split {metric} for {lost.iloc[0]} or its siblings: score every cell on "
            "both splits"
        )
    tuning["_loss"] = -METRICS[metric] * tuning[metric].astype(float)
    best = tuning.sort_values([*by, "_loss", "cost", "cfg"]).drop_duplicates(by).set_index("cell")[metric]
    result = held[held["cell"].isin(best.index)]
    missing = best.index.difference(result["cell"])
    if len(missing):
        raise UserError(f"the scores table has no held-out row for {missing[0]}: score every cell on both splits")
    result = result.assign(**{f"tuning_{metric}": result["cell"].map(best)})
    return result.sort_values(["params", *by]).reset_index(drop=True)


def check_metric(rows: pd.DataFrame, metric: str) -> None:
    """Raise :class:`UserError` if ``metric`` is none of :data:`METRICS`, or the table has no column of it."""
    if metric not in METRICS:
        raise UserError(f"'{metric}' is not a metric: use one of {', '.join(METRICS)}")
    if metric not in rows:
        there = ", ".join(name for name in METRICS if name in rows)
        raise UserError(f"the scores table has no {metric} (it has {there}): score its cells with it")


def _keys(rows: pd.DataFrame, by: list[str]) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(rows[by])


def best_cfg(scores: pd.DataFrame, metric: str = "fid") -> pd.DataFrame:
    """One row per (task, model, weights, sampler, steps): the held-out row at the guidance weight best on tuning.

    Its interval is conditional on that choice.
    """
    return chosen_on_tuning(scores, GROUP, metric)


def optimal_cfg(scores: pd.DataFrame, metric: str = "fid") -> pd.DataFrame:
    """The tuning-best guidance weight as a matrix: rows are steps (ascending), columns models (ascending size).

    For one task, sampler and set of final weights; combinations that were not sampled are NaN.
    """
    best = best_cfg(scores, metric)
    order = list(dict.fromkeys(best.sort_values(["params", "model"])["model"]))
    return best.pivot(index="steps", columns="model", values="cfg")[order].sort_index()


def replicates(rows: pd.DataFrame, metric: str) -> np.ndarray:
    """Bootstrap replicates of ``metric``: float64 [len(rows), R]; replicate r is paired over rows.

    R is 0 where the table has none of the metric, or none of these rows.

    Raises:
        UserError: rows disagree in their number of replicates, so that they cannot be paired.
    """
    if f"{metric}_reps" not in rows:
        return np.empty((len(rows), 0))
    # A row without replicates holds None, or NaN where tables were joined.
    lists = [np.asarray([] if np.ndim(r) == 0 else r, np.float64) for r in rows[f"{metric}_reps"]]
    sizes = {len(r) for r in lists}
    if len(sizes) > 1:
        raise UserError(f"the scores table's {metric}_reps differ in length ({sorted(sizes)}): score all cells alike")
    return np.stack(lists) if lists else np.empty((0, 0))
