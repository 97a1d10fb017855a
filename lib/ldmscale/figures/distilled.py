"""Distilled models: what 4 steps give and save (Fig. 13), guided distillation (19), pictures at like cost (20)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ldmscale.analysis.distilled import FEW_STEPS, Acceleration, acceleration, best_setting, student_steps
from ldmscale.analysis.frontier import COST_AXES
from ldmscale.analysis.selection import METRIC_NAMES, heldout, select
from ldmscale.analysis.study import ModelInfo, format_params, model_label
from ldmscale.cells.cell import Cell
from ldmscale.cells.cost import steps_at_cost
from ldmscale.errors import UserError
from ldmscale.figures import style
from ldmscale.figures.data import FigureData
from ldmscale.figures.grids import NOT_PICKED
from ldmscale.figures.pictures import Row, picture_grid

DISTILLED = {"color": "#b5332b", "marker": "o", "linewidth": 1.8}
DASHED = {"linestyle": (0, (3, 1.6)), "linewidth": 1.0}
FACTOR = {"color": "#3b6fb6", "marker": "D", "linestyle": (0, (1, 1.2)), "linewidth": 1.0}
PAPERS_COST = "Sampling cost (CoDi's adapter counted)"
PAPERS_NOTE = (
    "Sampling cost: cost of an evaluation relative to the reference model's U-Net × steps, guidance's second "
    "evaluation not counted."
)
STEP_MARKERS = ("s", "^", "P", "v", "X", "d")
ACROSS = 3  # panels of Fig. 19 side by side
PANEL = 2.1  # inches: a panel of Fig. 19


# ---------------------------------------------------------------------------------------------------------------------
# Fig. 13


@style.styled
def fig13(data: FigureData) -> Figure:
    """Left, FID against model size, distilled in 4 steps and undistilled in more, and the acceleration factor; right,
    FID against sampling cost, distilled (solid) and undistilled (dashed), a colour a model.

    Settings: ``experiment`` (CoDi), ``baseline`` (undistilled, DDIM), ``steps`` (of the undistilled models at the
    left), ``models``, ``metric`` (in place of FID), ``axis`` (in place of the paper's cost).
    """
    metric, axis = data.metric, data.axis
    models, codi, undistilled = _tables("fig13", data, "codi", metric)
    curves = {n: undistilled[undistilled["steps"] == n] for n in sorted(data.require("steps"))}
    few = codi[codi["steps"] == FEW_STEPS]
    _all_there(models, few, f"fig13 draws every model distilled in {FEW_STEPS} steps, but its experiment")
    for n, rows in curves.items():
        _all_there(models, rows, f"fig13 draws every model undistilled in {n} steps, but its baseline")

    shades = style.sequential("Greys", len(curves), 0.45, 0.85)
    looks = {
        n: {"color": shade, "marker": STEP_MARKERS[i % len(STEP_MARKERS)]}
        for i, (n, shade) in enumerate(zip(curves, shades, strict=True))
    }
    left_handles = [_handle(f"distilled, {_steps(FEW_STEPS)}", DISTILLED)]
    left_handles += [_handle(f"undistilled, {_steps(n)}", look) for n, look in looks.items()]
    factors = acceleration(codi, undistilled, metric=metric)
    colours = style.model_styles(data.models)

    # The legend needs room for its lines, the caption for its own below.
    fig = style.new_figure(8.2, max(3.5, 1.9 + 0.135 * (len(models) + len(curves))))
    left, right = fig.subplots(1, 2, width_ratios=[1.0, 1.1])
    for n, rows in curves.items():
        style.curve(left, rows, "params", metric, **looks[n])
    style.curve(left, few, "params", metric, zorder=3, **DISTILLED)
    shown = pd.concat([few, *curves.values()])
    style.log_axis(left, "x", shown["params"], at_least=3)
    left.set_xticks(left.get_xticks(), [format_params(n) for n in left.get_xticks()])
    style.metric_axis(left, shown[metric], metric)
    left.set_xlabel("Parameters of the network")
    left_handles += _draw_factors(left.twinx(), factors, {m.name: m.params for m in models})

    for model in models:
        look = colours[model.name]
        mine = [rows[rows["model"] == model.name] for rows in (undistilled, codi)]
        style.curve(right, mine[0], axis, metric, False, **{**look, **DASHED, "markersize": 2.8, "alpha": 0.65})
        style.curve(right, mine[1], axis, metric, **look)
    both = pd.concat([codi, undistilled])
    style.log_axis(right, "x", both[axis], at_least=5 if axis == "cost" else 3)
    style.metric_axis(right, both[metric], metric)
    right.set_xlabel(PAPERS_COST if axis == "cost" else COST_AXES[axis])

    right_handles = [_handle("distilled", {"color": style.INK}), _handle("undistilled", {"color": style.INK, **DASHED})]
    right_handles += style.model_handles(models, colours)
    style.side_legend(fig, [_words("Left:"), *left_handles, _words(""), _words("Right:"), *right_handles], "")
    intervals = "; 95% interval" if style.whiskers(both, metric) else ""
    note = PAPERS_NOTE if axis == "cost" else style.axis_note(both, axis)
    style.add_caption(
        fig,
        f"{style.study_line(data.study, both, metric)} Distilled: CoDi, steps {_listed(codi['steps'])}; undistilled: "
        f"DDIM. {_chosen(data)} {note} Acceleration factor: undistilled steps that give the distilled "
        f"{METRIC_NAMES[metric]} of {_steps(FEW_STEPS)}, over {FEW_STEPS} (interpolated in log steps{intervals}): "
        f"{'; '.join(map(str, factors))}. {style.whiskers(both, metric)}",
    )
    return fig


def _draw_factors(ax: Axes, factors: Sequence[Acceleration], params: dict[str, int]) -> list[Line2D]:
    """Draw ``factors`` against ``params`` on the second axis ``ax``; returns their legend entries.

    A factor beyond the run is an arrowhead at the bound that it lies beyond, and no point of the line.
    """
    xs = np.array([params[f.model] for f in factors], float)
    points = np.array([f.value if np.isfinite(f.value) else np.nan for f in factors])
    look = {"markeredgecolor": "white", "markeredgewidth": 0.5, **FACTOR}
    ax.plot(xs, points, **look)
    handles = [Line2D([], [], label="acceleration factor", **look)]
    ends = np.array([np.clip([f.low, f.value, f.high], f.least, f.most) for f in factors])
    if np.isfinite(ends).all():
        ax.vlines(xs, ends[:, 0], ends[:, 2], color=FACTOR["color"], linewidth=0.7, alpha=0.45)
    head = {**look, "linestyle": "none", "markersize": 6}
    for beyond, marker in ((np.inf, "^"), (-np.inf, "v")):
        there = np.array([f.value == beyond for f in factors])
        if there.any():
            ax.plot(xs[there], ends[there, 1], **{**head, "marker": marker}, clip_on=False)
            words = " or ".join(dict.fromkeys(f.words() for f in np.array(factors)[there]))
            handles.append(Line2D([], [], label=style.wrap(words, 90, 7.0), **{**head, "marker": marker}))
    ax.set_ylim(0, 1.1 * np.nanmax(ends))
    ax.set_ylabel("Acceleration factor", color=FACTOR["color"])
    ax.tick_params(axis="y", labelcolor=FACTOR["color"])
    ax.spines["right"].set_visible(True)
    ax.grid(False)
    return handles


# ---------------------------------------------------------------------------------------------------------------------
# Fig. 19


@style.styled
def fig19(data: FigureData) -> Figure:
    """FID against sampling steps of each guided student and of the undistilled model, a panel a model.

    Settings: ``experiment`` (guided students), ``baseline`` (undistilled, DDIM), ``models``. The undistilled curve
    keeps to the students' range of steps.
    """
    models, guided, undistilled = _tables("fig19", data, "guided")
    undistilled = undistilled[undistilled["steps"].between(guided["steps"].min(), guided["steps"].max())]
    _all_there(models, undistilled, "fig19 draws undistilled models in as many steps as students, but its baseline")
    guided = guided.assign(student=guided["weights"].map(student_steps))
    students = sorted(map(int, guided["student"].unique()), reverse=True)
    colours = style.sequential("plasma", len(students), 0.75, 0.1)
    looks = {
        n: {"color": colour, "marker": style.MARKERS[i % len(style.MARKERS)]}
        for i, (n, colour) in enumerate(zip(students, colours, strict=True))
    }
    plain = {"color": style.INK, "marker": "*", "markersize": 6.0, **DASHED}
    across = min(ACROSS, len(models))
    down = -(-len(models) // across)
    fig = style.new_figure(max(4.6, 1.9 + PANEL * across), 0.9 + 2.2 * down)
    axes = fig.subplots(down, across, sharey=True, squeeze=False).ravel()
    for ax in axes[len(models) :]:
        ax.remove()
    both = pd.concat([guided, undistilled])
    for i, (ax, model) in enumerate(zip(axes, models, strict=False)):
        mine = both[both["model"] == model.name]
        for n, look in looks.items():
            style.curve(ax, mine[mine["student"] == n], "steps", "fid", **look)
        style.curve(ax, mine[mine["task"] == "t2i"], "steps", "fid", zorder=3, **plain)
        style.steps_axis(ax, sorted(mine["steps"].unique()), PANEL - 0.4)
        style.metric_axis(ax, both["fid"])
        ax.set_xlabel("Sampling steps")
        ax.set_title(style.wrap(model_label(model), (PANEL - 0.4) * 72, 8.5, weight="bold"))
        if i % across:
            ax.set_ylabel("")
    handles = [_handle(f"s{n}", look) for n, look in looks.items()]
    style.side_legend(fig, [*handles, _handle("undistilled", plain)], "Student")
    style.add_caption(
        fig,
        f"{style.study_line(data.study, both)} DDIM. s{students[0]}: the student of guided distillation halved to "
        f"{_steps(students[0])}, and so on; a student takes one evaluation a step where the undistilled model, guided, "
        f"takes two. {_chosen(data)} {style.WHISKERS}",
    )
    return fig


# ---------------------------------------------------------------------------------------------------------------------
# Fig. 20


@style.styled
def fig20(data: FigureData) -> Figure:
    """Pictures of a large model, distilled and not, in 4 steps, and of a small one in the steps of a like cost.

    Settings: ``experiment`` (CoDi), ``baseline`` (undistilled), ``equal`` (undistilled, with the steps of ``cost``),
    ``model``, ``small``, ``cost``, ``cfg``, ``prompts`` (indices into the gallery).
    """
    by_name = {m.name: m for m in data.models}
    large, small, cfg = data.require("model"), data.require("small"), float(data.require("cfg"))
    for name in (large, small):
        if name not in by_name:
            raise UserError(f"fig20 shows the model '{name}', which its study lacks (it has {', '.join(by_name)})")
    steps = steps_at_cost(data.require("cost"), by_name[small].norm_cost)
    wanted = [("experiment", large, FEW_STEPS), ("baseline", large, FEW_STEPS), ("equal", small, steps)]
    columns = [_only(data, *cell, cfg) for cell in wanted]
    headers = [_header(data, cell, by_name[cell.model]) for cell in columns]
    rows = [
        Row([data.picture(cell, i) for cell in columns], text=f"“{style.one_line(data.prompt(i))}”")
        for i in data.require("prompts")
    ]
    note = (
        f"{style.study_line(data.study)} Distilled: CoDi; undistilled: DDIM. CFG {cfg:g}. Cost: that of an evaluation "
        "(CoDi's with its adapter) relative to the reference model's U-Net × steps; in brackets with guidance's second "
        f"evaluation counted. {NOT_PICKED}"
    )
    return picture_grid(headers, rows, note)


def _only(data: FigureData, setting: str, model: str, steps: int, cfg: float) -> Cell:
    cells = [c for c in data.cells(setting) if (c.model, c.steps, c.cfg) == (model, steps, cfg)]
    distilled = setting == "experiment"
    cells = [c for c in cells if (c.task == "codi" if distilled else (c.task, c.sampler) == ("t2i", "ddim"))]
    if len(cells) != 1:
        name = data.require(setting)
        raise UserError(
            f"fig20 needs one cell of {model} in {_steps(steps)} at CFG {cfg:g} from its {setting} '{name}', which has "
            f"{len(cells)}"
        )
    return cells[0]


def _header(data: FigureData, cell: Cell, model: ModelInfo) -> str:
    """Model, steps, and cost without and with guidance; pictures that are not scored have no row in the table."""
    plain, counted = model.norm_cost * cell.steps, model.norm_cost * cell.steps * (2 if cell.cfg != 1 else 1)
    if cell.task == "codi":
        plain, counted = heldout(select(data.scores, [cell]))[["cost", "nfe_cost"]].iloc[0]
    kind = "distilled" if cell.task == "codi" else "undistilled"
    return f"{model_label(model)}\n{kind}, {_steps(cell.steps)}\ncost {plain:.3g} ({counted:.3g})"


# ---------------------------------------------------------------------------------------------------------------------
# What the figures share


def _tables(
    figure: str, data: FigureData, task: str, metric: str = "fid"
) -> tuple[list[ModelInfo], pd.DataFrame, pd.DataFrame]:
    """The models to draw, their distilled rows and their undistilled ones (:func:`best_setting`)."""
    other = [cell.path for cell in data.cells() if cell.task != task]
    if other:
        raise UserError(f"{figure} draws the task '{task}', its experiment holds {other[0]}")
    models = data.shown(data.cells())
    baseline = data.rows("baseline", models)
    plain = baseline[(baseline["task"] == "t2i") & (baseline["sampler"] == "ddim")]
    _all_there(models, plain, f"{figure} draws undistilled models by DDIM, but its baseline")
    return models, best_setting(data.rows(models=models), metric), best_setting(plain, metric)


def _all_there(models: Sequence[ModelInfo], rows: pd.DataFrame, what: str) -> None:
    lost = [m.name for m in models if m.name not in set(rows["model"])]
    if lost:
        raise UserError(f"{what} has none of {lost[0]}")


def _chosen(data: FigureData) -> str:
    return f"CFG chosen for each model, weights and step count on {data.study.n_tuning:,} tuning prompts."


def _handle(label: str, look: dict) -> Line2D:
    return Line2D([], [], label=label, markeredgecolor="white", markeredgewidth=0.5, **look)


def _words(text: str) -> Line2D:
    return Line2D([], [], linestyle="none", label=text)


def _listed(values: pd.Series) -> str:
    return ", ".join(str(v) for v in sorted(values.unique()))


def _steps(steps: int) -> str:
    return f"{steps} step" + "s" * (steps != 1)
