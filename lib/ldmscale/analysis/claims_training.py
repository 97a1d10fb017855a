"""Tests of the paper's statements on training and model size, at one sampling setting, over the experiments' rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

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
    by_doubling,
    every,
    improves,
    model_size,
    no_replicates,
    number,
    say,
    shared_level,
)
from ldmscale.analysis.intervals import centred, interval
from ldmscale.analysis.selection import heldout, replicates
from ldmscale.cells.cell import Cell

FEWEST_FOR_RANKS = 4  # of three things, one ranking in six is any given one


def training_compute(run: Run, metric: str, experiment: str) -> Outcome:
    """Each model's last checkpoint against its first.

    Supported if every model improves beyond its interval, not supported if one gets worse beyond an interval at a
    level shared between the models.
    """
    rows, name = heldout(run.rows(experiment)), NAMES[metric]
    curves = [(model, mine) for model, mine in rows.groupby("model", sort=False) if len(mine) > 1]
    if not curves:
        raise Unclear("No model has two checkpoints in this run.")
    numbers, worse, still = [], [], 0
    for model, mine in curves:
        reps, values, steps = replicates(mine, metric), mine[metric].to_numpy(float), mine["train_step"].to_numpy(int)
        change, change_reps = values[-1] - values[0], reps[-1] - reps[0]
        numbers.append(number(f"{model}: {name} at step {steps[-1]} minus at step {steps[0]}", change, change_reps))
        worse.append(improves(*interval(change, change_reps, shared_level(len(curves))), metric))
        late = interval(values[-1] - values[-2], reps[-1] - reps[-2])
        still += improves(*late, metric) == SUPPORTED
    each = [improves(n.low, n.high, metric) for n in numbers]
    low, high = min(n.value for n in numbers), max(n.value for n in numbers)
    note = (
        f"The changes from the first checkpoint to the last lie between {say(low)} and {say(high)}. "
        f"{each.count(SUPPORTED)} of {len(each)} models improve beyond their interval, "
        f"{worse.count(NOT_SUPPORTED)} get worse beyond one at a level shared between them; {still} still improve "
        "beyond it between the last two checkpoints." + no_replicates(numbers)
    )
    return Outcome(every(each, worse), numbers, note)


def size_at_setting(run: Run, metric: str, experiment: str) -> Finding:
    """A metric against model size, of an experiment's cells (see :func:`model_size`)."""
    return model_size(run.rows(experiment), run.experiments[experiment], metric)


def size_at_first_checkpoint(run: Run, metric: str, experiment: str) -> Outcome:
    """A metric against model size at the first checkpoint that all models have."""
    rows, steps = _common_checkpoints(run, experiment)
    if len(steps) < 2:
        raise Unclear("The models do not share two checkpoints in this run.")
    found = model_size(rows, _cells(rows, steps[0]), metric)
    note = f"{found.note} At training step {steps[0]} of {steps[-1]}."
    return Outcome(found.verdict, found.numbers, note)


def advantage_settles(run: Run, metric: str, experiment: str, share: float, within: float) -> Outcome:
    """Whether what size is worth, the metric's slope in log2(parameters), is settled after ``share`` of the training.

    The contrast is its ratio to the slope at the end: supported if the interval lies within a factor ``within`` of 1,
    not supported if it lies beyond.
    """
    rows, steps = _common_checkpoints(run, experiment)
    name = NAMES[metric]
    early = [step for step in steps[:-1] if step >= share * steps[-1]]
    if not early:
        raise Unclear(f"No checkpoint before the last lies at {share:.0%} of the training or later.")
    slopes = []
    for step in (early[0], steps[-1]):
        here = heldout(rows[rows["train_step"] == step])
        if here["model"].nunique() < 2 or here["model"].duplicated().any():
            raise Unclear("This needs one cell at each checkpoint for each of two or more models.")
        weights, values = by_doubling(here["params"]), here[metric].to_numpy(float)
        slopes.append((weights @ values, weights @ centred(values, replicates(here, metric))))
    (first, first_reps), (last, last_reps) = slopes
    numbers = [
        number(f"{name} for each doubling of parameters at step {step}", *slope)
        for step, slope in zip((early[0], steps[-1]), slopes, strict=True)
    ]
    if not (numbers[1].high < 0 or numbers[1].low > 0):
        why = f"{numbers[1]}: at the end size is worth nothing beyond the interval, so there is nothing to settle."
        return Outcome(CANNOT_TELL, numbers, why + no_replicates(numbers))
    label = f"What a doubling is worth at step {early[0]}, over what it is at step {steps[-1]}"
    ratio = number(label, first / last, first_reps / last_reps)
    verdict = SUPPORTED if ratio.low > 1 / within and ratio.high < within else CANNOT_TELL
    verdict = NOT_SUPPORTED if ratio.low > within or ratio.high < 1 / within else verdict
    note = f"{ratio}. Settled is within a factor of {within:g}."
    return Outcome(verdict, [ratio, *numbers], note)


def metrics_agree(run: Run, metric: str, experiment: str, other: str) -> Outcome:
    """Whether ``metric`` and ``other`` rank models and checkpoints alike: Kendall's tau, above zero if supported."""
    rows = heldout(run.rows(experiment))
    if len(rows) < FEWEST_FOR_RANKS:
        raise Unclear(f"The run has fewer than {FEWEST_FOR_RANKS} settings to rank.")
    tables = []
    for column in (metric, other):
        values = rows[column].to_numpy(float)
        tables.append(SIGNS[column] * np.column_stack([values, centred(values, replicates(rows, column))]))
    tau = _rank_correlation(f"Rank correlation of {NAMES[metric]} and {NAMES[other]}", *tables)
    note = f"{tau}, 1 if they agree on every pair of {len(rows)} models and checkpoints." + no_replicates([tau])
    return Outcome(verdict_above(tau.low, tau.high), [tau], note)


def downstream_follows(run: Run, metric: str, experiment: str, rows_of, task: str) -> Outcome:
    """Whether models rank alike before and after finetuning for ``task``: Kendall's tau, above zero if supported.

    ``rows_of`` (run) -> the finetuned rows, one a model. The two are drawn from other prompts and noises, so their
    replicates are independent.
    """
    before, after = heldout(run.rows(experiment)), rows_of(run)
    both = [m for m in before["model"] if m in set(after["model"])]
    if len(both) < FEWEST_FOR_RANKS:
        raise Unclear(f"The run has fewer than {FEWEST_FOR_RANKS} models both pretrained and finetuned to rank.")
    tables = []
    for rows in (before, after):
        rows = rows.set_index("model", drop=False).loc[both]
        values = rows[metric].to_numpy(float)
        tables.append(np.column_stack([values, centred(values, replicates(rows, metric))]))
    label = f"Rank correlation of the models' {NAMES[metric]} before and after finetuning"
    tau = _rank_correlation(label, *tables)
    note = f"{tau}, of {len(both)} models ({task})." + no_replicates([tau])
    return Outcome(verdict_above(tau.low, tau.high), [tau], note)


def verdict_above(low: float, high: float) -> str:
    """The verdict on "this contrast is above zero", from its interval."""
    return SUPPORTED if low > 0 else NOT_SUPPORTED if high < 0 else CANNOT_TELL


def _rank_correlation(label: str, a: np.ndarray, b: np.ndarray):
    """Kendall's tau of a [N,1+R] and b [N,1+S] by column; the first column holds the values, the others replicates, of
    which the last of the longer are left out (some metrics have none)."""
    tau = np.array([kendalltau(x, y).statistic for x, y in zip(a.T, b.T, strict=False)])
    found = number(label, tau[0], tau[1:])
    return found._replace(low=max(found.low, -1.0), high=min(found.high, 1.0)) if len(tau) > 2 else found


def _common_checkpoints(run: Run, experiment: str) -> tuple[pd.DataFrame, list[int]]:
    """The experiment's rows, and the training steps that all of its models have, ascending."""
    rows = run.rows(experiment)
    steps = [set(mine["train_step"]) for _, mine in rows.groupby("model")]
    return rows, sorted(set.intersection(*steps))


def _cells(rows: pd.DataFrame, step: int) -> list[Cell]:
    return [Cell.parse(path) for path in rows.loc[rows["train_step"] == step, "cell"].unique()]
