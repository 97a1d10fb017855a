"""Tests of what the paper says of its pictures alone: DreamBooth's, and those between two prompts."""

from __future__ import annotations

import numpy as np

from ldmscale.analysis.claims_superres import setting
from ldmscale.analysis.claims_training import verdict_above
from ldmscale.analysis.downstream import dreambooth_rows, last_common
from ldmscale.analysis.dreambooth import MEASURES, larger_minus_smaller
from ldmscale.analysis.findings import Outcome, Run, Unclear, no_replicates, number, verdict_of
from ldmscale.analysis.interpolation import way
from ldmscale.analysis.selection import replicates


def _finetuned_alike(run: Run):
    run.of("dreambooth")
    here = last_common(dreambooth_rows(run.scores)).sort_values(["params", "model"])
    if len(here) < 2:
        raise Unclear("The run has no finetuning step common to two or more models.")
    return here


def _about(here) -> str:
    return (
        f"Over {here['subjects'].iloc[0]} subjects, after {here['train_step'].iloc[0]} finetuning steps, "
        f"{setting(here)}; DINO by {here['subject_features'].iloc[0]}, CLIP-I by {here['clip_features'].iloc[0]}."
    )


def dreambooth_size(run: Run, metric: str) -> Outcome:
    """``metric`` (larger is better) of the largest model minus that of the smallest, after the same finetuning."""
    here = _finetuned_alike(run)
    ends, *rises = larger_minus_smaller(here, metric)
    numbers = [ends, *rises, *(larger_minus_smaller(here, other)[0] for other in MEASURES if other != metric)]
    note = f"{ends}. {_about(here)}"
    if rises:
        note += f" The largest rise from one size to the next: {max(rises, key=lambda found: found.value)}."
    return Outcome(verdict_above(ends.low, ends.high), numbers, note + no_replicates(numbers))


def dreambooth_tiers(run: Run, metric: str, boundary: float) -> Outcome:
    """Whether ``metric`` steps up between two tiers of models, those of ``norm_cost`` below ``boundary`` and the rest.

    The contrast is linear: the rise for each doubling of parameters across the boundary, minus the mean of that over
    the other steps from one size to the next. Tiers are supported if it lies above zero.
    """
    here = _finetuned_alike(run)
    upper = (here["norm_cost"] >= boundary).to_numpy()
    if upper.all() or not upper.any() or len(here) < 3:
        raise Unclear("This needs models on both sides of the boundary between the tiers, and three in all.")
    at = int(upper.argmax()) - 1
    values, reps = here[metric].to_numpy(float), replicates(here, metric)
    doublings = np.diff(np.log2(here["params"].to_numpy(float)))
    table = np.diff(np.column_stack([values, reps]), axis=0) / doublings[:, None]
    contrast = table[at] - np.delete(table, at, axis=0).mean(axis=0)
    models, name = here["model"].tolist(), MEASURES[metric]
    where = f"from {models[at]} to {models[at + 1]}"
    found = number(f"{name} for each doubling of parameters {where}, minus elsewhere", contrast[0], contrast[1:])
    note = f"{found}. The paper's tiers divide between 223M and 318M, here by cost {where}. {_about(here)}"
    return Outcome(verdict_above(found.low, found.high), [found], note + no_replicates([found]))


def straighter_with_size(run: Run, metric: str) -> Outcome:
    """Whether the largest model's way between two prompts is straighter than the smallest's: the difference of bends
    (see :class:`ldmscale.analysis.interpolation.Way`; the mean over pairs of prompts), below zero if supported."""
    rows = run.of("interpolation")
    models = rows.sort_values(["params", "model"])["model"].unique()
    if len(models) < 2 or rows.groupby("model")["cell"].nunique().max() > 1:
        raise Unclear("This needs one cell for each of two or more models.")
    bends = {
        model: [way(mine) for _, mine in rows[rows["model"] == model].groupby("pair")]
        for model in (models[-1], models[0])
    }
    for model, ways in bends.items():
        if any(np.isnan(one.bend) for one in ways):
            raise Unclear(f"The images of {model} do not tell the two prompts apart, so there is no way between them.")
    large, small = (np.mean([[one.bend, *one.reps] for one in ways], axis=0) for ways in bends.values())
    found = number(f"{metric.capitalize()} of {models[-1]} minus that of {models[0]}", *_split(large - small))
    note = (
        f"{found}. The bend is the largest distance of the images' progress, by CLIP, from that of the text states; "
        "0 is straight."
    )
    return Outcome(verdict_of(found.low, found.high), [found], note + no_replicates([found]))


def _split(table: np.ndarray) -> tuple[float, np.ndarray]:
    return float(table[0]), table[1:]
