"""The rows that finetuned models are judged by, and checks of the finetuning itself.

Super-resolution is drawn without guidance and scored on one set of patches, so there is no tuning split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ldmscale.analysis.dreambooth import CEILINGS, DREAMBOOTH, MEASURES, by_model, difference, finetuned_minus_before
from ldmscale.analysis.findings import Number

SUPERRES = "superres"


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
