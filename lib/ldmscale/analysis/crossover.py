"""Where the next larger model starts to win: the cost at which two models' curves cross, with intervals.

A model's curve is the best that it offers at or under each cost, chosen on tuning prompts and valued on held-out ones,
interpolated linearly in log cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ldmscale.analysis.frontier import COST_AXES
from ldmscale.analysis.intervals import centred
from ldmscale.analysis.power_law import TAILS
from ldmscale.analysis.selection import HELDOUT, METRICS, TUNING, replicates

COLUMNS = ["sampler", "metric", "axis", "smaller", "larger", "crossover", "low", "high", "beyond", "least", "most"]


def crossing(
    smaller: tuple[np.ndarray, np.ndarray], larger: tuple[np.ndarray, np.ndarray], extend: bool
) -> tuple[float, float, float]:
    """The cost from which ``larger`` beats ``smaller`` at that and every greater cost -> (cost, least, most).

    Each is (costs, losses), costs ascending, a smaller loss better. They are compared from ``least``, which both can
    spend, to ``most``: with ``extend`` the greatest cost measured (a cost too great for a curve is spent on its last
    point), without it the last that both were measured at. The cost is -inf where ``larger`` wins from ``least`` on,
    inf where it does not at ``most``, NaN where there is nothing to compare.
    """
    (cost_s, loss_s), (cost_l, loss_l) = smaller, larger
    least = max(cost_s[0], cost_l[0])
    most = (max if extend else min)(cost_s[-1], cost_l[-1])
    if least > most:
        return float("nan"), float(least), float(most)
    knots = np.unique(np.concatenate([cost_s, cost_l, [least, most]]))
    knots = np.log(knots[(knots >= least) & (knots <= most)])
    gap = np.interp(knots, np.log(cost_l), loss_l) - np.interp(knots, np.log(cost_s), loss_s)
    behind = np.flatnonzero(gap >= 0)
    if not len(behind):
        where = -np.inf
    elif (i := behind[-1]) == len(knots) - 1:
        where = np.inf
    else:
        where = np.exp(knots[i] + (knots[i + 1] - knots[i]) * gap[i] / (gap[i] - gap[i + 1]))
    return float(where), float(least), float(most)


def frontier(cost: np.ndarray, choice: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(costs, losses) of the points [N] whose ``choice`` beats everything of a smaller or equal cost."""
    order = np.lexsort((choice, cost))
    choice = choice[order]
    best = np.r_[True, choice[1:] < np.minimum.accumulate(choice)[:-1]]
    return cost[order][best], loss[order][best]


def sampling_crossovers(rows: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """One row a (sampler, metric, cost axis, pair of models of neighbouring size): :data:`COLUMNS`.

    ``rows`` hold both splits of the models' last weights. ``crossover`` is :func:`crossing`'s cost, ``low`` and
    ``high`` its 95% interval: guidance, steps and curves are chosen and read anew in every bootstrap replicate of
    tuning and held-out prompts. ``beyond`` is the share of replicates in which the larger model does not win within
    the grid. A metric without replicates has no interval.
    """
    found = []
    for sampler, mine in rows.groupby("sampler", sort=True):
        for metric in metrics:
            for axis in (axis for axis in COST_AXES if axis in rows):
                curves = {model: _curves(r, axis, metric) for model, r in _by_size(mine)}
                pairs = zip(list(curves), list(curves)[1:], strict=False)
                for small, large in ((a, b) for a, b in pairs if curves[a] and curves[b]):
                    both = zip(curves[small], curves[large], strict=True)
                    crossed = [crossing(a, b, extend=True) for a, b in both]
                    # Beyond its last improvement a curve goes on as it is: to the end of the grid.
                    most = float(mine.loc[mine["model"].isin([small, large]), axis].max())
                    found.append([sampler, metric, axis, small, large, *summary(crossed), crossed[0][1], most])
    return pd.DataFrame(found, columns=COLUMNS)


def summary(crossed: Sequence[tuple[float, float, float]]) -> tuple[float, float, float, float]:
    """(crossover, low, high, beyond) of :func:`crossing`'s answers for the points and for every replicate."""
    costs = np.array([cost for cost, _, _ in crossed])
    if len(costs) < 3 or np.isnan(costs).any():
        return costs[0], float("nan"), float("nan"), float("nan")
    low, high = np.quantile(costs[1:], TAILS, method="nearest")
    return float(costs[0]), float(low), float(high), float(np.mean(costs[1:] == np.inf))


def _by_size(rows: pd.DataFrame):
    order = rows.sort_values(["params", "model"])["model"].drop_duplicates()
    return [(model, rows[rows["model"] == model]) for model in order]


def _curves(rows: pd.DataFrame, axis: str, metric: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """A model's curve, and that of each replicate; none where the metric is not finite in both splits."""
    tuning, held = (rows[rows["split"] == split].set_index("cell") for split in (TUNING, HELDOUT))
    held = held.reindex(tuning.index)
    choice, loss = (-METRICS[metric] * split[metric].to_numpy(np.float64) for split in (tuning, held))
    if not len(tuning) or not np.isfinite([choice, loss]).all():
        return []
    cost = held[axis].to_numpy(np.float64)
    again = [centred(v, -METRICS[metric] * replicates(s, metric)) for v, s in ((choice, tuning), (loss, held))]
    count = min(reps.shape[1] for reps in again)
    return [frontier(cost, choice, loss)] + [frontier(cost, again[0][:, r], again[1][:, r]) for r in range(count)]
