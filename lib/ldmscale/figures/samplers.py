"""Fig. 11: whether smaller models stay the more efficient ones with other samplers."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ldmscale.analysis.frontier import COST_AXES
from ldmscale.analysis.selection import best_cfg
from ldmscale.analysis.study import SAMPLER_NAMES
from ldmscale.errors import UserError
from ldmscale.figures import style
from ldmscale.figures.data import FigureData

DEFAULT_MAX_STEPS = 20  # the paper draws DPM-Solver++ up to 20 steps


@style.styled
def fig11(data: FigureData) -> Figure:
    """FID at the best guidance weight against sampling cost: DDPM and DPM-Solver++ (solid) with DDIM (dashed).

    Settings: ``experiment`` (DDPM and DPM-Solver++), ``baseline`` (DDIM), ``steps`` (most steps in the right panel),
    ``models``, ``metric`` (in place of FID), ``axis`` (in place of the paper's cost).
    """
    metric, axis = data.metric, data.axis
    models, looks = data.shown(data.cells()), style.model_styles(data.models)
    rows, baseline = best_cfg(data.rows(models=models), metric), best_cfg(data.rows("baseline", models), metric)
    baseline = baseline[baseline["sampler"] == "ddim"]
    limit = int(data.settings.get("steps", DEFAULT_MAX_STEPS))
    # The paper's cost needs no words here.
    note = "" if axis == "cost" else f" {style.axis_note(rows, axis)}"
    fig = style.new_figure(7.2, 3.1)
    panels = [("ddpm", int(rows["steps"].max())), ("dpmpp2m", limit)]
    for ax, (sampler, most) in zip(fig.subplots(1, 2), panels, strict=True):
        shown = [r[r["steps"] <= most] for r in (rows[rows["sampler"] == sampler], baseline)]
        if any(r.empty for r in shown):
            raise UserError(f"fig11 has no {sampler} or DDIM cells of {most} steps or fewer: widen its experiments")
        _panel(ax, *shown, models, looks, axis, metric)
        ax.set_title(f"{SAMPLER_NAMES[sampler]} and DDIM")
    handles = [
        Line2D([], [], linestyle="none", label=""),
        Line2D([], [], color=style.INK, linestyle="-", label="DDPM (left),\nDPM-Solver++ (right)"),
        Line2D([], [], color=style.INK, linestyle=(0, (3, 1.6)), linewidth=1.0, label="DDIM"),
    ]
    style.side_legend(fig, [*style.model_handles(models, looks), *handles], "Model, parameters")
    style.add_caption(
        fig,
        f"{style.study_line(data.study, rows, metric)} CFG chosen for each model, sampler and step count on "
        f"{data.study.n_tuning:,} tuning prompts. Right: {limit} steps or fewer.{note} "
        f"{style.whiskers(rows, metric)}",
    )
    return fig


def _panel(
    ax: Axes, rows: pd.DataFrame, baseline: pd.DataFrame, models: list, looks: dict[str, dict], axis: str, metric: str
) -> None:
    for model in models:
        look = looks[model.name]
        dashed = {**look, "linestyle": (0, (3, 1.6)), "linewidth": 1.0, "markersize": 2.8, "alpha": 0.65}
        style.curve(ax, baseline[baseline["model"] == model.name], axis, metric, False, **dashed)
        style.curve(ax, rows[rows["model"] == model.name], axis, metric, **look)
    both = pd.concat([rows, baseline])
    style.log_axis(ax, "x", both[axis], at_least=5 if axis == "cost" else 3)
    style.metric_axis(ax, both[metric], metric)
    ax.set_xlabel(COST_AXES[axis])
