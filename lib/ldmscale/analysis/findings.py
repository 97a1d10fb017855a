"""The paper's findings on text-to-image sampling, each held against this run's table.

Every verdict follows from one pre-stated contrast and its 95% interval over paired bootstrap replicates: clear of zero
on the paper's side is *supported*, clear on the other side *not supported*, anything else *cannot tell*. The intervals
cover the choice of prompts and starting noises; they do not cover training again from another seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from ldmscale.analysis.frontier import at_budgets, crossover, default_budgets, largest_model, winners
from ldmscale.analysis.intervals import LEVEL, centred, interval
from ldmscale.analysis.selection import METRICS, TUNING, heldout, optimal_cfg, replicates, select
from ldmscale.analysis.study import SAMPLER_NAMES, format_count
from ldmscale.cells.cell import Cell

METRIC_NAMES = {"fid": "FID", "clip": "CLIP score"}
SUPPORTED, NOT_SUPPORTED, CANNOT_TELL = "supported", "not supported", "cannot tell"


class Number(NamedTuple):
    """A measured value with its 95% interval (NaN where there is none; infinity: not within the run)."""

    label: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        between = "" if math.isnan(self.low) else f" (95% interval {_text(self.low)} to {_text(self.high)})"
        return f"{self.label}: {_text(self.value)}{between}"


def _text(value: float) -> str:
    return "not within this run" if math.isinf(value) else f"{float(f'{value:.4g}'):g}"


@dataclass(frozen=True)
class Finding:
    """A statement of the paper and what this run says about it."""

    id: str
    section: str
    statement: str
    verdict: str
    numbers: list[Number]
    note: str


def verdict_of(low: float, high: float) -> str:
    """The verdict on "this contrast is below zero", from its interval."""
    if high < 0:
        return SUPPORTED
    return NOT_SUPPORTED if low > 0 else CANNOT_TELL


def evaluate(scores: pd.DataFrame, experiments: Mapping[str, Sequence[Cell]]) -> list[Finding]:
    """Every finding that text-to-image sampling covers, in the paper's order.

    ``experiments`` maps experiment names to their cells; a finding whose experiment is absent, or too small to say
    anything, comes out as *cannot tell* with the reason as its note.
    """
    return [
        training_compute(scores, experiments.get("training", ()), "fid"),
        training_compute(scores, experiments.get("training", ()), "clip"),
        model_size(scores, experiments.get("headline", ())),
        guidance_depends_on_steps(scores, experiments.get("grid", ())),
        small_budget(scores, experiments.get("grid", ()), "ddim"),
        small_budget(scores, experiments.get("samplers", ()), "ddpm"),
        small_budget(scores, experiments.get("samplers", ()), "dpmpp2m"),
    ]


class _Unclear(Exception):
    """The run cannot speak to a finding; the message says why."""


def _finding(id: str, section: str, statement: str, measure: Callable[[], tuple[str, list[Number], str]]) -> Finding:
    try:
        verdict, numbers, note = measure()
    except _Unclear as reason:
        verdict, numbers, note = CANNOT_TELL, [], str(reason)
    return Finding(id, section, statement, verdict, numbers, note)


def _rows(scores: pd.DataFrame, cells: Sequence[Cell], experiment: str) -> pd.DataFrame:
    if not cells:
        raise _Unclear(f"The experiment '{experiment}' is not part of this run.")
    return select(scores, cells)


def _number(label: str, value: float, reps: np.ndarray) -> Number:
    return Number(label, float(value), *interval(value, reps))


def _no_replicates(numbers: Sequence[Number]) -> str:
    return " There are no bootstrap replicates, so no intervals." if all(math.isnan(n.low) for n in numbers) else ""


def training_compute(scores: pd.DataFrame, cells: Sequence[Cell], metric: str) -> Finding:
    """Fig. 3: each model's last checkpoint against its first, at the headline sampling setting.

    Supported if every model improves beyond its interval, not supported if one gets worse beyond its interval.
    """
    name = METRIC_NAMES[metric]

    def measure():
        rows = heldout(_rows(scores, cells, "training"))
        numbers, still = [], 0
        for model, mine in rows.groupby("model", sort=False):
            if len(mine) < 2:
                continue
            sign, reps = -METRICS[metric], replicates(mine, metric)
            values, steps = mine[metric].to_numpy(float), mine["train_step"].to_numpy(int)
            label = f"{model}: {name} at step {steps[-1]} minus at step {steps[0]}"
            numbers.append(_number(label, values[-1] - values[0], reps[-1] - reps[0]))
            late = interval(sign * (values[-1] - values[-2]), sign * (reps[-1] - reps[-2]))
            still += late[1] < 0
        if not numbers:
            raise _Unclear("No model has two checkpoints in this run.")
        each = [verdict_of(*sorted((-METRICS[metric] * n.low, -METRICS[metric] * n.high))) for n in numbers]
        verdict = SUPPORTED if set(each) == {SUPPORTED} else CANNOT_TELL
        verdict = NOT_SUPPORTED if NOT_SUPPORTED in each else verdict
        low, high = min(n.value for n in numbers), max(n.value for n in numbers)
        note = (
            f"The changes from the first checkpoint to the last lie between {_text(low)} and {_text(high)}. "
            f"{each.count(SUPPORTED)} of {len(each)} models improve beyond their interval, "
            f"{each.count(NOT_SUPPORTED)} get worse beyond it; {still} still improve beyond it between the "
            "last two checkpoints." + _no_replicates(numbers)
        )
        return verdict, numbers, note

    better = "lower (better)" if metric == "fid" else "higher (better)"
    statement = f"More pretraining compute gives every model a {better} {name}."
    return _finding(f"training-{metric}", "Fig. 3", statement, measure)


def model_size(scores: pd.DataFrame, cells: Sequence[Cell]) -> Finding:
    """Table 1: FID against model size at one sampler, step count and guidance weight.

    The contrast is the slope of FID in log2(parameters). A pair of neighbouring sizes that is reversed beyond its
    interval (at a level shared between the pairs) refutes the statement even where the slope supports it.
    """

    def measure():
        rows = heldout(_rows(scores, cells, "headline"))
        if rows["model"].nunique() < 2 or rows["model"].duplicated().any():
            raise _Unclear("The headline experiment needs one cell for each of two or more models.")
        values, reps = rows["fid"].to_numpy(float), replicates(rows, "fid")
        x = np.log2(rows["params"].to_numpy(float))
        weights = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
        names = rows["model"].tolist()
        slope = _number("FID for each doubling of parameters", weights @ values, weights @ reps)
        ends = _number(f"FID of {names[-1]} minus FID of {names[0]}", values[-1] - values[0], reps[-1] - reps[0])
        pairs = len(names) - 1
        reversed_pairs, neighbours = [], []
        for i in range(pairs):
            label = f"FID of {names[i + 1]} minus FID of {names[i]}"
            pair = _number(label, values[i + 1] - values[i], reps[i + 1] - reps[i])
            neighbours.append(pair)
            if interval(pair.value, reps[i + 1] - reps[i], 1 - (1 - LEVEL) / pairs)[0] > 0:
                reversed_pairs.append(f"{names[i]} to {names[i + 1]}")
        verdict = verdict_of(slope.low, slope.high)
        falls = sum(n.value < 0 for n in neighbours)
        note = f"{slope}. FID falls at {falls} of the {pairs} steps up in size."
        if reversed_pairs:
            verdict = NOT_SUPPORTED
            note += f" It rises beyond the interval from {', '.join(reversed_pairs)}."
        numbers = [slope, ends, *(neighbours if pairs > 1 else [])]
        return verdict, numbers, note + _no_replicates(numbers)

    statement = "At the same sampler, step count and guidance weight, a larger model has a better FID."
    return _finding("model-size", "Table 1", statement, measure)


def small_budget(scores: pd.DataFrame, cells: Sequence[Cell], sampler: str) -> Finding:
    """Figs. 9 and 11: at a small sampling budget the best model is not the largest.

    The contrast is taken at the smallest budget at which the largest model was sampled: FID of the best smaller model
    (model, steps and guidance weight chosen on tuning prompts) minus FID of the largest, both on held-out prompts.
    """
    experiment = "grid" if sampler == "ddim" else "samplers"

    def measure():
        rows = _rows(scores, [cell for cell in cells if cell.sampler == sampler], experiment)
        if rows["model"].nunique() < 2:
            raise _Unclear("The run has one model only.")
        largest = largest_model(rows)
        budgets = default_budgets(rows)
        frontier = at_budgets(rows, budgets)
        best = winners(frontier).set_index("budget")
        contrasts = []
        for budget in budgets:
            label, value, reps = _smaller_minus_largest(frontier, budget, largest)
            contrasts.append(_number(f"Cost {budget:.3g}: FID of {label}", value, reps))
        turn, turn_reps = crossover(frontier)
        low, high = np.quantile(turn_reps, [0.025, 0.975], method="nearest") if len(turn_reps) else (np.nan, np.nan)
        numbers = [*contrasts, Number(f"Cost from which {largest} is the best", turn, float(low), float(high))]
        whole = _whole_cost(rows, largest)
        numbers += [whole] if whole else []
        chosen = "; ".join(f"cost {b:.3g}: {r.model} ({r.steps} steps, CFG {r.cfg:g})" for b, r in best.iterrows())
        lead = [sum(verdict_of(n.low, n.high) == v for n in contrasts) for v in (SUPPORTED, NOT_SUPPORTED)]
        steps = int(rows.loc[rows["model"] == largest, "steps"].min())
        note = (
            f"{contrasts[0]}. This is the smallest cost at which {largest} was sampled, in {steps} steps. Over all "
            f"{len(budgets)} costs, the best smaller model is better beyond the interval at {lead[0]} and worse at "
            f"{lead[1]}. Best on tuning prompts at each cost: {chosen}." + _no_replicates(contrasts)
        )
        if math.isinf(turn):
            note += f" {largest} is the best at no cost of this run, so the run shows no trade of size against steps."
        return verdict_of(contrasts[0].low, contrasts[0].high), numbers, note

    section = "Fig. 9" if sampler == "ddim" else "Fig. 11"
    statement = (
        f"With {SAMPLER_NAMES[sampler]} at a small sampling budget, a smaller model with more steps beats the largest."
    )
    return _finding(f"small-budget-{sampler}", section, statement, measure)


def _smaller_minus_largest(frontier: pd.DataFrame, budget: float, largest: str) -> tuple[str, float, np.ndarray]:
    """What is compared, FID of the best smaller model at ``budget`` minus the largest's, and its replicates."""
    here = frontier[frontier["budget"] == budget]
    smaller = here[here["model"] != largest]
    if smaller.empty:
        raise _Unclear(f"No smaller model was sampled at a cost of {budget:.3g} or less.")
    pair = pd.concat([winners(smaller), here[here["model"] == largest]])
    reps, (a, b) = replicates(pair, "fid"), pair.itertuples()
    label = f"{a.model} ({a.steps} steps) minus FID of {b.model} ({b.steps} steps)"
    return label, float(a.fid - b.fid), reps[0] - reps[1]


def _whole_cost(rows: pd.DataFrame, largest: str) -> Number | None:
    """The same contrast with the text encoder, the decoder and guidance's second evaluation in the cost."""
    axis = "sampling_tflops"
    if axis not in rows or not np.isfinite(rows[axis].astype(float)).all():
        return None
    budget = default_budgets(rows, axis)[0]
    try:
        label, value, reps = _smaller_minus_largest(at_budgets(rows, [budget], axis), budget, largest)
    except _Unclear:
        return None
    return _number(f"Whole cost {format_count(budget * 1e12)} FLOPs an image: FID of {label}", value, reps)


def guidance_depends_on_steps(scores: pd.DataFrame, cells: Sequence[Cell]) -> Finding:
    """Fig. 8: the FID-optimal guidance weight varies more with the step count than with the model.

    The contrast is a difference of variance components of the optimal weight in a models x steps table without
    interaction, model minus steps; subtracting the residual keeps noise in the optima from favouring either factor.
    """

    def measure():
        rows = _rows(scores, cells, "grid")
        rows = rows[rows["sampler"] == "ddim"]
        optimal = optimal_cfg(rows)
        if optimal.isna().any(axis=None) or min(optimal.shape) < 2:
            raise _Unclear("The grid needs every combination of two or more models and two or more step counts.")
        if rows["cfg"].nunique() < 2:
            raise _Unclear("The grid has one guidance weight only.")
        components = _variance_components(optimal.to_numpy(float))
        reps = np.array([_variance_components(table) for table in _optimal_replicates(rows, optimal)]).reshape(-1, 2)
        labels = [f"Variance of the optimal CFG over {what}, noise subtracted" for what in ("models", "step counts")]
        numbers = [_number("Model variance minus step-count variance", *_difference(components, reps))]
        numbers += [_number(label, components[i], reps[:, i]) for i, label in enumerate(labels)]
        means = "; ".join(f"{steps} steps: {value:.2f}" for steps, value in optimal.mean(axis=1).items())
        by_model = "; ".join(f"{model}: {value:.2f}" for model, value in optimal.mean(axis=0).items())
        note = f"{numbers[0]}. Mean optimal CFG by step count: {means}. By model: {by_model}."
        if optimal.to_numpy().min() == optimal.to_numpy().max():
            note += " The same guidance weight is optimal everywhere."
        return verdict_of(numbers[0].low, numbers[0].high), numbers, note + _no_replicates(numbers)

    statement = "The best guidance weight depends on the number of sampling steps more than on the model size."
    return _finding("guidance", "Fig. 8", statement, measure)


def _difference(components: np.ndarray, reps: np.ndarray) -> tuple[float, np.ndarray]:
    return float(components[0] - components[1]), reps[:, 0] - reps[:, 1]


def _variance_components(table: np.ndarray) -> np.ndarray:
    """(model, steps) components of a table [S,M]: two-way analysis of variance by the method of moments."""
    s, m = table.shape
    by_steps, by_model = table.mean(axis=1), table.mean(axis=0)
    residual = table - by_steps[:, None] - by_model[None] + table.mean()
    noise = np.sum(residual**2) / ((s - 1) * (m - 1))
    return np.round([by_model.var(ddof=1) - noise / s, by_steps.var(ddof=1) - noise / m], 12)


def _optimal_replicates(rows: pd.DataFrame, optimal: pd.DataFrame) -> np.ndarray:
    """The table of optimal weights [R,S,M] in each replicate of the tuning split (centred on the point values)."""
    tuning = rows[rows["split"] == TUNING].sort_values("cfg")
    tables = []
    for steps in optimal.index:
        for model in optimal.columns:
            mine = tuning[(tuning["steps"] == steps) & (tuning["model"] == model)]
            values = centred(mine["fid"].to_numpy(float), replicates(mine, "fid"))
            tables.append(mine["cfg"].to_numpy(float)[values.argmin(axis=0)] if values.size else np.empty(0))
    return np.stack(tables, axis=1).reshape(-1, *optimal.shape)
