"""Which model to use at a sampling budget: the best that each model and the whole family offer at or under a cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ldmscale.analysis.intervals import centred
from ldmscale.analysis.selection import HELDOUT, METRICS, SERIES, TUNING, check_metric, chosen_on_tuning, replicates
from ldmscale.errors import UserError

# The table's columns of cost, with axis labels: the paper's; the same counting guidance's second evaluation; everything
# that an image takes, in TFLOPs and as measured.
COST_AXES = {
    "cost": "Sampling cost",
    "nfe_cost": "Sampling cost, guidance counted",
    "sampling_tflops": "TFLOPs of a whole image",
    "seconds": "Seconds of a whole image",
}


def check_axis(rows: pd.DataFrame, axis: str) -> None:
    """Raise :class:`UserError` if ``axis`` is none of :data:`COST_AXES`, or the table has no column of it."""
    if axis not in COST_AXES:
        raise UserError(f"'{axis}' is not a cost axis: use one of {', '.join(COST_AXES)}")
    if axis not in rows:
        raise UserError(f"the scores table has no {axis}: gather it again")


def largest_model(rows: pd.DataFrame) -> str:
    """The model with the most parameters."""
    return str(rows.sort_values(["params", "model"])["model"].iloc[-1])


def default_budgets(rows: pd.DataFrame, axis: str = "cost") -> list[float]:
    """The costs at which the largest model was sampled, ascending: the budgets that it can spend in full.

    Below the first of them it cannot be sampled at all, so a smaller model's win there would be no finding.
    """
    largest = rows[rows["model"] == largest_model(rows)]
    return sorted({float(f"{value:.9g}") for value in largest[axis]})


def at_budgets(
    rows: pd.DataFrame, budgets: Sequence[float] | None = None, axis: str = "cost", metric: str = "fid"
) -> pd.DataFrame:
    """For each budget and model, the best cell whose ``axis`` is at or under the budget.

    Step count and guidance weight are chosen on the tuning split; the row is the held-out one, with columns ``budget``
    and ``tuning_<metric>`` added. A model that has no cell under a budget has no row there. Rows are sorted by budget,
    then model size.
    """
    check_axis(rows, axis)
    parts = []
    for budget in default_budgets(rows, axis) if budgets is None else sorted(budgets):
        affordable = rows[rows[axis] <= budget * (1 + 1e-6)]
        if (affordable["split"] == HELDOUT).any():
            parts.append(chosen_on_tuning(affordable, SERIES, metric).assign(budget=float(budget)))
    if not parts:
        return rows.iloc[:0].assign(**{f"tuning_{metric}": np.nan, "budget": np.nan})
    return pd.concat(parts, ignore_index=True)


def winners(frontier: pd.DataFrame, metric: str = "fid") -> pd.DataFrame:
    """The best model at each budget of :func:`at_budgets`, chosen on the tuning split: one held-out row per budget."""
    loss = -METRICS[metric] * frontier[f"tuning_{metric}"]
    order = frontier.assign(_loss=loss).sort_values(["budget", "_loss", "params"])
    return order.drop_duplicates("budget").drop(columns="_loss").reset_index(drop=True)


def envelope(rows: pd.DataFrame, axis: str = "cost", metric: str = "fid") -> pd.DataFrame:
    """The tuning rows, by ascending ``axis``, that beat everything cheaper: the best choice from each one's cost on."""
    check_axis(rows, axis)
    check_metric(rows, metric)
    tuning = rows[(rows["split"] == TUNING) & np.isfinite(rows[metric].astype(float))]
    tuning = tuning.assign(_loss=-METRICS[metric] * tuning[metric].astype(float))
    tuning = tuning.sort_values([axis, "_loss", "params"]).drop_duplicates(axis)
    improves = tuning["_loss"] < tuning["_loss"].cummin().shift(fill_value=np.inf)
    return tuning[improves].drop(columns="_loss").reset_index(drop=True)


def crossover(frontier: pd.DataFrame, metric: str = "fid") -> tuple[float, np.ndarray]:
    """The budget from which the largest model is the best on held-out prompts, at that and every greater budget.

    Returns the point value and its bootstrap replicates [R] (cells' replicates centred on their point values);
    infinity where the largest model is not the best at the greatest budget either.
    """
    largest = largest_model(frontier)
    budgets = np.array(sorted(frontier["budget"].unique()))
    values = frontier[metric].to_numpy(np.float64)
    table = -METRICS[metric] * np.column_stack([values, centred(values, replicates(frontier, metric))])
    wins = np.zeros((len(budgets), table.shape[1]), bool)
    for i, budget in enumerate(budgets):
        here = (frontier["budget"] == budget).to_numpy()
        mine = here & (frontier["model"] == largest).to_numpy()
        if mine.any():
            wins[i] = table[mine][0] <= table[here].min(axis=0)
    from_here = np.logical_and.accumulate(wins[::-1], axis=0)[::-1]  # wins at this budget and all greater ones
    first = np.where(from_here.any(axis=0), budgets[from_here.argmax(axis=0)], np.inf)
    return float(first[0]), first[1:]
