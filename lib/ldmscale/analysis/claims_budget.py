"""Tests of the paper's statements on sampling budgets: which model size to take at a sampling cost.

Model, steps and guidance weight are chosen on tuning prompts by the metric that is judged, and reported on held-out
prompts.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from ldmscale.analysis.findings import (
    CANNOT_TELL,
    NAMES,
    NOT_SUPPORTED,
    SUPPORTED,
    Number,
    Outcome,
    Run,
    Unclear,
    improves,
    no_replicates,
    number,
    shared_level,
)
from ldmscale.analysis.frontier import at_budgets, crossover, default_budgets, largest_model, winners
from ldmscale.analysis.intervals import interval
from ldmscale.analysis.selection import replicates
from ldmscale.analysis.study import SAMPLER_NAMES, format_count


def small_budget(run: Run, metric: str, experiment: str, sampler: str) -> Outcome:
    """At a small sampling budget the best model is not the largest.

    The contrast is taken at the smallest budget at which the largest model was sampled: the metric of the best smaller
    model minus that of the largest.
    """
    rows, largest, name = *_sampled_by(run, experiment, sampler), NAMES[metric]
    budgets = default_budgets(rows)
    frontier = at_budgets(rows, budgets, metric=metric)
    best = winners(frontier, metric).set_index("budget")
    contrasts = []
    for budget in budgets:
        label, value, reps = _smaller_minus_largest(frontier, budget, largest, metric)
        contrasts.append(number(f"Cost {budget:.3g}: {label}", value, reps))
    turn, turn_reps = crossover(frontier, metric)
    low, high = np.quantile(turn_reps, [0.025, 0.975], method="nearest") if len(turn_reps) else (np.nan, np.nan)
    numbers = [*contrasts, Number(f"Cost from which {largest} is the best", turn, float(low), float(high))]
    numbers += _whole_cost(rows, largest, metric)
    chosen = "; ".join(f"cost {b:.3g}: {r.model} ({r.steps} steps, CFG {r.cfg:g})" for b, r in best.iterrows())
    each = [improves(n.low, n.high, metric) for n in contrasts]
    steps = int(rows.loc[rows["model"] == largest, "steps"].min())
    note = (
        f"{contrasts[0]}. This is the smallest cost at which {largest} was sampled, in {steps} steps. Over all "
        f"{len(budgets)} costs, the best smaller model is better beyond the interval at {each.count(SUPPORTED)} and "
        f"worse at {each.count(NOT_SUPPORTED)}. Best on tuning prompts at each cost: {chosen}."
    )
    note += no_replicates(contrasts)
    if math.isinf(turn):
        note += (
            f" By {name}, {largest} is the best at no cost of this run, so the run shows no trade of size against "
            "steps."
        )
    return Outcome(each[0], numbers, note)


def large_budget(run: Run, metric: str, experiment: str, sampler: str) -> Outcome:
    """At a large sampling budget the largest model is the best.

    The contrast is taken at the greatest cost at which the largest model was sampled: its metric minus that of the
    best smaller model.
    """
    rows, largest = _sampled_by(run, experiment, sampler)
    budget = default_budgets(rows)[-1]
    label, value, reps = _smaller_minus_largest(at_budgets(rows, [budget], metric=metric), budget, largest, metric)
    found = number(f"Cost {budget:.3g}: {label}", value, reps)
    note = f"{found}. This is the greatest cost at which {largest} was sampled; the largest must be the better one."
    verdict = {SUPPORTED: NOT_SUPPORTED, NOT_SUPPORTED: SUPPORTED}.get(improves(found.low, found.high, metric))
    return Outcome(verdict or CANNOT_TELL, [found], note + no_replicates([found]))


def same_for_samplers(run: Run, metric: str, experiments: list[str]) -> Outcome:
    """Whether samplers agree on small against large, at the fewest steps in which all of them were drawn.

    Each sampler's contrast is that of :func:`small_budget`, over the step counts and guidance weights that all have,
    with intervals at a level shared between the samplers. Supported if all are clear of zero on one side, whichever;
    not supported if two are clear on opposite sides.
    """
    rows = run.rows(*experiments)
    rows = rows[rows["sampler"].isin(SAMPLER_NAMES) & (rows["task"] == "t2i")]
    by_sampler = {sampler: mine for sampler, mine in rows.groupby("sampler", sort=True)}
    settings = [set(zip(mine["model"], mine["steps"], mine["cfg"], strict=True)) for mine in by_sampler.values()]
    common = set.intersection(*settings)
    models = {model for model, *_ in common}
    if len(by_sampler) < 2 or len(models) < 2:
        raise Unclear("The run has no two models drawn by two samplers at the same step counts and guidance weights.")
    numbers, each = [], []
    for sampler, mine in by_sampler.items():
        mine = mine[[key in common for key in zip(mine["model"], mine["steps"], mine["cfg"], strict=True)]]
        largest, budget = largest_model(mine), default_budgets(mine)[0]
        label, value, reps = _smaller_minus_largest(at_budgets(mine, [budget], metric=metric), budget, largest, metric)
        numbers.append(number(f"{SAMPLER_NAMES[sampler]}, cost {budget:.3g}: {label}", value, reps))
        each.append(improves(*interval(value, reps, shared_level(len(by_sampler))), metric))
    clear = set(each)
    verdict = SUPPORTED if clear in ({SUPPORTED}, {NOT_SUPPORTED}) else CANNOT_TELL
    verdict = NOT_SUPPORTED if {SUPPORTED, NOT_SUPPORTED} <= clear else verdict
    note = (
        f"Beyond an interval at a level shared between {len(each)} samplers, the smaller model is better with "
        f"{each.count(SUPPORTED)} and worse with {each.count(NOT_SUPPORTED)}; all at the step counts and guidance "
        "weights that every sampler has."
    )
    return Outcome(verdict, numbers, note + no_replicates(numbers))


def _sampled_by(run: Run, experiment: str, sampler: str) -> tuple[pd.DataFrame, str]:
    """The experiment's rows by ``sampler``, and the largest model among them."""
    rows = run.rows(experiment)
    rows = rows[rows["sampler"] == sampler]
    if rows["model"].nunique() < 2:
        raise Unclear(f"The run has fewer than two models drawn by {SAMPLER_NAMES[sampler]}.")
    return rows, largest_model(rows)


def _smaller_minus_largest(
    frontier: pd.DataFrame, budget: float, largest: str, metric: str
) -> tuple[str, float, np.ndarray]:
    """What is compared, the metric of the best smaller model at ``budget`` minus the largest's, and its replicates."""
    here = frontier[frontier["budget"] == budget]
    smaller, name = here[here["model"] != largest], NAMES[metric]
    if smaller.empty:
        raise Unclear(f"No smaller model was sampled at a cost of {budget:.3g} or less.")
    pair = pd.concat([winners(smaller, metric), here[here["model"] == largest]])
    reps, (a, b), values = replicates(pair, metric), pair.itertuples(), pair[metric].to_numpy(float)
    label = f"{name} of {a.model} ({a.steps} steps) minus {name} of {b.model} ({b.steps} steps)"
    return label, values[0] - values[1], reps[0] - reps[1]


def _whole_cost(rows: pd.DataFrame, largest: str, metric: str) -> list[Number]:
    """The same contrast with the text encoder, the decoder and guidance's second evaluation in the cost."""
    axis = "sampling_tflops"
    if axis not in rows or not np.isfinite(rows[axis].astype(float)).all():
        return []
    budget = default_budgets(rows, axis)[0]
    try:
        label, value, reps = _smaller_minus_largest(at_budgets(rows, [budget], axis, metric), budget, largest, metric)
    except Unclear:
        return []
    return [number(f"Whole cost {format_count(budget * 1e12)} FLOPs an image: {label}", value, reps)]
