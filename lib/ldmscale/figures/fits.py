"""Fits: loss and FID against training compute, with the laws through the checkpoints that nothing cheaper beats."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ldmscale.analysis.fits import FRONTIER, LOSS
from ldmscale.analysis.selection import METRIC_NAMES
from ldmscale.errors import UserError
from ldmscale.figures import style
from ldmscale.figures.data import FigureData

POWER = {"color": style.INK, "linestyle": (0, (4, 2)), "linewidth": 1.1}
FLOORED = {"color": "#b5332b", "linestyle": "-", "linewidth": 1.1}
RING = {"marker": "o", "markersize": 7.0, "markerfacecolor": "none", "markeredgewidth": 0.7, "linestyle": "none",
        "markeredgecolor": style.INK}  # fmt: skip


@style.styled
def fits(data: FigureData) -> Figure:
    """Validation loss and FID (CMMD too, where it is measured) of every checkpoint against training FLOPs.

    Rings: the frontier. Dashed: the power law through it; red: that with a floor, where the points determine one.
    """
    points, laws = pd.DataFrame(data.fits.get("points", ())), pd.DataFrame(data.fits.get("fits", ()))
    points = points[points["train_flops"] > 0] if len(points) else points
    if not len(points):
        raise UserError("the figure fits needs models that are trained here: set figures.fits to null")
    shown = list(dict.fromkeys(points["metric"]))
    models, looks = _models(data, points), style.model_styles(data.models)
    fig = style.new_figure(1.5 + 2.9 * len(shown), 3.2)
    notes = []
    for ax, metric in zip(fig.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        mine = points[points["metric"] == metric]
        for model in models:
            style_points(ax, mine[mine["model"] == model.name], "train_flops", looks[model.name])
        over = laws[(laws["metric"] == metric) & (laws["over"] == FRONTIER)] if len(laws) else laws
        notes += [note for law in over.to_dict("records") if (note := _law(ax, law, mine))]
        at = mine[mine["frontier"]]
        ax.plot(at["train_flops"], at["value"], clip_on=False, **RING)
        style.log_axis(ax, "x", mine["train_flops"], at_least=3)
        ax.set_xticks(ax.get_xticks(), [f"{flops:.0e}".replace("e+", "e") for flops in ax.get_xticks()])
        style.log_axis(ax, "y", mine["value"])
        ax.set_xlabel("Training FLOPs")
        ax.set_ylabel(f"{'Validation loss' if metric == LOSS else METRIC_NAMES[metric]}  (lower is better)")
    handles = [
        Line2D([], [], linestyle="none", label=""),
        Line2D([], [], label="frontier", **RING),
        Line2D([], [], label="power law", **POWER),
    ]
    if any(line.get_color() == FLOORED["color"] for ax in fig.axes for line in ax.lines):
        handles.append(Line2D([], [], label="with a floor", **FLOORED))
    style.side_legend(fig, [*style.model_handles(models, looks), *handles], "Model, parameters")
    style.add_caption(
        fig,
        f"{style.study_line(data.study)} Each model at its checkpoints. Frontier: the checkpoints that nothing trained "
        f"for less compute beats. Laws through the frontier (95% intervals over prompts or images and the points' "
        f"scatter): {'; '.join(notes) or 'too few points'}. Whiskers: 95% bootstrap intervals.",
    )
    return fig


def style_points(ax: Axes, rows: pd.DataFrame, x: str, look: dict) -> None:
    """``rows``' values against column ``x``, joined, with their intervals where they have any."""
    ax.plot(rows[x], rows["value"], markeredgecolor="white", markeredgewidth=0.5, clip_on=False, **look)
    if len(rows) and np.isfinite(rows[["low", "high"]].to_numpy(float)).all():
        ax.vlines(rows[x], rows["low"], rows["high"], color=look["color"], linewidth=0.7, alpha=0.45)


def _models(data: FigureData, points: pd.DataFrame):
    there = set(points["model"])
    return [m for m in data.models if m.name in there]


def _law(ax: Axes, law: dict, points: pd.DataFrame) -> str:
    """Draw one law over the frontier's compute; what the caption says of it."""
    name = "loss" if law["metric"] == LOSS else METRIC_NAMES[law["metric"]]
    if not law["determined"]:
        return f"{name}, floor not determined"
    at = points.loc[points["frontier"], "train_flops"]
    x = np.geomspace(at.min(), at.max(), 60)
    floored = law["law"] == "floor"
    floor = law["floor"] if floored else 0.0
    ax.plot(x, floor + law["scale"] * x ** -law["exponent"], zorder=1.8, **(FLOORED if floored else POWER))
    text = f"{name} exponent {law['exponent']:.2f} ({law['exponent_low']:.2f} to {law['exponent_high']:.2f})"
    if floored:
        text += f" above a floor of {floor:.3g} ({law['floor_low']:.3g} to {law['floor_high']:.3g})"
    return text
