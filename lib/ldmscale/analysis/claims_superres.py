"""Tests of the paper's statements on super-resolution.

It is drawn without guidance and scored on one set of patches, so nothing can be chosen apart from what is reported:
where a checkpoint or a model is the best of several, the note says so and whom that favours.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from ldmscale.analysis.claims_training import downstream_follows
from ldmscale.analysis.downstream import SUPERRES, last_common, superres_rows
from ldmscale.analysis.dreambooth import difference
from ldmscale.analysis.findings import (
    CANNOT_TELL,
    NAMES,
    NOT_SUPPORTED,
    SIGNS,
    SUPPORTED,
    Number,
    Outcome,
    Run,
    Unclear,
    improves,
    model_size,
    no_replicates,
    shared_level,
)
from ldmscale.analysis.frontier import default_budgets, largest_model
from ldmscale.analysis.intervals import interval
from ldmscale.analysis.selection import HELDOUT, replicates
from ldmscale.analysis.study import SAMPLER_NAMES
from ldmscale.cells.cell import Cell


def _rows(run: Run) -> pd.DataFrame:
    """Super-resolution's rows, the Inception score's replicates named as other metrics' are."""
    rows = run.of(SUPERRES)
    return rows.assign(is1_reps=rows["is_reps"]) if "is_reps" in rows else rows


def finetuned_alike(run: Run) -> pd.DataFrame:
    """One row a model, of the finetuning curves' sampling setting, at the greatest step that all models have."""
    here = last_common(superres_rows(_rows(run)))
    if here["model"].nunique() < 2:
        raise Unclear("The run has no finetuning step common to two or more models.")
    return here


def superres_size(run: Run, metric: str) -> Outcome:
    """A metric against model size after the same finetuning, judged as Table 1's model size is."""
    here = finetuned_alike(run)
    found = model_size(here.assign(split=HELDOUT), [Cell.parse(path) for path in here["cell"]], metric)
    features = "is_features" if metric == "is1" else f"{metric}_features"
    by = f"; {NAMES[metric]} by {here[features].iloc[0]}" if features in here else ""
    note = f"{found.note} After {here['train_step'].iloc[0]} finetuning steps, {setting(here)}{by}."
    return Outcome(found.verdict, found.numbers, note)


def superres_follows(run: Run, metric: str, experiment: str) -> Outcome:
    """Whether models rank by ``metric`` in super-resolution as they do in text-to-image."""
    return downstream_follows(run, metric, experiment, finetuned_alike, "super-resolution")


def superres_longer(run: Run, metric: str, longer: float) -> Outcome:
    """Whether the smallest model, finetuned for longer, reaches the largest finetuned for less.

    The contrast is the metric of the largest model at its last checkpoint of at most 1 / ``longer`` of the smallest's
    longest finetuning, minus the best of the smallest at any checkpoint.
    """
    rows, name, sign = superres_rows(_rows(run)), NAMES[metric], SIGNS[metric]
    rows = rows[rows["train_step"] > 0]
    sizes = rows.sort_values("params")["model"].unique()
    if len(sizes) < 2:
        raise Unclear("The run has fewer than two finetuned models.")
    small, large = (rows[rows["model"] == model].reset_index(drop=True) for model in (sizes[0], sizes[-1]))
    longest = small["train_step"].max()
    short = large[longer * large["train_step"] <= longest]
    if short.empty:
        what = "half" if longer == 2 else f"1/{longer:g}"
        raise Unclear(f"{sizes[-1]} has no checkpoint at {what} of {sizes[0]}'s {longest} finetuning steps or before.")
    best = small.loc[[(sign * small[metric].astype(float)).idxmax()]]

    def contrast(large_row: pd.DataFrame, before: str = "") -> Number:
        label = (
            f"{before}{name} of {sizes[-1]} after {large_row['train_step'].iloc[0]} finetuning steps minus the best "
            f"{name} of {sizes[0]}, after {best['train_step'].iloc[0]} of {longest}"
        )
        return difference(label, pd.concat([large_row, best]), metric)

    first = contrast(short.nlargest(1, "train_step"))
    numbers = [first]
    affordable = large[large["train_gflops"] <= small["train_gflops"].max() * (1 + 1e-6)]
    if len(affordable):
        numbers.append(contrast(affordable.nlargest(1, "train_step"), "Within the same finetuning compute: "))
    if large["train_step"].max() > short["train_step"].max():
        numbers.append(contrast(large.nlargest(1, "train_step"), "At the end: "))
    note = (
        f"{first}. {setting(rows)}. The best checkpoint of {sizes[0]} was chosen on the patches that it is reported "
        "on, which favours it, and so speaks against the paper."
    )
    return Outcome(improves(first.low, first.high, metric), numbers, note + no_replicates(numbers))


def superres_small_budget(run: Run, metric: str, steps: int) -> Outcome:
    """Super-resolution at a sampling cost that the largest model spends in few steps.

    At the smallest cost at which the largest was sampled, each smaller model takes the most steps (at most ``steps``)
    that the cost affords; nothing is chosen by the metric. Supported if some smaller model is better beyond an interval
    at a level shared between the models, not supported if every one is worse beyond its 95% interval.
    """
    rows = last_common(_rows(run))
    rows = rows[(rows["sampler"] == "ddim") & (rows["steps"] <= steps)]
    if rows["model"].nunique() < 2:
        raise Unclear(f"The run has no two models finetuned alike and sampled by DDIM in at most {steps} steps.")
    largest = largest_model(rows)
    by_budget = {budget: _smaller_minus_largest(rows, budget, largest, metric) for budget in default_budgets(rows)}
    by_budget = {budget: pairs for budget, pairs in by_budget.items() if pairs}
    if not by_budget:
        raise Unclear(f"No smaller model was sampled at a cost at which {largest} was.")
    budget, pairs = next(iter(by_budget.items()))
    numbers = [found for found, _ in pairs]
    level = shared_level(len(pairs))
    wins = sum(improves(*interval(found.value, reps, level), metric) == SUPPORTED for found, reps in pairs)
    losses = sum(improves(found.low, found.high, metric) == NOT_SUPPORTED for found in numbers)
    verdict = SUPPORTED if wins else NOT_SUPPORTED if losses == len(pairs) else CANNOT_TELL
    for cost in list(by_budget)[1:]:
        best = max((found for found, _ in by_budget[cost]), key=lambda found: SIGNS[metric] * found.value)
        numbers.append(best._replace(label=f"{best.label} (the best smaller model, chosen on the same patches)"))
    spent = int(rows.loc[rows["model"] == largest, "steps"].min())
    note = (
        f"At cost {budget:.3g}, which {largest} spends in {spent} step{'s' * (spent != 1)}, {wins} of {len(pairs)} "
        f"smaller models are better beyond an interval at a level shared between them, and {losses} worse beyond their "
        f"own. Each takes the most steps that the cost affords; after {rows['train_step'].iloc[0]} finetuning steps."
    )
    return Outcome(verdict, numbers, note + no_replicates(numbers))


def superres_large_budget(run: Run, metric: str, beyond: int) -> Outcome:
    """Super-resolution at a sampling cost that the largest model spends in more than ``beyond`` steps.

    At the greatest such cost, each smaller model takes the most steps that the cost affords. Supported if the largest
    is better than every smaller one beyond its interval, not supported if one of them is better than the largest beyond
    an interval at a level shared between them.
    """
    rows = last_common(_rows(run))
    rows = rows[rows["sampler"] == "ddim"]
    many = rows[rows["steps"] > beyond]
    if rows["model"].nunique() < 2 or not (many["model"] == largest_model(rows)).any():
        raise Unclear(
            f"The run's largest model was not drawn by DDIM in more than {beyond} steps beside a smaller one."
        )
    largest = largest_model(rows)
    budget = default_budgets(many)[-1]
    pairs = _smaller_minus_largest(rows, budget, largest, metric)
    if not pairs:
        raise Unclear(f"No smaller model was sampled at a cost of {budget:.3g} or less.")
    numbers, level = [found for found, _ in pairs], shared_level(len(pairs))
    better = [improves(*interval(found.value, reps, level), metric) == SUPPORTED for found, reps in pairs]
    worse = [improves(found.low, found.high, metric) == NOT_SUPPORTED for found in numbers]
    verdict = NOT_SUPPORTED if any(better) else SUPPORTED if all(worse) else CANNOT_TELL
    note = (
        f"At cost {budget:.3g}, the greatest at which {largest} was sampled, it is better than {sum(worse)} of "
        f"{len(pairs)} smaller models beyond the interval, and worse than {sum(better)} beyond one at a level shared "
        f"between them. Each takes the most steps that the cost affords; after {rows['train_step'].iloc[0]} finetuning "
        "steps."
    )
    return Outcome(verdict, numbers, note + no_replicates(numbers))


def setting(rows: pd.DataFrame) -> str:
    """How ``rows`` were sampled, as "20-step DDIM"."""
    first = rows.iloc[0]
    return f"{first.steps}-step {SAMPLER_NAMES[first.sampler]}"


def _smaller_minus_largest(rows: pd.DataFrame, budget: float, largest: str, metric: str) -> list[tuple[Number, Any]]:
    """For each smaller model, with the most steps within ``budget``: its metric minus the largest's, and replicates."""
    here = rows[rows["cost"] <= budget * (1 + 1e-6)].sort_values(["params", "model", "steps"])
    here = here.drop_duplicates("model", keep="last").set_index("model", drop=False)
    name, found = NAMES[metric], []
    for model in here["model"]:
        if model != largest:
            pair = here.loc[[model, largest]]
            a, b = pair["steps"]
            label = f"Cost {budget:.3g}: {name} of {model} ({a} steps) minus {name} of {largest} ({b} steps)"
            reps = replicates(pair, metric)
            found.append((difference(label, pair, metric), reps[0] - reps[1]))
    return found
