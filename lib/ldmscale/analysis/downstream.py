"""The paper's findings on its downstream tasks, each held against this run's table, and checks of the finetuning.

Verdicts follow from pre-stated contrasts, as in :mod:`ldmscale.analysis.findings`. Super-resolution is drawn without
guidance and scored on one set of patches, so there is no tuning split: where a checkpoint or a model is the best of
several, it was chosen and is reported on the same patches, and the note says so and whom that favours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from ldmscale.analysis.dreambooth import (
    CEILINGS,
    DREAMBOOTH,
    MEASURES,
    by_model,
    difference,
    finetuned_minus_before,
    larger_minus_smaller,
)
from ldmscale.analysis.findings import CANNOT_TELL, NOT_SUPPORTED, SUPPORTED, Finding, Number, model_size, verdict_of
from ldmscale.analysis.frontier import default_budgets, largest_model
from ldmscale.analysis.intervals import LEVEL, interval
from ldmscale.analysis.selection import HELDOUT, replicates
from ldmscale.analysis.study import SAMPLER_NAMES
from ldmscale.cells.cell import Cell

SUPERRES = "superres"
FEW_STEPS = 20  # the left panel of Fig. 12
LONGER = 2  # "longer finetuning" is at least so many times the steps
NO_INTERVALS = " There are no bootstrap replicates, so no intervals."


def downstream_findings(scores: pd.DataFrame) -> list[Finding]:
    """The findings on the tasks that ``scores`` has rows of, in the paper's order; none where it has no such rows."""
    found = []
    if (scores["task"] == SUPERRES).any():
        rows = superres_rows(scores)
        found += [superres_size(rows), superres_longer(rows)]
    if (scores["task"] == DREAMBOOTH).any():
        found.append(dreambooth_size(dreambooth_rows(scores)))
    if (scores["task"] == SUPERRES).any():
        found.append(superres_small_budget(scores[scores["task"] == SUPERRES]))
    return found


def superres_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """The super-resolution rows at the sampling setting of the finetuning curves, by model size and train_step.

    That is the (sampler, steps, cfg) with most rows, which are its checkpoints; of several the one of most steps.
    """
    return _main_setting(scores[scores["task"] == SUPERRES]).sort_values(["params", "model", "train_step"])


def dreambooth_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """DreamBooth's rows, one a model and checkpoint (see :func:`by_model`), at the setting that has most of them."""
    return _main_setting(by_model(scores[scores["task"] == DREAMBOOTH]))


def _main_setting(rows: pd.DataFrame) -> pd.DataFrame:
    sizes = rows.groupby(["sampler", "steps", "cfg"]).size().reset_index(name="rows")
    best = sizes.sort_values(["rows", "steps", "sampler", "cfg"]).iloc[-1]
    return rows[(rows["sampler"] == best.sampler) & (rows["steps"] == best.steps) & (rows["cfg"] == best.cfg)]


def last_common(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows at the greatest train_step, above 0, that all models have; empty where there is none."""
    steps = [set(mine["train_step"]) for _, mine in rows.groupby("model")]
    return rows[rows["train_step"] == max(set.intersection(*steps) - {0}, default=-1)]


def _cannot_tell(id: str, section: str, statement: str, why: str) -> Finding:
    return Finding(id, section, statement, CANNOT_TELL, [], why)


def _setting(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return f"{first.steps}-step {SAMPLER_NAMES[first.sampler]}"


def superres_size(rows: pd.DataFrame) -> Finding:
    """Fig. 4: super-resolution FID against model size after the same finetuning, judged as Table 1's model size is.

    ``rows``: see :func:`superres_rows`.
    """
    id, section = "superres-size", "Fig. 4"
    statement = "After the same finetuning, a larger pretrained model has a better super-resolution FID."
    here = last_common(rows)
    if here["model"].nunique() < 2:
        return _cannot_tell(id, section, statement, "The run has no finetuning step common to two or more models.")
    found = model_size(here.assign(split=HELDOUT), [Cell.parse(path) for path in here["cell"]])
    ends = here.sort_values("params").iloc[[-1, 0]]
    features, (large, small) = here["perceptual_features"].iloc[0], ends["model"]
    perceptual = difference(f"Perceptual distance ({features}) of {large} minus that of {small}", ends, "perceptual")
    note = f"{found.note} After {here['train_step'].iloc[0]} finetuning steps, {_setting(here)}."
    numbers = [*found.numbers, perceptual]
    return replace(found, id=id, section=section, statement=statement, numbers=numbers, note=note)


def superres_longer(rows: pd.DataFrame) -> Finding:
    """Fig. 4: whether the smallest model, finetuned for longer, reaches the largest finetuned for less.

    The contrast is the FID of the largest model at its last checkpoint of at most half the smallest's longest
    finetuning, minus the best FID of the smallest at any checkpoint.
    """
    id, section = "superres-longer", "Fig. 4"
    statement = "A small model cannot make up for its size in super-resolution by longer finetuning."
    rows = rows[rows["train_step"] > 0]
    sizes = rows.sort_values("params")["model"].unique()
    if len(sizes) < 2:
        return _cannot_tell(id, section, statement, "The run has fewer than two finetuned models.")
    small, large = (rows[rows["model"] == name].reset_index(drop=True) for name in (sizes[0], sizes[-1]))
    longest = small["train_step"].max()
    short = large[LONGER * large["train_step"] <= longest]
    if short.empty:
        why = f"{sizes[-1]} has no checkpoint at half of {sizes[0]}'s {longest} finetuning steps or before."
        return _cannot_tell(id, section, statement, why)
    best = small.nsmallest(1, "fid")

    def contrast(large_row: pd.DataFrame, before: str = "") -> Number:
        label = (
            f"{before}FID of {sizes[-1]} after {large_row['train_step'].iloc[0]} finetuning steps minus the best FID "
            f"of {sizes[0]}, after {best['train_step'].iloc[0]} of {longest}"
        )
        return difference(label, pd.concat([large_row, best]), "fid")

    first = contrast(short.nlargest(1, "train_step"))
    numbers = [first]
    affordable = large[large["train_gflops"] <= small["train_gflops"].max() * (1 + 1e-6)]
    if len(affordable):
        numbers.append(contrast(affordable.nlargest(1, "train_step"), "Within the same finetuning compute: "))
    if large["train_step"].max() > short["train_step"].max():
        numbers.append(contrast(large.nlargest(1, "train_step"), "At the end: "))
    verdict = verdict_of(first.low, first.high)
    note = (
        f"{first}. {_setting(rows)}. The best checkpoint of {sizes[0]} was chosen on the patches that it is reported "
        "on, which favours it, and so speaks against the paper."
    )
    return Finding(id, section, statement, verdict, numbers, note + _no_replicates(numbers))


def superres_small_budget(rows: pd.DataFrame) -> Finding:
    """Fig. 12, left: super-resolution at a sampling cost that the largest model spends in few steps.

    At the smallest cost at which the largest was sampled, each smaller model takes the most steps (at most
    :data:`FEW_STEPS`) that the cost affords; nothing is chosen by FID. Supported if some smaller model is better beyond
    an interval at a level shared between the models, not supported if every one is worse beyond its 95% interval.
    """
    id, section = "superres-small-budget", "Fig. 12"
    statement = (
        f"In super-resolution with at most {FEW_STEPS} steps, a smaller model beats the largest at the same "
        "sampling cost."
    )
    rows = last_common(rows)
    rows = rows[(rows["sampler"] == "ddim") & (rows["steps"] <= FEW_STEPS)]
    if rows["model"].nunique() < 2:
        why = f"The run has no two models finetuned alike and sampled by DDIM in at most {FEW_STEPS} steps."
        return _cannot_tell(id, section, statement, why)
    largest = largest_model(rows)
    by_budget = {budget: _smaller_minus_largest(rows, budget, largest) for budget in default_budgets(rows)}
    by_budget = {budget: pairs for budget, pairs in by_budget.items() if pairs}
    if not by_budget:
        why = f"No smaller model was sampled at a cost at which {largest} was."
        return _cannot_tell(id, section, statement, why)
    budget, pairs = next(iter(by_budget.items()))
    numbers = [number for number, _ in pairs]
    shared = 1 - (1 - LEVEL) / len(pairs)
    wins = sum(interval(number.value, reps, shared)[1] < 0 for number, reps in pairs)
    losses = sum(number.low > 0 for number in numbers)
    verdict = SUPPORTED if wins else NOT_SUPPORTED if losses == len(pairs) else CANNOT_TELL
    for cost in list(by_budget)[1:]:
        best = min((number for number, _ in by_budget[cost]), key=lambda number: number.value)
        numbers.append(best._replace(label=f"{best.label} (the best smaller model, chosen on the same patches)"))
    steps = int(rows.loc[rows["model"] == largest, "steps"].min())
    note = (
        f"At cost {budget:.3g}, which {largest} spends in {steps} step{'s' * (steps != 1)}, {wins} of {len(pairs)} "
        f"smaller models are better beyond an interval at a level shared between them, and {losses} worse beyond their "
        f"own. Each takes the most steps that the cost affords; after {rows['train_step'].iloc[0]} finetuning steps."
    )
    return Finding(id, section, statement, verdict, numbers, note + _no_replicates(numbers))


def _smaller_minus_largest(rows: pd.DataFrame, budget: float, largest: str) -> list[tuple[Number, Any]]:
    """For each smaller model, with the most steps within ``budget``: its FID minus the largest's, and replicates."""
    here = rows[rows["cost"] <= budget * (1 + 1e-6)].sort_values(["params", "model", "steps"])
    here = here.drop_duplicates("model", keep="last").set_index("model", drop=False)
    found = []
    for model in here["model"]:
        if model != largest:
            pair = here.loc[[model, largest]]
            a, b = pair["steps"]
            label = f"Cost {budget:.3g}: FID of {model} ({a} steps) minus FID of {largest} ({b} steps)"
            reps = replicates(pair, "fid")
            found.append((difference(label, pair, "fid"), reps[0] - reps[1]))
    return found


def dreambooth_size(table: pd.DataFrame) -> Finding:
    """Fig. 6: DINO of the largest model minus that of the smallest, after the same finetuning.

    ``table``: see :func:`dreambooth_rows`.
    """
    id, section = "dreambooth-size", "Fig. 6"
    statement = "After DreamBooth finetuning, the largest model's pictures are nearer the subject than the smallest's."
    here = last_common(table)
    if len(here) < 2:
        return _cannot_tell(id, section, statement, "The run has no finetuning step common to two or more models.")
    dino = larger_minus_smaller(here, "dino")
    ends, rises = dino[0], dino[1:]
    numbers = [*dino, *(larger_minus_smaller(here, measure)[0] for measure in MEASURES if measure != "dino")]
    note = (
        f"{ends}. Over {here['subjects'].iloc[0]} subjects, after {here['train_step'].iloc[0]} finetuning steps, "
        f"{_setting(here)}; DINO by {here['subject_features'].iloc[0]}, CLIP-I by {here['clip_features'].iloc[0]}. "
        "The paper gives pictures only, in which it sees two tiers, 83M to 223M and 318M to 2B."
    )
    if rises:
        step = max(rises, key=lambda number: number.value)
        note += f" The largest rise from one size to the next: {step}."
    verdict = verdict_of(-ends.high, -ends.low)
    return Finding(id, section, statement, verdict, numbers, note + _no_replicates(numbers))


def _no_replicates(numbers: Sequence[Number]) -> str:
    return NO_INTERVALS if all(pd.isna(number.low) for number in numbers) else ""


# ---------------------------------------------------------------------------------------------------------------------
# Checks


@dataclass(frozen=True)
class Check:
    """Something that must hold if training and metrics work, and no claim of the paper.

    ``numbers`` has one contrast a model, which should lie below zero (``lower``) or above. ``beside``: for comparison.
    """

    statement: str
    lower: bool
    numbers: list[Number]
    beside: str = ""

    @property
    def counts(self) -> tuple[int, int]:
        """In how many models it holds beyond the interval, and in how many its opposite does."""
        below, above = sum(n.high < 0 for n in self.numbers), sum(n.low > 0 for n in self.numbers)
        return (below, above) if self.lower else (above, below)


def checks(scores: pd.DataFrame, baselines: Sequence[Mapping[str, Any]] = ()) -> list[Check]:
    """The checks that ``scores`` allows; ``baselines`` are super-resolution's score rows without a model.

    Finetuning must lower super-resolution's FID and perceptual distance, though not below those of the autoencoder's
    own reconstruction, and raise DreamBooth's DINO and CLIP-I.
    """
    found = []
    if (scores["task"] == SUPERRES).any():
        found += _superres_checks(superres_rows(scores), {row["baseline"]: row for row in baselines})
    if (scores["task"] == DREAMBOOTH).any():
        table = dreambooth_rows(scores)
        for measure, real in CEILINGS.items():
            beside = f"real images among themselves: {table[real].iloc[0]:.3g}"
            statement = f"DreamBooth: finetuning raises {MEASURES[measure]}"
            found.append(Check(statement, False, finetuned_minus_before(table, measure), beside))
    return [check for check in found if check.numbers]


def _superres_checks(rows: pd.DataFrame, baselines: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    last = rows[rows["train_step"] > 0].drop_duplicates("model", keep="last")
    found = []
    for metric, name in (("fid", "FID"), ("perceptual", "the perceptual distance")):
        beside = ", ".join(f"{key} {row[metric]:.3g}" for key, row in baselines.items())
        changes = finetuned_minus_before(rows, metric)
        found.append(Check(f"Super-resolution: finetuning lowers {name}", True, changes))
        if "reconstruction" in baselines:
            columns = [metric, f"{metric}_reps"]
            floor = pd.DataFrame([baselines["reconstruction"]])[columns]
            above = [
                difference(model, pd.concat([mine[columns], floor]), metric)
                for model, mine in last.groupby("model", sort=False)
            ]
            statement = f"Super-resolution: {name} stays above that of the autoencoder's reconstructions"
            found.append(Check(statement, False, above, beside))
    return found
