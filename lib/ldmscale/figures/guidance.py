"""Fig. 8: the guidance weight that suits a step count and a model."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ldmscale.analysis.selection import METRIC_NAMES, best_cfg, optimal_cfg
from ldmscale.analysis.study import model_label
from ldmscale.errors import UserError
from ldmscale.figures import style
from ldmscale.figures.data import FigureData

OPTIMAL = {"color": style.INK, "linestyle": (0, (4, 2)), "marker": "*", "markersize": 7, "linewidth": 1.3}


@style.styled
def fig08(data: FigureData) -> Figure:
    """FID against steps for each guidance weight in two models, and the optimal weight of every model and step count.

    Settings: ``experiment``, ``models`` (two names), ``metric`` (in place of FID). The colours of the curves are those
    of the heat map.
    """
    if len(data.settings.get("models", ())) != 2:
        raise UserError("fig08 shows two models: give two names as its 'models'")
    rows, pair, metric = data.rows(), data.shown(data.cells()), data.metric
    rows = rows[rows["sampler"] == "ddim"]
    families = {m.family for m in pair}
    rows = rows[rows["model"].isin([m.name for m in data.models if m.family in families])]
    best, colours = best_cfg(rows, metric), style.cfg_colours(rows["cfg"].unique())
    models = [m for m in data.models if m.name in set(rows["model"])]
    # The heat map needs room for its columns, the curves do not.
    heat_width = max(2.1, 0.31 * len(models))
    fig = style.new_figure(4.9 + heat_width, 3.1)
    axes = fig.subplots(1, 3, width_ratios=[1.8, 1.8, heat_width])
    axes[1].sharey(axes[0])
    for ax, model in zip(axes, pair, strict=False):
        mine = rows[(rows["model"] == model.name) & (rows["split"] == "heldout")]
        for cfg, colour in colours.items():
            style.curve(ax, mine[mine["cfg"] == cfg], "steps", metric, False, color=colour, marker="o", markersize=3)
        style.curve(ax, best[best["model"] == model.name], "steps", metric, **OPTIMAL, zorder=5)
        style.steps_axis(ax, sorted(mine["steps"].unique()), 1.7)
        ax.set_xlabel("Sampling steps")
        ax.set_title(style.wrap(model_label(model), 1.7 * 72, 8.5, weight="bold"))
    shown = rows[(rows["split"] == "heldout") & rows["model"].isin([m.name for m in pair])]
    style.metric_axis(axes[0], shown[metric], metric)
    axes[1].tick_params(labelleft=False)
    _heat_map(axes[2], optimal_cfg(rows, metric), colours, heat_width / len(models))
    handles = [Line2D([], [], color=c, marker="o", markersize=4, label=f"{g:g}") for g, c in colours.items()]
    handles.append(Line2D([], [], label="optimal", **OPTIMAL))
    style.side_legend(fig, handles, "CFG")
    intervals = " with 95% bootstrap intervals" if style.whiskers(best, metric) else ""
    style.add_caption(
        fig,
        f"{style.study_line(data.study, rows[rows['split'] == 'heldout'], metric)} DDIM. The optimal CFG is chosen on "
        f"{data.study.n_tuning:,} tuning prompts, and its {METRIC_NAMES[metric]} shown on held-out ones{intervals}.",
    )
    return fig


def _heat_map(ax: Axes, optimal: pd.DataFrame, colours: dict[float, tuple], column: float) -> None:
    """Models across (``column`` inches each), steps up; each cell has the colour and number of its optimal weight."""
    values = optimal.to_numpy(float)
    image = np.ones((*values.shape, 3))
    for (i, j), cfg in np.ndenumerate(values):
        if np.isfinite(cfg):
            image[i, j] = colours[cfg]
            ax.text(j, i, f"{cfg:g}", ha="center", va="center", size=6.5, color=style.legible_on(image[i, j]))
    ax.imshow(image, origin="lower", aspect="auto", interpolation="nearest")
    ax.grid(False)
    ax.set_xticks(range(len(optimal.columns)), [str(c) for c in optimal.columns])
    size = 7.0 if max(style.text_width(str(c), 7.0) for c in optimal.columns) < 72 * column - 3 else 6.0
    crowded = max(style.text_width(str(c), size) for c in optimal.columns) > 72 * column - 3
    ax.tick_params(axis="x", labelsize=size, rotation=90 if crowded else 0)
    ax.set_yticks(range(len(optimal.index)), [str(s) for s in optimal.index])
    for edge in ("left", "bottom"):
        ax.spines[edge].set_visible(False)
    ax.tick_params(length=0)
    # White rules between the cells.
    ax.set_xticks(np.arange(0.5, values.shape[1] - 1), minor=True)
    ax.set_yticks(np.arange(0.5, values.shape[0] - 1), minor=True)
    ax.grid(which="minor", color="white", linewidth=1.2)
    ax.tick_params(which="minor", length=0)
    ax.set_xlabel("Model")
    ax.set_ylabel("Sampling steps")
    ax.set_title("Optimal CFG")
