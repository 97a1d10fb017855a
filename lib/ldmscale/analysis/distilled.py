"""Distilled models against undistilled ones: the steps that distillation saves, and the paper's findings on it.

Every model, distilled or not, stands at the guidance weight that its tuning prompts choose for each step count, and is
reported on held-out ones. Verdicts follow from pre-stated contrasts, as in :mod:`ldmscale.analysis.findings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from ldmscale.analysis.dreambooth import difference
from ldmscale.analysis.findings import CANNOT_TELL, NOT_SUPPORTED, SUPPORTED, Finding, Number, model_size, verdict_of
from ldmscale.analysis.frontier import at_budgets, winners
from ldmscale.analysis.intervals import LEVEL, centred
from ldmscale.analysis.selection import METRICS, chosen_on_tuning, heldout, replicates, select
from ldmscale.analysis.study import format_count
from ldmscale.cells.cell import Cell

CODI, GUIDED = "codi", "guided"
FEW_STEPS = 4  # the steps that the paper distils to
ALIKE = 2.0  # acceleration factors within this factor of each other count as alike
NO_INTERVALS = " There are no bootstrap replicates, so no intervals."


def best_setting(rows: pd.DataFrame, metric: str = "fid") -> pd.DataFrame:
    """One held-out row a task, model, stage of training and step count, of the last weights of each stage.

    The guidance weight (and the sampler, where ``rows`` have several) is the best by ``metric`` on the tuning split,
    and intervals are conditional on that choice. Smallest model first.
    """
    stage = rows["weights"].str.replace("-[^-]*$", "", regex=True)
    last = rows.groupby([rows["task"], rows["model"], stage])["train_step"].transform("max")
    return chosen_on_tuning(rows[rows["train_step"] == last], ["task", "model", "weights", "steps"], metric)


def student_steps(weights: str) -> int:
    """The steps that a guided student was halved to: 16 of ``guided_s16-5000``."""
    return int(weights.rpartition("-")[0].rpartition("_s")[2])


# ---------------------------------------------------------------------------------------------------------------------
# Acceleration


@dataclass(frozen=True)
class Acceleration:
    """Undistilled steps that give the score of ``model`` distilled, over the distilled model's own steps.

    The paper draws an acceleration factor without a definition; this one is ours. ``value`` and its 95% interval
    ``low`` to ``high`` are infinite where the undistilled model did not get so far in any of its step counts, and minus
    infinity where it was better already in the fewest. Factors from ``least`` to ``most`` are within the run.
    ``reps``: the bootstrap replicates [R].
    """

    model: str
    value: float
    low: float
    high: float
    least: float
    most: float
    reps: np.ndarray = field(repr=False, compare=False)

    def words(self, value: float | None = None) -> str:
        """``value`` (default: the factor itself) as "5.2", "more than 12.5" or "less than 0.5"."""
        value = self.value if value is None else value
        if np.isinf(value):
            return f"more than {self.most:.3g}" if value > 0 else f"less than {self.least:.3g}"
        return f"{value:.3g}"

    def __str__(self) -> str:
        ends = [self.words(end) for end in (self.low, self.high) if not np.isnan(end)]
        told = f"{self.model} {self.words()}"
        return told if set(ends) <= {self.words()} else f"{told} ({' to '.join(ends)})"

    @property
    def number(self) -> Number:
        """The factor for a list of numbers; infinities read "not within this run" there."""
        label = f"Acceleration factor of {self.model} ({self.least:.3g} to {self.most:.3g} are within this run)"
        return Number(label, self.value, self.low, self.high)

    def bounds(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is known of ``values`` [N]: logarithms of the least and of the greatest that each may be."""
        with np.errstate(divide="ignore"):
            lower = np.log(np.where(np.isposinf(values), self.most, np.maximum(values, 0)))
            return lower, np.log(np.where(np.isneginf(values), self.least, np.maximum(values, 0)))


def equal_steps(steps: np.ndarray, losses: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The fewest steps that give losses ``target`` [N], where ``steps`` [S], ascending, give ``losses`` [S,N] -> [N].

    The loss, FID or another number that is the better the lower, is linear in log(steps) between step counts; beyond
    them there is no number: infinity where no step count gets to the target, minus infinity where the first is better
    than it.
    """
    reached = losses <= target
    first, column = reached.argmax(axis=0), np.arange(len(target))
    before = np.maximum(first - 1, 0)
    above, below = losses[before, column], losses[first, column]
    share = (above - target) / np.where(first > 0, above - below, 1.0)
    log = np.log(steps)
    inside = np.exp(log[before] + share * (log[first] - log[before]))
    found = np.where(first > 0, inside, np.where(losses[0] == target, steps[0], -np.inf))
    return np.where(reached.any(axis=0), found, np.inf)


def acceleration(
    distilled: pd.DataFrame, undistilled: pd.DataFrame, steps: int = FEW_STEPS, metric: str = "fid"
) -> list[Acceleration]:
    """The acceleration factor by ``metric`` of each model that both tables have, smallest first.

    ``distilled`` at ``steps`` has one row a model, ``undistilled`` one a model and step count (:func:`best_setting`).
    Replicates are paired over all of a model's rows.
    """
    found = []
    few = distilled[distilled["steps"] == steps]
    for model in few["model"]:
        curve = undistilled[undistilled["model"] == model].sort_values("steps")
        if curve.empty:
            continue
        rows = pd.concat([curve, few[few["model"] == model]])
        counts, values = curve["steps"].to_numpy(float), -METRICS[metric] * rows[metric].to_numpy(float)
        moved = centred(values, -METRICS[metric] * replicates(rows, metric))
        value = equal_steps(counts, values[:-1, None], values[-1:])[0] / steps
        reps = equal_steps(counts, moved[:-1], moved[-1]) / steps
        least, most = counts[[0, -1]] / steps
        found.append(Acceleration(model, float(value), *_quantiles(reps, reps), least, most, reps))
    return found


def _quantiles(lower: np.ndarray, upper: np.ndarray) -> tuple[float, float]:
    """The low end of the replicates ``lower`` and the high end of ``upper``; NaN where there are none."""
    if len(lower) < 2:
        return float("nan"), float("nan")
    tail = (1 - LEVEL) / 2  # "nearest", since infinities do not interpolate
    low, high = np.quantile(lower, tail, method="nearest"), np.quantile(upper, 1 - tail, method="nearest")
    return float(low), float(high)


def relative(a: Acceleration, b: Acceleration) -> Number:
    """The factor ``a`` over the factor ``b``; its interval allows for all that a factor out of the run may be."""
    lower_a, upper_a = a.bounds(np.array([a.value, *a.reps]))
    lower_b, upper_b = b.bounds(np.array([b.value, *b.reps]))
    low, high = np.exp(lower_a - upper_b), np.exp(upper_a - lower_b)
    value = low[0] if low[0] == high[0] else np.inf  # the two ends agree where both factors are within the run
    label = f"Acceleration factor of {a.model} over that of {b.model}"
    return Number(label, float(value), *_quantiles(low[1:], high[1:]))


# ---------------------------------------------------------------------------------------------------------------------
# Findings


def distilled_findings(scores: pd.DataFrame, experiments: Mapping[str, Sequence[Cell]]) -> list[Finding]:
    """The findings on the distilled tasks that ``scores`` has rows of, in the paper's order; none without such rows.

    Undistilled models are those of the experiment ``grid``, sampled by DDIM.
    """
    grid = select(scores, [cell for cell in experiments.get("grid", ()) if cell.sampler == "ddim"])
    undistilled = best_setting(grid)
    found = []
    if (scores["task"] == CODI).any():
        codi = best_setting(scores[scores["task"] == CODI])
        timesteps = best_setting(select(scores, experiments.get("codi_timesteps", ())))
        found += [codi_few_steps(codi, undistilled, grid, timesteps), codi_acceleration(codi, undistilled)]
        found += [codi_size(codi), codi_small_undistilled(codi, grid)]
    if (scores["task"] == GUIDED).any():
        found.append(guided_few_steps(best_setting(scores[scores["task"] == GUIDED]), undistilled))
    return found


def _cannot_tell(id: str, section: str, statement: str, why: str) -> Finding:
    return Finding(id, section, statement, CANNOT_TELL, [], why)


def _no_replicates(numbers: Sequence[Number]) -> str:
    return NO_INTERVALS if all(pd.isna(number.low) for number in numbers) else ""


def _pairs(a: pd.DataFrame, b: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Each model that both tables have in :data:`FEW_STEPS`, with its two rows, that of ``a`` first."""
    both = [rows[rows["steps"] == FEW_STEPS].set_index("model", drop=False) for rows in (a, b)]
    models = [model for model in both[0].index if model in both[1].index]
    return [(model, pd.concat([rows.loc[[model]] for rows in both])) for model in models]


def codi_few_steps(
    codi: pd.DataFrame, undistilled: pd.DataFrame, grid: pd.DataFrame, timesteps: pd.DataFrame
) -> Finding:
    """Fig. 13, left: each model distilled, in 4 steps, against itself undistilled in as many (:func:`_few_steps`).

    The note says what there was to gain (the teacher's unguided flow is what consistency along it leads to), and what
    of the difference is training's: ``timesteps`` are undistilled models on CoDi's timesteps.
    """
    statement = f"With {FEW_STEPS} steps, every model distilled by CoDi beats itself undistilled."
    found = _few_steps("codi-few-steps", "Fig. 13", statement, codi, undistilled)
    note, numbers = found.note, found.numbers
    flow = heldout(
        grid[(grid["cfg"] == 1) & grid["model"].isin(codi["model"]) & (grid["steps"] == grid["steps"].max())]
    )
    if len(flow):
        each, steps = ", ".join(f"{row.model} {row.fid:.4g}" for row in flow.itertuples()), flow["steps"].iloc[0]
        note += (
            f" The recipe trains consistency along the pretrained model's unguided flow, whose FID in {steps} steps is "
            f"{each}: perfect training ends there, and where {FEW_STEPS} guided steps are no worse, there is nothing "
            "to gain."
        )
    trained = [
        difference(f"{model}: of that, by training and not by CoDi's timesteps", pair, "fid")
        for model, pair in _pairs(codi, timesteps)
    ]
    if trained:
        better = sum(verdict_of(number.low, number.high) == SUPPORTED for number in trained)
        note += (
            f" CoDi also samples at other timesteps; the undistilled model at these is worse than the distilled one "
            f"beyond the interval in {better} of {len(trained)} models, so much is training's."
        )
    return replace(found, note=note, numbers=[*numbers, *trained])


def guided_few_steps(guided: pd.DataFrame, undistilled: pd.DataFrame) -> Finding:
    """Fig. 19: each student halved to 4 steps, in 4 steps, against its undistilled model (:func:`_few_steps`)."""
    statement = f"With {FEW_STEPS} steps, every model distilled with its guidance beats itself undistilled."
    mine = guided[guided["weights"].map(student_steps) == FEW_STEPS]
    return _few_steps("guided-few-steps", "Fig. 19", statement, mine, undistilled)


def _few_steps(id: str, section: str, statement: str, distilled: pd.DataFrame, undistilled: pd.DataFrame) -> Finding:
    """FID distilled minus undistilled in :data:`FEW_STEPS`, a contrast a model.

    Supported if every model is better beyond its interval, not supported if one is worse beyond its interval.
    """
    pairs = _pairs(distilled, undistilled)
    if not pairs:
        why = f"The run has no model both distilled, to {FEW_STEPS} steps, and undistilled, sampled in {FEW_STEPS}."
        return _cannot_tell(id, section, statement, why)
    numbers, chosen = [], []
    for model, pair in pairs:
        label = f"{model}: FID distilled minus undistilled, {FEW_STEPS} steps"
        numbers.append(difference(label, pair, "fid"))
        chosen.append("{}: {:g}, undistilled {:g}".format(model, *pair["cfg"]))
    each = [verdict_of(number.low, number.high) for number in numbers]
    verdict = SUPPORTED if set(each) == {SUPPORTED} else CANNOT_TELL
    verdict = NOT_SUPPORTED if NOT_SUPPORTED in each else verdict
    note = (
        f"{each.count(SUPPORTED)} of {len(each)} models are better distilled beyond the interval, "
        f"{each.count(NOT_SUPPORTED)} worse beyond it. Best CFG on tuning prompts: {'; '.join(chosen)}."
    )
    return Finding(id, section, statement, verdict, numbers, note + _no_replicates(numbers))


def codi_acceleration(codi: pd.DataFrame, undistilled: pd.DataFrame) -> Finding:
    """Fig. 13, left: acceleration factors of the largest and the smallest model, the one over the other.

    Supported if the interval lies within a factor :data:`ALIKE` of 1, not supported if it lies beyond.
    """
    id, section = "codi-acceleration", "Fig. 13"
    statement = "Distillation saves small and large models alike, by the same factor in sampling steps."
    factors = acceleration(codi, undistilled)
    if len(factors) < 2:
        why = f"The run has fewer than two models both distilled, sampled in {FEW_STEPS} steps, and undistilled."
        return _cannot_tell(id, section, statement, why)
    ratio = relative(factors[-1], factors[0])
    verdict = SUPPORTED if ratio.low > 1 / ALIKE and ratio.high < ALIKE else CANNOT_TELL
    verdict = NOT_SUPPORTED if ratio.low > ALIKE or ratio.high < 1 / ALIKE else verdict
    numbers = [ratio, *(factor.number for factor in factors)]
    note = (
        f"{ratio}. Alike is within a factor of {ALIKE:g}. Undistilled steps, of the grid and interpolated within it, "
        f"that give the distilled FID of {FEW_STEPS} steps, over {FEW_STEPS}: {'; '.join(map(str, factors))}. The "
        "paper's factor, about 5, is without a definition."
    )
    return Finding(id, section, statement, verdict, numbers, note + _no_replicates(numbers))


def codi_size(codi: pd.DataFrame) -> Finding:
    """Fig. 13, left: FID against model size among distilled models in 4 steps, judged as Table 1's model size is."""
    id, section = "codi-size", "Fig. 13"
    statement = f"Among models distilled by CoDi, in {FEW_STEPS} steps, a larger one has a better FID."
    here = codi[codi["steps"] == FEW_STEPS]
    if len(here) < 2:
        why = f"The run has fewer than two distilled models sampled in {FEW_STEPS} steps."
        return _cannot_tell(id, section, statement, why)
    found = model_size(here, [Cell.parse(path) for path in here["cell"]])
    note = f"{found.note} Each at its best CFG on tuning prompts."
    return replace(found, id=id, section=section, statement=statement, note=note)


def codi_small_undistilled(codi: pd.DataFrame, grid: pd.DataFrame) -> Finding:
    """Fig. 13, right: what the largest distilled model costs in 4 steps, spent on a smaller undistilled one.

    The contrast is FID of the best smaller model (model, steps and CFG chosen on tuning prompts among ``grid``, both
    splits of the undistilled rows) minus FID of the largest distilled.
    """
    id, section = "codi-small-undistilled", "Fig. 13"
    statement = (
        f"At the sampling cost of the largest model distilled, in {FEW_STEPS} steps, a smaller undistilled model does "
        "at least as well."
    )
    sizes = grid.groupby("model")["params"].first()
    here = codi[(codi["steps"] == FEW_STEPS) & codi["model"].isin(sizes.index)]
    if here.empty:
        why = f"The run has no model both distilled, sampled in {FEW_STEPS} steps, and undistilled."
        return _cannot_tell(id, section, statement, why)
    largest = here.iloc[[-1]]
    name = largest["model"].iloc[0]
    smaller = grid[grid["model"].isin(sizes.index[sizes < sizes[name]])]

    def contrast(axis: str, spent: str, scale: float = 1.0) -> list[Number]:
        budget = float(largest[axis].iloc[0])
        best = winners(at_budgets(smaller, [budget], axis))
        if best.empty:
            return []
        what = f"FID of {best['model'].iloc[0]} undistilled ({best['steps'].iloc[0]} steps) minus FID of {name}"
        label = f"{spent.format(format_count(budget * scale))}: {what} distilled ({FEW_STEPS} steps)"
        return [difference(label, pd.concat([best, largest]), "fid")]

    numbers = contrast("cost", "Cost {}")
    if not numbers:
        why = f"No smaller undistilled model was sampled at the cost of {name} distilled or less."
        return _cannot_tell(id, section, statement, why)
    numbers += contrast("sampling_tflops", "Whole cost {} FLOPs an image", 1e12)
    note = (
        f"{numbers[0]}. The cost counts CoDi's adapter. The paper says that its 83M undistilled does as well as its "
        "866M distilled at a cost of about 8 (7 in its caption)."
    )
    return Finding(id, section, statement, verdict_of(*numbers[0][2:]), numbers, note + _no_replicates(numbers))
