"""The best guidance weight: what it depends on, and what choosing it on the prompts that are reported would flatter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ldmscale.analysis.findings import NAMES, Number, Outcome, Run, Unclear, no_replicates, number, verdict_of
from ldmscale.analysis.intervals import centred
from ldmscale.analysis.selection import GROUP, HELDOUT, METRICS, TUNING, optimal_cfg, replicates


def guidance_depends_on_steps(run: Run, metric: str, experiment: str) -> Outcome:
    """The best guidance weight varies more with the step count than with the model.

    The contrast is a difference of variance components of the optimal weight in a models x steps table without
    interaction, model minus steps; subtracting the residual keeps noise in the optima from favouring either factor.
    """
    rows = run.rows(experiment)
    rows = rows[rows["sampler"] == "ddim"]
    optimal = optimal_cfg(rows, metric)
    if optimal.isna().any(axis=None) or min(optimal.shape) < 2:
        raise Unclear("The grid needs every combination of two or more models and two or more step counts.")
    if rows["cfg"].nunique() < 2:
        raise Unclear("The grid has one guidance weight only.")
    components = variance_components(optimal.to_numpy(float))
    tables = _optimal_replicates(rows, optimal, metric)
    reps = np.array([variance_components(table) for table in tables]).reshape(-1, 2)
    labels = [f"Variance of the optimal CFG over {what}, noise subtracted" for what in ("models", "step counts")]
    difference = components[0] - components[1], reps[:, 0] - reps[:, 1]
    numbers = [number("Model variance minus step-count variance", *difference)]
    numbers += [number(label, components[i], reps[:, i]) for i, label in enumerate(labels)]
    means = "; ".join(f"{steps} steps: {value:.2f}" for steps, value in optimal.mean(axis=1).items())
    by_model = "; ".join(f"{model}: {value:.2f}" for model, value in optimal.mean(axis=0).items())
    note = f"{numbers[0]}. Mean optimal CFG by step count: {means}. By model: {by_model}."
    if optimal.to_numpy().min() == optimal.to_numpy().max():
        note += " The same guidance weight is optimal everywhere."
    return Outcome(verdict_of(numbers[0].low, numbers[0].high), numbers, note + no_replicates(numbers))


def variance_components(table: np.ndarray) -> np.ndarray:
    """(model, steps) components of a table [S,M]: two-way analysis of variance by the method of moments."""
    s, m = table.shape
    by_steps, by_model = table.mean(axis=1), table.mean(axis=0)
    residual = table - by_steps[:, None] - by_model[None] + table.mean()
    noise = np.sum(residual**2) / ((s - 1) * (m - 1))
    return np.round([by_model.var(ddof=1) - noise / s, by_steps.var(ddof=1) - noise / m], 12)


def _optimal_replicates(rows: pd.DataFrame, optimal: pd.DataFrame, metric: str) -> np.ndarray:
    """The table of optimal weights [R,S,M] in each replicate of the tuning split (centred on the point values)."""
    tuning = rows[rows["split"] == TUNING].sort_values("cfg")
    tables = []
    for steps in optimal.index:
        for model in optimal.columns:
            mine = tuning[(tuning["steps"] == steps) & (tuning["model"] == model)]
            losses = _losses(mine, metric)[:, 1:]
            tables.append(mine["cfg"].to_numpy(float)[losses.argmin(axis=0)] if losses.size else np.empty(0))
    return np.stack(tables, axis=1).reshape(-1, *optimal.shape)


def _losses(rows: pd.DataFrame, metric: str) -> np.ndarray:
    """The metric, the smaller the better, and its centred replicates: [len(rows), 1+R]."""
    values = rows[metric].to_numpy(float)
    return -METRICS[metric] * np.column_stack([values, centred(values, replicates(rows, metric))])


def choice_bias(rows: pd.DataFrame, metric: str = "fid") -> list[Number]:
    """How much better a model looks if its guidance weight is chosen on the prompts that it is reported on.

    ``rows``: both splits of cells that were sampled at several weights. The two splits are of different sizes, and a
    distance such as FID depends on the size, so each comparison stays within one split: its value at the weight that
    is best on itself, minus its value at the weight that is best on the other split. Within the held-out split that
    is too large by what the poorer choice on other prompts costs, within the tuning split too small by just as much;
    their mean is free of it. It estimates the bias of choosing and reporting on the same prompts, averaged over the two
    sizes, and is in the metric's own units: below zero for a metric whose smaller values are better.

    Returns the mean over all (model, weights, sampler, steps) that have two weights or more, then the two halves (of
    held-out and of tuning prompts), each with its paired-bootstrap interval; nothing where there is no such group.
    """
    halves: dict[str, list[np.ndarray]] = {HELDOUT: [], TUNING: []}
    for _, mine in rows.groupby(GROUP, sort=False):
        splits = {split: mine[mine["split"] == split].sort_values("cfg") for split in halves}
        tables = {split: _losses(part, metric) for split, part in splits.items()}
        same = len({tuple(part["cfg"]) for part in splits.values()}) == 1
        if not same or len(splits[TUNING]) < 2 or not all(np.isfinite(t[:, 0]).all() for t in tables.values()):
            continue
        for split, other in ((HELDOUT, TUNING), (TUNING, HELDOUT)):
            count = min(table.shape[1] for table in tables.values())
            own, theirs = tables[split][:, :count], tables[other][:, :count]
            elsewhere = own[theirs.argmin(axis=0), np.arange(count)]
            halves[split].append(-METRICS[metric] * (own.min(axis=0) - elsewhere))
    if not halves[HELDOUT]:
        return []
    held, tuning = (np.mean(halves[split], axis=0) for split in (HELDOUT, TUNING))
    return _bias_numbers((held + tuning) / 2, held, tuning, NAMES[metric], len(halves[HELDOUT]))


def _bias_numbers(both: np.ndarray, held: np.ndarray, tuning: np.ndarray, name: str, count: int) -> list[Number]:
    what = f"{name} chosen and reported on the same prompts minus chosen on others"
    labels = (
        f"{what}, mean over {count} models and step counts",
        "The same, reported on held-out prompts alone (holds what the choice on fewer prompts costs)",
        "The same, reported on tuning prompts alone",
    )
    return [number(label, x[0], x[1:]) for label, x in zip(labels, (both, held, tuning), strict=True)]


def choice_biases(run: Run, experiment: str, metrics: Sequence[str]) -> dict[str, list[Number]]:
    """:func:`choice_bias` of ``experiment`` under each of ``metrics`` that the table has; empty where it cannot be."""
    try:
        rows = run.rows(experiment)
    except Unclear:
        return {}
    found = {metric: choice_bias(rows, metric) for metric in metrics if metric in rows and rows[metric].notna().any()}
    return {metric: numbers for metric, numbers in found.items() if numbers}
