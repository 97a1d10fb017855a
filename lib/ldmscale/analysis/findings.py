"""How a statement of the paper is judged: a pre-stated contrast, its 95% interval, and the verdict that follows.

An interval from paired bootstrap replicates that is clear of zero on the paper's side is *supported*, clear on the
other side *not supported*, anything else *cannot tell*. The intervals cover the choice of prompts and starting noises;
they do not cover training again from another seed. Which statements are judged, and by what, is in claims.yaml.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from ldmscale.analysis.intervals import LEVEL, interval
from ldmscale.analysis.selection import METRIC_NAMES, METRICS, heldout, replicates, select
from ldmscale.cells.cell import Cell

SUPPORTED, NOT_SUPPORTED, CANNOT_TELL = "supported", "not supported", "cannot tell"
# What the other tasks are measured by: the sign of an improvement, and the name.
SIGNS = {**METRICS, "perceptual": -1, "is1": +1, "dino": +1, "clip_i": +1, "bend": -1}
NAMES = {
    **METRIC_NAMES,
    "perceptual": "perceptual distance",
    "is1": "Inception score",
    "dino": "DINO",
    "clip_i": "CLIP-I",
    "bend": "bend",
}


class Number(NamedTuple):
    """A measured value with its 95% interval (NaN where there is none; infinity: not within the run)."""

    label: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        between = "" if math.isnan(self.low) else f" (95% interval {say(self.low)} to {say(self.high)})"
        return f"{self.label}: {say(self.value)}{between}"


@dataclass(frozen=True)
class Finding:
    """A statement of the paper and what this run says about it."""

    id: str
    section: str
    statement: str
    verdict: str
    numbers: list[Number]
    note: str


class Outcome(NamedTuple):
    """What a test says of a statement: the verdict, the numbers behind it (the deciding ones first), and a note."""

    verdict: str
    numbers: list[Number]
    note: str


class Unclear(Exception):
    """The run cannot speak to a statement; the message says why."""


@dataclass(frozen=True, eq=False)
class Run:
    """What a test reads: the scores table and its experiments' cells."""

    scores: pd.DataFrame
    experiments: Mapping[str, Sequence[Cell]]

    def rows(self, *experiments: str) -> pd.DataFrame:
        """The rows (both splits) of the experiments' cells; :class:`Unclear` where the run has not all of them."""
        for name in experiments:
            if not self.experiments.get(name):
                raise Unclear(f"The experiment '{name}' is not part of this run.")
        return select(self.scores, [cell for name in experiments for cell in self.experiments[name]])

    def of(self, task: str) -> pd.DataFrame:
        """The rows of ``task``; :class:`Unclear` where there are none."""
        rows = self.scores[self.scores["task"] == task]
        if rows.empty:
            raise Unclear(f"The task '{task}' is not part of this run.")
        return rows


def verdict_of(low: float, high: float) -> str:
    """The verdict on "this contrast is below zero", from its interval."""
    if high < 0:
        return SUPPORTED
    return NOT_SUPPORTED if low > 0 else CANNOT_TELL


def improves(low: float, high: float, metric: str) -> str:
    """The verdict on "this change of ``metric`` is an improvement", from its interval."""
    return verdict_of(low, high) if SIGNS[metric] < 0 else verdict_of(-high, -low)


def every(verdicts: Sequence[str], refutations: Sequence[str]) -> str:
    """The verdict on "all of these hold": each for itself, refuted by one of ``refutations``.

    All must be clear for the whole to be, so that no level is shared between them. One that is clear the other way is
    enough to refute, and there the level is to be shared (see :func:`shared_level`).
    """
    if NOT_SUPPORTED in refutations:
        return NOT_SUPPORTED
    return SUPPORTED if set(verdicts) == {SUPPORTED} else CANNOT_TELL


def shared_level(count: int) -> float:
    """The level of each of ``count`` intervals that hold all at once at :data:`LEVEL` (Bonferroni)."""
    return 1 - (1 - LEVEL) / count


def say(value: float) -> str:
    """A value to four significant digits; "not within this run" for an infinity."""
    return "not within this run" if math.isinf(value) else f"{float(f'{value:.4g}'):g}"


def number(label: str, value: float, reps: np.ndarray) -> Number:
    """A value with the 95% interval of its replicates [R]; R may be 0."""
    return Number(label, float(value), *interval(value, reps))


def no_replicates(numbers: Sequence[Number]) -> str:
    """What a note says where no number has an interval."""
    return " There are no bootstrap replicates, so no intervals." if all(math.isnan(n.low) for n in numbers) else ""


def by_doubling(params: Sequence[float]) -> np.ndarray:
    """Weights [M] whose product with values [M] is their least-squares slope in log2(params)."""
    x = np.log2(np.asarray(params, float))
    return (x - x.mean()) / np.sum((x - x.mean()) ** 2)


def model_size(scores: pd.DataFrame, cells: Sequence[Cell], metric: str = "fid") -> Finding:
    """Table 1: ``metric`` against model size, of one cell a model (held-out rows).

    The contrast is the slope of the metric in log2(parameters). A pair of neighbouring sizes that is reversed beyond
    its interval (at a level shared between the pairs) refutes the statement even where the slope supports it.

    Raises:
        Unclear: there are not two models, or one has several cells.
    """
    rows, name = heldout(select(scores, cells)), NAMES[metric]
    if rows["model"].nunique() < 2 or rows["model"].duplicated().any():
        raise Unclear("This needs one cell for each of two or more models.")
    title = name[:1].upper() + name[1:]
    values, reps = rows[metric].to_numpy(float), replicates(rows, metric)
    weights, models = by_doubling(rows["params"]), rows["model"].tolist()
    slope = number(f"{title} for each doubling of parameters", weights @ values, weights @ reps)
    label = f"{title} of {models[-1]} minus {name} of {models[0]}"
    ends = number(label, values[-1] - values[0], reps[-1] - reps[0])
    pairs = len(models) - 1
    reversed_pairs, neighbours = [], []
    for i in range(pairs):
        pair_reps = reps[i + 1] - reps[i]
        label = f"{title} of {models[i + 1]} minus {name} of {models[i]}"
        neighbours.append(number(label, values[i + 1] - values[i], pair_reps))
        if improves(*interval(neighbours[-1].value, pair_reps, shared_level(pairs)), metric) == NOT_SUPPORTED:
            reversed_pairs.append(f"{models[i]} to {models[i + 1]}")
    better = sum(SIGNS[metric] * n.value > 0 for n in neighbours)
    verb, other = ("falls", "rises") if SIGNS[metric] < 0 else ("rises", "falls")
    note = f"{slope}. {title} {verb} at {better} of the {pairs} steps up in size."
    verdict = improves(slope.low, slope.high, metric)
    if reversed_pairs:
        verdict = NOT_SUPPORTED
        note += f" It {other} beyond the interval from {', '.join(reversed_pairs)}."
    numbers = [slope, ends, *(neighbours if pairs > 1 else [])]
    statement = f"At the same sampler, step count and guidance weight, a larger model has a better {name}."
    return Finding("model-size", "Table 1", statement, verdict, numbers, note + no_replicates(numbers))
