"""What to sample with under a budget: the best setting in the tidy table, the next best, and whether they differ.

A setting is a (task, model, weights, sampler) in the step count and at the guidance weight that do best on tuning
prompts within the budget; settings are ranked on tuning prompts too, and reported on held-out ones. The explorer
(:mod:`ldmscale.explorer`) makes the same choice in the reader's browser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ldmscale.analysis.frontier import COST_AXES, at_budgets, check_axis
from ldmscale.analysis.intervals import interval
from ldmscale.analysis.selection import HELDOUT, METRIC_NAMES, METRICS, SERIES, TUNING, check_metric, replicates
from ldmscale.cells.cell import ON_PROMPTS
from ldmscale.errors import UserError

ALIASES = {"norm_cost": "cost"}  # the design's name; the table's own column of that name is the cost of one step
WORSE, BETTER, UNSURE, UNKNOWN = "worse", "better", "unsure", "no interval"


@dataclass(frozen=True)
class Setting:
    """A setting under the budget, on held-out prompts.

    ``spent`` is what an image costs on the axis; ``low`` to ``high`` is the metric's 95% interval. ``difference`` is
    the metric minus that of the first of the list, with the paired interval ``difference_low`` to ``difference_high``
    (NaN without replicates), and ``verdict`` says whether it is real: "worse" or "better" beyond the interval,
    "unsure", "no interval"; empty for the first itself.
    """

    cell: str
    task: str
    model: str
    weights: str
    sampler: str
    steps: int
    cfg: float
    spent: float
    tuning: float
    value: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    verdict: str

    def json(self) -> dict[str, Any]:
        """The fields, NaN as None."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in vars(self).items()}

    def words(self, axis: str, metric: str) -> str:
        """The setting in three sentences; the explorer says the same."""
        sure = "" if math.isnan(self.low) else f" (95% interval {short(self.low)} to {short(self.high)})"
        return (
            f"{self.model} with weights {self.weights}, sampler {self.sampler}, {self.steps} steps, "
            f"CFG {short(self.cfg)}. On held-out prompts: {METRIC_NAMES[metric]} {short(self.value)}{sure}. "
            f"{COST_AXES[axis]}: {short(self.spent)}."
        )


def caveat(trainings: int = 1) -> str:
    """What an answer rests on, where every number is of so many ``trainings`` of each model."""
    seeds = ": training again from another seed may move more" if trainings < 2 else f", and over {trainings} trainings"
    return (
        "Settings are chosen and ranked on tuning prompts and reported on held-out ones. Intervals (95%, paired "
        f"bootstrap) are over prompts and starting noises{seeds}. With many settings compared, one in twenty looks "
        "different by luck."
    )


def short(value: float, digits: int = 4) -> str:
    """``value`` to ``digits`` significant digits, in exponent form (1.5e-5) beyond 0.0001 to 1,000,000."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{float(f'{value:.{digits}g}'):.10g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def competing(
    scores: pd.DataFrame,
    axis: str = "cost",
    metric: str = "fid",
    sampler: str | None = None,
    weights: str | None = None,
    tasks: Sequence[str] = ON_PROMPTS,
) -> pd.DataFrame:
    """The rows (both splits) of the cells that compete: those of ``tasks``, of the ``sampler`` and ``weights`` where
    given, with ``metric`` on both splits and a finite cost on ``axis``.

    Raises:
        UserError: the axis or metric is none, the table lacks it, or it has no cell of that kind.
    """
    check_axis(scores, axis)
    check_metric(scores, metric)
    rows = scores
    for column, wanted in (("task", tasks), ("sampler", [sampler]), ("weights", [weights])):
        there = rows[column].unique()
        if list(wanted) == [None]:
            continue
        if not set(wanted) & set(there):
            told = ", ".join(sorted(there)) or "none at all"
            raise UserError(f"the scores table has no {column} '{', '.join(wanted)}' to choose from: it has {told}")
        rows = rows[rows[column].isin(list(wanted))]
    twice = rows.duplicated(["cell", "split"])
    if twice.any():
        raise UserError(f"the scores table holds {rows.loc[twice, 'cell'].iloc[0]} twice in one split")
    rows = rows[rows["split"].isin([TUNING, HELDOUT]) & np.isfinite(rows[[axis, metric]].astype(float)).all(axis=1)]
    rows = rows[rows.groupby("cell")["split"].transform("size") == 2]
    if rows.empty:
        raise UserError(f"no cell to choose from has {METRIC_NAMES[metric]} on tuning and held-out prompts")
    return rows


def advise(
    scores: pd.DataFrame,
    budget: float,
    axis: str = "cost",
    metric: str = "fid",
    sampler: str | None = None,
    weights: str | None = None,
    tasks: Sequence[str] = ON_PROMPTS,
) -> list[Setting]:
    """The settings whose cost on ``axis`` is at or under ``budget``, best on tuning prompts first.

    Ties within a setting go as in :func:`ldmscale.analysis.selection.chosen_on_tuning`, between settings to the smaller
    model.

    Raises:
        UserError: as :func:`competing`, or nothing is within the budget; the sentence says what the cheapest is.
    """
    rows = competing(scores, axis, metric, sampler, weights, tasks)
    if not 0 < budget < math.inf:
        raise UserError(f"the budget is {budget:g}: it must be a positive number")
    frontier = at_budgets(rows, [budget], axis, metric)
    if frontier.empty:
        least = rows.sort_values([axis, "params", *SERIES], kind="stable").iloc[0]
        raise UserError(
            f"nothing in the table is within a budget of {short(budget)} on the axis {axis}: the cheapest is "
            f"{short(least[axis])}, {least['model']} with weights {least['weights']}, sampler {least['sampler']}, "
            f"{least['steps']} steps, CFG {short(least['cfg'])}"
        )
    loss = -METRICS[metric] * frontier[f"tuning_{metric}"]
    frontier = frontier.assign(_loss=loss).sort_values(["_loss", "params"], kind="stable")
    values, reps = frontier[metric].to_numpy(float), replicates(frontier, metric)
    settings = []
    for i, row in enumerate(frontier.to_dict("records")):
        low, high = interval(values[i], reps[i])
        difference = float(values[i] - values[0])
        ends = interval(difference, reps[i] - reps[0])
        settings.append(
            Setting(
                **{name: str(row[name]) for name in ("cell", "task", "model", "weights", "sampler")},
                steps=int(row["steps"]), cfg=float(row["cfg"]), spent=float(row[axis]),
                tuning=float(row[f"tuning_{metric}"]), value=float(values[i]), low=low, high=high,
                difference=difference, difference_low=ends[0], difference_high=ends[1],
                verdict=_verdict(*ends, METRICS[metric]) if i else "",
            )
        )  # fmt: skip
    return settings


def _verdict(low: float, high: float, sign: int) -> str:
    """Whether a difference of this interval is real, where ``sign`` is that of an improvement."""
    if math.isnan(low):
        return UNKNOWN
    if low <= 0 <= high:
        return UNSURE
    return BETTER if sign * low > 0 else WORSE
