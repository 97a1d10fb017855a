"""DreamBooth's metrics of each model over all of its subjects, with intervals, and differences of them.

A replicate resamples the prompts within each subject (of PRES the class images), and keeps all subjects: the intervals
are about other prompts and starting noises for *these* subjects. Subjects with as many prompts share the resample.
Theirs are mostly the same templates, so a template that is hard for one subject is hard for the others too, and drawing
for each subject by itself would take that common luck for many independent draws.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from ldmscale.analysis.findings import Number
from ldmscale.analysis.intervals import interval
from ldmscale.analysis.selection import replicates
from ldmscale.errors import UserError
from ldmscale.metrics.bootstrap import resample_counts

DREAMBOOTH = "dreambooth"
MEASURES = {"dino": "DINO", "clip_i": "CLIP-I", "clip_t": "CLIP-T", "pres": "PRES", "div": "DIV"}
CEILINGS = {"dino": "real_dino", "clip_i": "real_clip_i"}
SETTING = ["model", "train_step", "sampler", "steps", "cfg"]
REPLICATES, SEED = 1000, 0
_KEPT = ["filters", "params", "gflops", "norm_cost", "subject_features", "clip_features", "diversity_features"]


def by_model(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a model, train_step, sampler, steps and cfg, from the table's DreamBooth ``rows`` (one a subject).

    Columns: those of :data:`SETTING`, the model's sizes and the features' names; ``subjects`` (how many); each of
    :data:`MEASURES` (the mean over prompts, of PRES over class images, then over subjects) with its ``<measure>_reps``
    [1000], of the same resample in every row, so that differences pair; ``real_dino`` and ``real_clip_i``, what the
    subjects' real images score against each other. Smallest model first, then by train_step.

    Raises:
        UserError: a model lacks a subject that others have or has it twice, or a subject's lists differ in length.
    """
    rows = rows[rows["task"] == DREAMBOOTH]
    _check_subjects(rows)
    counts: dict[int, np.ndarray] = {}
    table = []
    for key, mine in rows.groupby(SETTING, sort=False):
        row = dict(zip(SETTING, key, strict=True)) | {name: mine[name].iloc[0] for name in _KEPT}
        row |= {"subjects": len(mine)} | {real: float(mine[real].mean()) for real in CEILINGS.values()}
        for measure in MEASURES:
            lists = [np.asarray(values, np.float64) for values in mine[measure]]
            row[measure] = float(np.mean([values.mean() for values in lists]))
            for n in {len(values) for values in lists} - set(counts):
                counts[n] = resample_counts(n, REPLICATES, SEED)
            row[f"{measure}_reps"] = np.mean([counts[len(v)] @ v / len(v) for v in lists], axis=0)
        table.append(row)
    return pd.DataFrame(table).sort_values(["params", *SETTING], ignore_index=True)


def _check_subjects(rows: pd.DataFrame) -> None:
    subjects = set(rows["subject"])
    for (model, step, *_), mine in rows.groupby(SETTING, sort=False):
        where = f"of model {model} after {step} steps of finetuning"
        missing = subjects - set(mine["subject"])
        if missing:
            raise UserError(
                f"the scores table has no DreamBooth row for the subject '{min(missing)}' {where}, though it has for "
                "others: models compare over the same subjects only"
            )
        if mine["subject"].duplicated().any():
            subject = mine.loc[mine["subject"].duplicated(), "subject"].iloc[0]
            raise UserError(f"the scores table holds the subject '{subject}' {where} twice at one sampling setting")
    for subject, mine in rows.groupby("subject"):
        for measure, name in MEASURES.items():
            sizes = {np.size(values) for values in mine[measure]}
            if len(sizes) > 1:
                raise UserError(
                    f"the subject '{subject}' has {name} of {min(sizes)} prompts or class images in one row of the "
                    f"scores table and of {max(sizes)} in another: score all cells alike"
                )


def finetuned_minus_before(table: pd.DataFrame, measure: str) -> list[Number]:
    """For each model of ``table`` (of one sampling setting, as :func:`by_model` makes): last checkpoint minus step 0.

    Labels are the models. Those without a step 0, or with nothing else, are left out.
    """
    found = []
    for model, mine in table.groupby("model", sort=False):
        before, after = mine[mine["train_step"] == 0], mine.nlargest(1, "train_step")
        if len(before) and after["train_step"].iloc[0] > 0:
            found.append(difference(model, pd.concat([after, before]), measure))
    return found


def larger_minus_smaller(table: pd.DataFrame, measure: str) -> list[Number]:
    """The largest model minus the smallest, then each model minus the next smaller, of one row a model in ``table``.

    Two models have the first alone, fewer none.
    """
    table = table.sort_values(["params", "model"])
    last = len(table) - 1
    pairs = [(last, 0)] * (last > 0) + [(i + 1, i) for i in range(last) if last > 1]
    labels = {i: name for i, name in enumerate(table["model"])}
    name = MEASURES[measure]
    return [
        difference(f"{name} of {labels[i]} minus {name} of {labels[j]}", table.iloc[[i, j]], measure) for i, j in pairs
    ]


def difference(label: str, rows: pd.DataFrame, metric: str) -> Number:
    """``metric`` of the first of two rows minus that of the second, with the interval of their paired replicates."""
    (a, b), reps = rows[metric].to_numpy(float), replicates(rows, metric)
    return Number(label, float(a - b), *interval(a - b, reps[0] - reps[1]))
