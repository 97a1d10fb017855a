"""Super-resolution: quality against finetuning compute (Figs. 4, 17) and sampling cost (12), and pictures (5, 18)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmscale.analysis.frontier import COST_AXES
from ldmscale.analysis.intervals import interval
from ldmscale.analysis.selection import replicates
from ldmscale.analysis.study import SAMPLER_NAMES, ModelInfo, model_label
from ldmscale.errors import UserError
from ldmscale.figures import style
from ldmscale.figures.data import FigureData
from ldmscale.figures.pictures import Row, picture_grid

DEFAULT_SPLIT = 20  # steps: the most of the paper's left panel
CURVES_SHARE = 1 / 3  # of a panel's height is the curves' at least: baselines farther away go to the caption
LOG_SPAN = 8  # FIDs over more than this factor get a log axis, as in style.metric_axis
WIDTH = 7.8  # inches: the other figures' 7.2 and room for the names of the baselines
LABEL_SIZE = 6.2
LABEL_GAP = 0.13  # of a panel's height: two lines of a baseline's label
SHARED_LUCK = style.WHISKERS.replace("prompts", "patches")


@dataclass(frozen=True)
class Baseline:
    """A score without a model: the row's ``baseline`` in the table, what precedes its value in a
    panel, its name in words, its dashes."""

    key: str
    label: str
    words: str
    dashes: tuple


BASELINES = (
    Baseline("bicubic", "bicubic\n", "bicubic upsampling", (0, (4, 2))),
    Baseline("reconstruction", "autoencoder\nfloor ", "the autoencoder's own reconstruction", (0, (1.5, 1.5))),
)


@style.styled
def fig04(data: FigureData) -> Figure:
    """FID and perceptual distance of super-resolution against finetuning compute, one curve a model.

    Settings: ``experiment`` (all finetuned weights, one sampler and step count), ``models``.
    """
    return _against_compute("fig04", data, ("fid", "perceptual"))


@style.styled
def fig17(data: FigureData) -> Figure:
    """Inception score and FID of super-resolution against finetuning compute. Settings as :func:`fig04`'s."""
    return _against_compute("fig17", data, ("is1", "fid"))


@style.styled
def fig12(data: FigureData) -> Figure:
    """FID of super-resolution against sampling cost, one curve a model: few steps at the left, more at the right.

    Settings: ``experiment`` (one weights a model, one sampler), ``split`` (most steps of the left panel), ``models``,
    ``axis`` (in place of the paper's cost).
    """
    axis = data.axis
    models, rows = _rows("fig12", data, ("fid",), ("sampler", "cfg"))
    several = rows.groupby("model")["weights"].nunique()
    if (several > 1).any():
        raise UserError(
            f"fig12 draws one weights a model, but its experiment has {several.max()} of {several.idxmax()}: "
            "give it 'weights: final'"
        )
    note = style.axis_note(rows, axis)
    split = int(data.settings.get("split", DEFAULT_SPLIT))
    few = rows["steps"] <= split
    if few.all() or not few.any():
        raise UserError(
            f"fig12 splits its experiment at {split} steps, which leaves a panel empty (it has {rows['steps'].min()} "
            f"to {rows['steps'].max()} steps): set its 'split' between them"
        )
    fig = style.new_figure(WIDTH, 3.2)
    outside = []
    titles = (f"At most {split} steps", f"More than {split} steps")
    for ax, shown, title in zip(fig.subplots(1, 2), (rows[few], rows[~few]), titles, strict=True):
        outside.append(_panel(ax, data, shown, axis, "fid", models))
        style.log_axis(ax, "x", shown[axis], at_least=5 if axis == "cost" else 3)
        ax.set_xlabel(COST_AXES[axis])
        ax.set_title(title)
    style.side_legend(fig, style.model_handles(models, style.model_styles(data.models)), "Model, parameters")
    left, right = outside
    beyond = [text for text in left if text in right]
    for only, other, title in ((left, right, titles[0]), (right, left, titles[1])):
        beyond += [f"{text} ({title.lower()})" for text in only if text not in other]
    trained = " or ".join(f"{int(n):,}" for n in sorted(rows["train_step"].unique()))
    style.add_caption(
        fig,
        f"{_study_line(data, rows)} {_sampling(rows)}, after {trained} iterations of finetuning. "
        f"{note} {_baselines_line(beyond)}{SHARED_LUCK}",
    )
    return fig


@style.styled
def superres_grid(data: FigureData) -> Figure:
    """Figs. 5 and 18: patches through every model, smallest first, between the low resolution and the original.

    Settings: ``experiment``, ``patches`` (indices into the evaluation patches), ``steps`` (default: the most of the
    experiment), ``models``. It shows each model's last weights.
    """
    models = data.shown(data.cells())
    steps = data.settings.get("steps", max(cell.steps for cell in data.cells()))
    last = {model.name: max(c.train_step for c in data.cells() if c.model == model.name) for model in models}
    cells = {}
    for cell in data.cells():
        if cell.task != "superres":
            raise UserError(f"a super-resolution grid shows super-resolution, its experiment holds {cell.path}")
        if cell.steps != steps or cell.train_step != last.get(cell.model):
            continue
        if cell.model in cells:
            raise UserError(
                f"a super-resolution grid needs one cell a model, its experiment has several of {cell.model} in "
                f"{steps} steps: give it one sampler"
            )
        cells[cell.model] = cell
    for model in models:
        if model.name not in cells:
            raise UserError(f"a super-resolution grid shows {steps} steps, which {model.name} lacks in its experiment")
    columns = [cells[m.name] for m in models]
    if data.arrays is None:
        raise UserError("a super-resolution grid needs the evaluation patches of its study")
    hr, lr, reconstruction = (data.arrays(f"superres/{name}") for name in ("hr", "lr", "reconstruction"))
    factor = max(1, hr.shape[1] // lr.shape[1])
    if lr.shape != (len(hr), hr.shape[1] / factor, hr.shape[2] / factor, 3):
        raise UserError(
            f"superres/lr is {list(lr.shape)} and superres/hr {list(hr.shape)}: they should be as many patches, the "
            "originals larger by a whole factor"
        )
    drawn = [_like(reconstruction, hr, "superres/reconstruction")]
    drawn = [*(_like(data.previews(c), hr, f"the images of {c.path}") for c in columns), *drawn, hr]
    patches = data.require("patches")
    if not patches:
        raise UserError("a super-resolution grid shows no patch: give its 'patches' at least one index")
    rows = []
    for i in patches:
        if not 0 <= i < len(hr):
            raise UserError(f"a super-resolution grid shows patch {i}, but the study has {len(hr)} (from 0)")
        low = lr[i].repeat(factor, axis=0).repeat(factor, axis=1)  # as it is: no pixel made up for the eye
        rows.append(Row([low, *(images[i] for images in drawn)]))
    headers = [f"LR\n{lr.shape[2]} px", *(model_label(m, "\n") for m in models), "autoencoder", f"HR\n{hr.shape[2]} px"]
    first = columns[0]
    steps = f"{first.steps} step" + "s" * (first.steps != 1)
    numbers = ", ".join(str(i) for i in patches)
    note = (
        f"{style.study_line(data.study)} {factor}× super-resolution, {SAMPLER_NAMES[first.sampler]}, {steps}, no "
        f"guidance. Evaluation patch{'es' * (len(patches) > 1)} {numbers} of {len(hr):,} (from 0). One starting noise "
        "a patch, the same in every model; pictures are not picked. Autoencoder: its reconstruction of HR, the floor."
    )
    return picture_grid(headers, rows, note)


def _like(images: np.ndarray, hr: np.ndarray, name: str) -> np.ndarray:
    """``images``, refused where they are not uint8 and as many and as large as ``hr``."""
    if images.dtype != np.uint8 or images.shape != hr.shape:
        raise UserError(
            f"{name} are {images.dtype} {list(images.shape)}: they should be uint8 {list(hr.shape)}, one image a patch"
        )
    return images


# ---------------------------------------------------------------------------------------------------------------------
# Curves


def _against_compute(figure: str, data: FigureData, metrics: tuple[str, str]) -> Figure:
    """Two panels of ``metrics`` against the compute of finetuning."""
    models, rows = _rows(figure, data, metrics, ("sampler", "steps", "cfg"))
    before, rows = rows[rows["train_step"] == 0], rows[rows["train_step"] > 0]
    lost = [m.name for m in models if m.name not in set(rows["model"])]
    if lost:
        raise UserError(
            f"{figure} draws finetuning, but its experiment has no finetuned weights of {lost[0]}: give it "
            "'weights: all'"
        )
    fig = style.new_figure(WIDTH, 3.2)
    beyond = []
    for ax, metric in zip(fig.subplots(1, 2), metrics, strict=True):
        beyond += _panel(ax, data, rows, "train_gflops", metric, models)
        style.log_axis(ax, "x", rows["train_gflops"], at_least=3)
        ax.set_xlabel("Finetuning compute (GFLOPs × iterations)")
    style.side_legend(fig, style.model_handles(models, style.model_styles(data.models)), "Model, parameters")
    start = ""
    if len(before):
        ranges = ", ".join(f"{_name(metric)} {_range(before[metric])}" for metric in metrics)
        start = f"Before finetuning (step 0, no place on a log axis), over the models: {ranges}. "
    style.add_caption(
        fig,
        f"{_study_line(data, rows)} {_metrics_line(rows, metrics)}{int(rows['steps'].iloc[0])}-step {_sampling(rows)}. "
        f"{start}{_baselines_line(beyond)}{SHARED_LUCK}",
    )
    return fig


def _rows(
    figure: str, data: FigureData, metrics: Sequence[str], alike: Sequence[str]
) -> tuple[list[ModelInfo], pd.DataFrame]:
    """The models and the scores to draw; all are of one ``alike`` and have finite ``metrics``, or are refused."""
    models = data.shown(data.cells())
    rows = data.rows(models=models)
    other = rows.loc[rows["task"] != "superres", "cell"]
    if len(other):
        raise UserError(f"{figure} draws super-resolution, its experiment holds {other.iloc[0]}")
    labels = [f"{m}_features" for m in metrics if m != "is1"] + ["is_features"] * ("is1" in metrics)
    for column in [*alike, *labels]:
        values = list(rows[column].sort_values().unique())
        if len(values) > 1:
            raise UserError(
                f"{figure} needs one {column}, its experiment has {len(values)}: "
                f"{values[0]}, {values[1]}{', ...' * (len(values) > 2)}"
            )
    for metric in metrics:
        bad = rows.loc[~np.isfinite(rows[metric].astype(float)), "cell"]
        if len(bad):
            raise UserError(f"{figure} draws the {metric} of {bad.iloc[0]}, which has none that is finite")
    if "is1" in metrics:
        rows = rows.assign(is1_reps=rows["is_reps"])
    return models, rows.sort_values(["params", "model", "train_step", "steps"])


def _panel(ax: Axes, data: FigureData, rows: pd.DataFrame, x: str, metric: str, models: list[ModelInfo]) -> list[str]:
    """Curves of ``metric`` against ``x`` and the baselines; returns those out of range, in words for the caption."""
    looks = style.model_styles(data.models)
    for model in models:
        style.curve(ax, rows[rows["model"] == model.name], x, metric, **looks[model.name])
    values = rows[metric].to_numpy(float)
    log = metric == "fid" and values.min() > 0 and values.max() > LOG_SPAN * values.min()
    scale = np.log if log else np.asarray
    whiskers = np.array([interval(v, r) for v, r in zip(values, replicates(rows, metric), strict=True)])
    ends = np.concatenate([values, whiskers[np.isfinite(whiskers)]])
    # A centred interval may reach below zero, where none of the metrics does.
    ends = ends.clip(values.min() / 1.5, values.max() * 1.5) if log else ends.clip(min=min(0.0, values.min()))
    low, high = ends.min(), ends.max()
    room = max(scale(high) - scale(low), 0.0 if log else 0.1 * abs(high)) / CURVES_SHARE

    there = [(b, _baseline(data, b, metric)) for b in BASELINES]
    drawn, beyond = [], []
    for baseline, value in sorted(there, key=lambda pair: max(low - pair[1], pair[1] - high)):
        ends = min(low, value), max(high, value)
        if (log and value <= 0) or scale(ends[1]) - scale(ends[0]) > room:
            beyond.append(f"{baseline.words}, {_name(metric)} {_number(value)}")
        else:
            low, high = ends
            drawn.append((baseline, value))
            look = {"color": style.GREY, "linewidth": 0.9, "linestyle": baseline.dashes, "zorder": 1.5}
            ax.axhline(value, label=baseline.key, **look)
    if log:
        style.log_axis(ax, "y", (low, high))
    else:
        pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        ax.set_ylim(low - pad, high + pad)
    ax.set_ylabel(_axis_label(rows, metric))
    _label(ax, drawn, scale)
    return beyond


def _label(ax: Axes, drawn: list[tuple[Baseline, float]], scale) -> None:
    """Names of the baselines right of the panel at their lines, where they cover no curve, moved apart where near."""
    low, high = scale(np.array(ax.get_ylim()))
    drawn = sorted(drawn, key=lambda pair: pair[1])
    heights = [float((scale(value) - low) / (high - low)) for _, value in drawn]
    if len(heights) == 2 and heights[1] - heights[0] < LABEL_GAP:
        middle = np.clip(np.mean(heights), LABEL_GAP, 1 - LABEL_GAP)
        heights = [middle - LABEL_GAP / 2, middle + LABEL_GAP / 2]
    look = {"size": LABEL_SIZE, "color": style.GREY, "va": "center", "linespacing": 1.1, "transform": ax.transAxes}
    for (baseline, value), height in zip(drawn, heights, strict=True):
        ax.text(1.02, height, f"{baseline.label}{_number(value)}", **look)


def _baseline(data: FigureData, baseline: Baseline, metric: str) -> float:
    found: list[Any] = [row[metric] for row in data.baselines if row["baseline"] == baseline.key]
    if len(found) != 1 or found[0] is None or not np.isfinite(found[0]):
        raise UserError(
            f"a figure of super-resolution draws the {metric} of the baseline '{baseline.key}', which the study's "
            "superres/baselines.json lacks: score the baselines again"
        )
    return float(found[0])


# ---------------------------------------------------------------------------------------------------------------------
# Words


def _name(metric: str) -> str:
    return {"fid": "FID", "perceptual": "perceptual distance", "is1": "Inception score"}[metric]


def _axis_label(rows: pd.DataFrame, metric: str) -> str:
    if metric != "perceptual":
        return f"{_name(metric)}  ({'higher' if metric == 'is1' else 'lower'} is better)"
    features = rows["perceptual_features"].iloc[0]
    what = features if features.startswith("LPIPS") else f"Perceptual distance: {features}"
    return style.wrap(f"{what}  (lower is better)", 2.2 * 72, 8.0)


def _range(values: pd.Series) -> str:
    return " to ".join(dict.fromkeys((_number(values.min()), _number(values.max()))))


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def _study_line(data: FigureData, rows: pd.DataFrame) -> str:
    counts = [f"{n:,}" for n in sorted({int(n) for n in rows["n"]})]
    n = " to ".join(dict.fromkeys((counts[0], counts[-1])))
    features = rows["fid_features"].iloc[0]
    return f"{style.study_line(data.study)} Super-resolution, FID on {features}, n = {n} patches."


def _sampling(rows: pd.DataFrame) -> str:
    sampler, cfg = rows["sampler"].iloc[0], rows["cfg"].iloc[0]
    return f"{SAMPLER_NAMES[sampler]}, {'no guidance' if cfg == 1 else f'CFG {cfg:g}'}"


def _metrics_line(rows: pd.DataFrame, metrics: Sequence[str]) -> str:
    """What the other metric stands on; empty where its axis says so."""
    if "is1" not in metrics:
        return ""
    text = f"Inception score by {rows['is_features'].iloc[0]}, 1 split"
    one, ten = rows["is1"].astype(float), rows["is10"].astype(float)
    if np.isfinite(ten).all() and (one - ten).abs().max() >= 0.005 * one.max():
        text += f" (10 splits: {_range(ten)} instead of {_range(one)})"
    return f"{text}. "


def _baselines_line(beyond: list[str]) -> str:
    text = "Dashed: bicubic upsampling, and the autoencoder's reconstruction of the originals. "
    return f"{text}Beyond the range drawn: {'; '.join(beyond)}. " if beyond else text
