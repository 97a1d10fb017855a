"""Both families of networks on one cost axis: at which sampling costs U-Nets or transformers do better."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ldmscale.analysis.families import NAMES, contest, contest_words
from ldmscale.analysis.frontier import COST_AXES, envelope
from ldmscale.analysis.selection import METRIC_NAMES, best_cfg
from ldmscale.config.study import DIT, UNET
from ldmscale.errors import UserError
from ldmscale.figures import style
from ldmscale.figures.data import FigureData

FRONTIER = {"linewidth": 5.0, "alpha": 0.18, "solid_capstyle": "round", "zorder": 1}


@style.styled
def families(data: FigureData) -> Figure:
    """FID at the best guidance weight against sampling cost, a curve a model; the broad bands join what each family's
    best (chosen on tuning prompts) does at or under a cost.

    Settings: ``experiment``, ``models``, ``metric`` (in place of FID) and ``axis`` (in place of the paper's cost).
    """
    metric, axis = data.metric, data.axis
    names, looks = data.settings.get("models", [m.name for m in data.models]), style.model_styles(data.models)
    rows = data.rows()
    rows = rows[(rows["sampler"] == "ddim") & rows["model"].isin(names)]
    models = [m for m in data.models if m.name in set(rows["model"])]
    found = contest(rows, axis, metric)
    if found.empty:
        raise UserError("the figure families needs U-Nets and transformers: set figures.families to null")
    best = best_cfg(rows, metric)
    note = style.axis_note(best, axis)
    fig = style.new_figure(7.2, 3.7)
    ax, handles = fig.subplots(), []
    for family in (UNET, DIT):
        mine = [m for m in models if m.family == family]
        _band(ax, rows[rows["model"].isin([m.name for m in mine])], axis, metric, looks[mine[-1].name]["color"])
        for model in mine:
            style.curve(ax, best[best["model"] == model.name], axis, metric, **looks[model.name])
        handles.append(Line2D([], [], linestyle="none", label=f"{NAMES[family][0].upper()}{NAMES[family][1:]}s"))
        handles += style.model_handles(mine, looks)
    style.log_axis(ax, "x", best[axis], at_least=5 if axis == "cost" else 3)
    style.metric_axis(ax, best[metric], metric)
    ax.set_xlabel(COST_AXES[axis])
    style.side_legend(fig, handles, "Model, parameters")
    style.add_caption(
        fig,
        f"{style.study_line(data.study, best, metric)} DDIM; CFG chosen for each model and step count on "
        f"{data.study.n_tuning:,} tuning prompts. {style.whiskers(best, metric)}{note} Bands: the best of each family "
        f"at or under a cost by tuning {METRIC_NAMES[metric]}. {METRIC_NAMES[metric]} of these on held-out prompts, "
        f"model, steps and CFG chosen on tuning ones: {contest_words(found)}.",
    )
    return fig


def _band(ax, rows, axis: str, metric: str, colour) -> None:
    """The held-out ``metric`` of the family's best at each cost that buys a better one, as steps."""
    best = envelope(rows, axis, metric)
    held = rows[rows["split"] == "heldout"].set_index("cell")[metric]
    ax.step(best[axis], best["cell"].map(held), where="post", color=colour, **FRONTIER)
