"""Fig. 9: what each model size offers at a sampling cost."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmscale.analysis.frontier import COST_AXES, envelope
from ldmscale.analysis.selection import METRIC_NAMES, best_cfg
from ldmscale.figures import style
from ldmscale.figures.data import FigureData


@style.styled
def fig09(data: FigureData) -> Figure:
    """Left, sampling cost against steps; right, FID at the best guidance weight against sampling cost, a curve a model.

    The strip above the right panel shows the best model (chosen on tuning prompts) at or under each cost. Settings:
    ``experiment``, ``models``, ``metric`` (in place of FID) and ``axis`` (in place of the paper's cost).
    """
    metric, axis = data.metric, data.axis
    models, looks = data.shown(data.cells()), style.model_styles(data.models)
    rows = data.rows(models=models)
    rows = rows[rows["sampler"] == "ddim"]
    best = best_cfg(rows, metric)
    note = style.axis_note(best, axis)
    fig = style.new_figure(7.2, 3.3)
    grid = fig.add_gridspec(2, 2, height_ratios=[1, 22], width_ratios=[1, 1.35])
    left, right = fig.add_subplot(grid[1, 0]), fig.add_subplot(grid[1, 1])
    strip = fig.add_subplot(grid[0, 1], sharex=right)
    for model in models:
        mine, look = best[best["model"] == model.name], looks[model.name]
        mine = mine.sort_values("steps")
        left.plot(mine["steps"], mine[axis], markeredgecolor="white", markeredgewidth=0.5, **look)
        style.curve(right, mine, axis, metric, **look)
    left.set(xlabel="Sampling steps", ylabel=COST_AXES[axis], xlim=(0, None), ylim=(0, None))
    style.log_axis(right, "x", best[axis], at_least=5 if axis == "cost" else 3)
    style.metric_axis(right, best[metric], metric)
    right.set_xlabel(COST_AXES[axis])
    _strip(strip, envelope(rows, axis, metric), axis, looks, right.get_xlim()[1])
    style.side_legend(fig, style.model_handles(models, looks), "Model, parameters")
    style.add_caption(
        fig,
        f"{style.study_line(data.study, best, metric)} DDIM; CFG chosen for each model and step count on "
        f"{data.study.n_tuning:,} tuning prompts. {style.whiskers(best, metric)}"
        f"{note} Strip: best model at or under each cost among the settings sampled, by tuning "
        f"{METRIC_NAMES[metric]}.",
    )
    return fig


def _strip(ax: Axes, best: pd.DataFrame, axis: str, looks: dict[str, dict], right: float) -> None:
    """Colour each stretch of the cost ``axis`` by the model that is ``best`` there (:func:`envelope`)."""
    starts, names = best[axis].tolist(), best["model"].tolist()
    for start, end, name in zip(starts, [*starts[1:], right], names, strict=True):
        ax.axvspan(start, end, color=looks[name]["color"], linewidth=0)
    ax.set_ylim(0, 1)
    ax.set_axis_off()
    ax.set_title("Best model at or under a cost", size=7, weight="normal", color=style.GREY, pad=2)
