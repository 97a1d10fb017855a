"""How loss and distances fall with model size and training compute: laws, the compute-optimal frontier and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ldmscale.analysis.crossover import crossing, frontier, sampling_crossovers, summary
from ldmscale.analysis.families import within_a_family
from ldmscale.analysis.intervals import centred, interval
from ldmscale.analysis.power_law import DRAWS, LAWS, TAILS, Estimate, Fit, fit
from ldmscale.analysis.selection import METRICS, chosen_on_tuning, heldout, replicates, select
from ldmscale.cells.cell import Cell
from ldmscale.metrics.bootstrap import resample_counts

LOSS = "loss"
FITTED = ("fid", "cmmd")  # distances above zero, which a power law can describe
FITS = ["metric", "against", "over", "law", "n", "scale", "scale_low", "scale_high", "exponent", "exponent_low",
        "exponent_high", "floor", "floor_low", "floor_high", "determined", "r2", "scatter", "predicted",
        "predicted_low", "predicted_high", "measured"]  # fmt: skip
FRONTIER = "frontier"  # fits over the checkpoints that no cheaper one beats
FINAL = "last checkpoints"


@dataclass(frozen=True)
class Points:
    """One metric (smaller is better) of every checkpoint of every model.

    ``rows`` has model, params, train_step, train_flops, value, ``choice`` (what the frontier is chosen by: the tuning
    split's value, where there is one), low and high, by ascending size and step; ``reps`` [N,R] are paired replicates.
    """

    metric: str
    rows: pd.DataFrame
    reps: np.ndarray

    def where(self, mask: np.ndarray) -> Points:
        return Points(self.metric, self.rows[mask].reset_index(drop=True), self.reps[np.asarray(mask)])

    @property
    def final(self) -> Points:
        """Each model's last checkpoint."""
        return self.where(~self.rows["model"].duplicated(keep="last").to_numpy())

    @property
    def on_frontier(self) -> np.ndarray:
        """Which points [N] beat everything trained for less compute; published weights, of none, are left out."""
        order = self.rows[self.rows["train_flops"] > 0].sort_values(["train_flops", "choice"])
        best = order["choice"] < order["choice"].cummin().shift(fill_value=np.inf)
        return best.reindex(self.rows.index, fill_value=False).to_numpy(bool)


def study_fits(
    scores: pd.DataFrame,
    experiments: Mapping[str, Sequence[Cell]],
    losses: Mapping[str, Mapping[str, np.ndarray]],
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """Everything that the figures and tables of fits show, as lists of records.

    Laws are of one family of networks: of a study that has transformers beside U-Nets, of the U-Nets.

    ``losses``: validation losses [levels, images] by model and name of weights. Checkpoints' distances are those of the
    experiment ``training`` (``headline`` without it), sampling crossovers those of ``grid`` and ``samplers``.

    ``points``: :class:`Points` of every metric, with ``frontier``; ``fits``: :data:`FITS`; ``crossover``: see
    :func:`ldmscale.analysis.crossover.sampling_crossovers`; ``optimum``: see :func:`optimal_size`; ``levels``: the
    losses of last checkpoints, noise level by noise level.
    """  # fmt: skip
    scores, experiments = within_a_family(scores, experiments)
    cells = experiments.get("training") or experiments.get("headline") or ()
    rows = select(scores, cells)
    metrics = [m for m in FITTED if m in scores and len(rows) and (rows[m] > 0).all()]
    count = replicates(scores[scores["task"] == "t2i"], "fid").shape[1] or DRAWS
    every = [loss_points(scores, losses, count, seed), *(metric_points(rows, m) for m in metrics)]
    every = [points for points in every if len(points.rows)]
    loss = [points for points in every if points.metric == LOSS]
    sampled = select(scores, [c for name in ("grid", "samplers") for c in experiments.get(name, ())])
    return {
        "points": _records([p.rows.assign(metric=p.metric, frontier=p.on_frontier) for p in every]),
        "fits": _records([law_table(points, seed) for points in every]),
        "crossover": _records([sampling_crossovers(sampled, [m for m in FITTED if m in sampled])]),
        "optimum": [optimal_size(points) for points in every],
        "levels": level_losses(losses, loss[0].final.rows, count, seed) if loss else [],
    }


def _records(tables: Sequence[pd.DataFrame]) -> list[dict[str, Any]]:
    return [record for table in tables for record in table.to_dict("records")]


def metric_points(rows: pd.DataFrame, metric: str) -> Points:
    """A distance of every checkpoint, on held-out prompts; of several sampling settings that best on tuning prompts."""
    held = heldout(chosen_on_tuning(rows, ["model", "weights"], metric)).reset_index(drop=True)
    sign, reps = -METRICS[metric], replicates(held, metric)
    return _points(metric, held, sign * held[metric], sign * held[f"tuning_{metric}"], sign * reps)


def loss_points(scores: pd.DataFrame, losses: Mapping[str, Mapping[str, np.ndarray]], count: int, seed: int) -> Points:
    """The validation loss of every checkpoint that the table knows; replicates resample the images.

    It is chosen and valued on the same images: what it owes to choice is small, as all models share images and noises.
    """
    known = scores[scores["task"] == "t2i"].drop_duplicates(["model", "weights"])
    there = [w in losses.get(m, ()) for m, w in zip(known["model"], known["weights"], strict=True)]
    known = known[np.array(there, bool)]
    known = known.sort_values(["params", "model", "train_step"]).reset_index(drop=True)
    each = np.array([losses[r.model][r.weights].mean(axis=0) for r in known.itertuples()], np.float64)
    if not len(each):
        return Points(LOSS, known, np.empty((0, count)))
    value = pd.Series(each.mean(axis=1))
    return _points(LOSS, known, value, value, each @ _counts(each.shape[1], count, seed).T)


def _counts(images: int, count: int, seed: int) -> np.ndarray:
    """Shares [count, images] of the images in each resample."""
    return resample_counts(images, count, seed) / images


def _points(metric: str, rows: pd.DataFrame, value: pd.Series, choice: pd.Series, reps: np.ndarray) -> Points:
    table = rows[["model", "params", "train_step", "train_flops"]].assign(value=value, choice=choice)
    limits = [interval(v, r) for v, r in zip(value, reps, strict=True)]
    low, high = zip(*limits, strict=True)
    return Points(metric, table.assign(low=low, high=high), reps)


def law_table(points: Points, seed: int) -> pd.DataFrame:
    """:data:`FITS` of ``points``: against ``params`` over the last checkpoints, and against ``train_flops`` over each
    model's own checkpoints and over the frontier. Laws with too few points are left out; where the floor is not
    determined, it, scale and exponent are NaN."""
    sets = [("params", FINAL, points.final), ("train_flops", FRONTIER, points.where(points.on_frontier))]
    for model, mine in points.rows.groupby("model", sort=False):
        if (mine["train_flops"] > 0).all():
            sets.append(("train_flops", model, points.where((points.rows["model"] == model).to_numpy())))
    found = []
    for against, over, part in sets:
        for law in LAWS:
            fitted = fit(law, part.rows[against], part.rows["value"], part.reps, seed)
            if fitted:
                found.append([points.metric, against, over, law, fitted.n, *_columns(fitted)])
    return pd.DataFrame(found, columns=FITS)


def _columns(fitted: Fit) -> list[Any]:
    nothing = Estimate(*[float("nan")] * 3)
    scale, exponent = (fitted.scale, fitted.exponent) if fitted.determined else (nothing, nothing)
    floor = fitted.floor if fitted.determined else fitted.floor._replace(value=float("nan"))
    if fitted.law == "power":
        floor = nothing
    return [*scale, *exponent, *floor, fitted.determined, fitted.r2, fitted.scatter, *(fitted.last or nothing),
            fitted.measured]  # fmt: skip


def optimal_size(points: Points) -> dict[str, Any]:
    """The training compute at which each next larger model overtakes, and the compute-optimal size that follows.

    ``pairs``: (smaller, larger, compute, low, high, beyond, least, most), compute as :func:`crossing`'s, within what
    both were measured at. Where two sizes tie, the best size lies at their geometric mean if loss is a parabola in log
    size (as in the isoFLOP fits of arXiv 2203.15556): ``exponent`` is the slope of its log against that of compute,
    through the pairs that tie within the run; None with fewer than two of them (three models) or where they cease to
    in one replicate of forty or more. Its interval is of prompts (of a loss: images) alone; ``n`` counts the pairs.
    """
    rows, values = points.rows, points.rows[["value"]].to_numpy(float)
    values = np.hstack([values, centred(values[:, 0], points.reps)])
    choice = np.hstack([rows[["choice"]].to_numpy(float), values[:, 1:]])
    sizes = rows[rows["train_flops"] > 0].drop_duplicates("model").set_index("model")["params"]
    where = {model: (rows["model"] == model).to_numpy() for model in sizes.index}
    flops = rows["train_flops"].to_numpy(float)

    def curve(model: str, r: int):
        mine = where[model]
        return frontier(flops[mine], choice[mine, r], values[mine, r])

    pairs, ties, means = [], [], []
    for small, large in zip(sizes.index, sizes.index[1:], strict=False):
        crossed = [crossing(curve(small, r), curve(large, r), extend=False) for r in range(values.shape[1])]
        compute, low, high, beyond = summary(crossed)
        pairs.append({"smaller": small, "larger": large, "compute": compute, "low": low, "high": high,
                      "beyond": beyond, "least": crossed[0][1], "most": crossed[0][2]})  # fmt: skip
        if np.isfinite(compute):
            ties.append([c for c, _, _ in crossed])
            means.append(np.sqrt(sizes[small] * sizes[large]))
    exponent = None
    if len(ties) > 1:
        with np.errstate(invalid="ignore"):
            x = np.log(np.array(ties))
            x = x - x.mean(axis=0)
            slopes = np.log(means) @ x / np.sum(x**2, axis=0)
        kept = slopes[1:][np.isfinite(slopes[1:])]
        if len(kept) > 1 and len(kept) > (1 - TAILS[0]) * (len(slopes) - 1):
            exponent = Estimate(float(slopes[0]), *map(float, np.quantile(kept, TAILS)))._asdict()
    return {"metric": points.metric, "n": len(ties), "pairs": pairs, "exponent": exponent}


def level_losses(
    losses: Mapping[str, Mapping[str, np.ndarray]], final: pd.DataFrame, count: int, seed: int
) -> list[dict[str, Any]]:
    """Validation loss with its interval, by noise level and model: the last weights of the ``final`` points' models."""
    found = []
    for row in final.itertuples():
        last = list(losses[row.model].values())[-1].astype(np.float64)
        reps = last @ _counts(last.shape[1], count, seed).T
        for level, (mine, again) in enumerate(zip(last, reps, strict=True)):
            low, high = interval(mine.mean(), again)
            found.append({"model": row.model, "params": row.params, "level": level, "loss": float(mine.mean()),
                          "low": low, "high": high})  # fmt: skip
    return found
