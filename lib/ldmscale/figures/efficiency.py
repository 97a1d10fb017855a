"""Fig. 9: what each model size offers at a sampling cost."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmscale.analysis.frontier import envelope
from ldmscale.analysis.selection import best_cfg
from ldmscale.figures import style
from ldmscale.figures.data import FigureData


@style.styled
def fig09(data: FigureData) -> Figure:
    """Left, sampling cost against steps; right, FID at the best guidance weight against sampling cost, a curve a model.

    The strip above the right panel shows the best model (chosen on tuning prompts) at or under each cost.
    """
    models, looks = data.shown(data.cells()), style.model_styles(data.models)
    rows = data.rows(models=models)
    rows = rows[rows["sampler"] == "ddim"]
    best = best_cfg(rows)
    fig = style.new_figure(7.2, 3.3)
    grid = fig.add_gridspec(2, 2, height_ratios=[1, 22], width_ratios=[1, 1.35])
    left, right = fig.add_subplot(grid[1, 0]), fig.add_subplot(grid[1, 1])
    strip = fig.add_subplot(grid[0, 1], sharex=right)
    for model in models:
        mine, look = best[best["model"] == model.name], looks[model.name]
        mine = mine.sort_values("cost")
        left.plot(mine["steps"], mine["cost"], markeredgecolor="white", markeredgewidth=0.5, **look)
        style.curve(right, mine, "cost", "fid", **look)
    left.set(xlabel="Sampling steps", ylabel="Sampling cost", xlim=(0, None), ylim=(0, None))
    style.log_axis(right, "x", best["cost"], at_least=5)
    style.fid_axis(right, best["fid"])
    right.set_xlabel("Sampling cost")
    _strip(strip, rows, looks, right.get_xlim()[1])
    style.side_legend(fig, style.model_handles(models, looks), "Model, parameters")
    style.add_caption(
        fig,
        f"{style.study_line(data.study, best)} DDIM; CFG chosen for each model and step count on "
        f"{data.study.n_tuning:,} tuning prompts. {style.WHISKERS} "
        "Sampling cost: U-Net cost relative to the reference model × steps. Strip: best model at or under each cost "
        "among the settings sampled, by tuning FID.",
    )
    return fig


def _strip(ax: Axes, rows: pd.DataFrame, looks: dict[str, dict], right: float) -> None:
    """Colour each stretch of cost by the model that is best there."""
    best = envelope(rows)
    starts, names = best["cost"].tolist(), best["model"].tolist()
    for start, end, name in zip(starts, [*starts[1:], right], names, strict=True):
        ax.axvspan(start, end, color=looks[name]["color"], linewidth=0)
    ax.set_ylim(0, 1)
    ax.set_axis_off()
    ax.set_title("Best model at or under a cost", size=7, weight="normal", color=style.GREY, pad=2)
