"""Whether FLOPs predict latency: measured seconds of a sampling step against its cost. Not in the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ldmscale.analysis.families import network_name
from ldmscale.analysis.study import ModelInfo
from ldmscale.errors import UserError
from ldmscale.figures import style
from ldmscale.figures.data import FigureData

# The kinds of step: (network, whether guided), name, evaluations of the U-Net, look.
KINDS = (
    (("t2i", "guided"), "guided", 2, {"color": "#222222", "marker": "o"}),
    (("t2i", "unguided"), "unguided", 1, {"color": "#3b6fb6", "marker": "s"}),
    (("codi", "guided"), "CoDi, guided", 2, {"color": "#b5332b", "marker": "^"}),
    (("codi", "unguided"), "CoDi, unguided", 1, {"color": "#b5332b", "marker": "v", "linestyle": (0, (3, 1.6))}),
    (("guided", "unguided"), "told its guidance", 1, {"color": "#8a6fbf", "marker": "D"}),
    (("superres", "unguided"), "super-resolution", 1, {"color": "#c98a1b", "marker": "P"}),
)
PROPORTIONAL = {"color": style.GREY, "linewidth": 0.9, "linestyle": (0, (1.5, 1.5)), "zorder": 1.5}


@style.styled
def latency(data: FigureData) -> Figure:
    """Left, measured milliseconds of a sampling step and image against the U-Net's cost, a curve a kind of step;
    right, the FLOPs of the text-to-image U-Nets done in a second. Were latency FLOPs, the right curves were level."""
    if not data.timing:
        raise UserError("the figure latency draws the study's timing.json, which it was not given")
    found = {key: _curve(data, *key) for key, *_ in KINDS}
    fig = style.new_figure(7.2, 3.1)
    left, right = fig.subplots(1, 2)
    everything = [model for models, _ in found.values() for model in models]
    costs, times = [m.norm_cost for m in everything], []
    kind = network_name(everything)
    handles = []
    for key, name, evaluations, look in KINDS:
        models, runs = found[key]
        if not models:
            continue
        xs = np.array([m.norm_cost for m in models])
        steps = np.array([[run["step"][k] for k in ("median", "least", "greatest")] for run in runs])
        times.append(1e3 * steps)
        _draw(left, xs, 1e3 * steps, look)
        if key[0] == "t2i":
            left.plot(xs, 1e3 * steps[-1, 0] * xs / xs[-1], **PROPORTIONAL)
            done = evaluations * np.array([m.gflops for m in models])[:, None] / steps
            _draw(right, xs, done, look)
        handles.append(Line2D([], [], label=name, markeredgecolor="white", markeredgewidth=0.5, **look))
    handles.append(Line2D([], [], label="as FLOPs grow", **PROPORTIONAL))
    for ax in (left, right):
        style.log_axis(ax, "x", costs, at_least=4)
        ax.set_xlabel(f"{kind[0].upper()}{kind[1:]} cost relative to the reference model")
    times = np.concatenate(times)
    style.log_axis(left, "y", times.ravel()[times.ravel() > 0])
    left.set_ylabel("Milliseconds a step and image")
    right.set_ylabel("GFLOPs a second")
    right.set_ylim(0, None)
    style.side_legend(fig, handles, "Step")
    beside = ", ".join(
        f"{words} {1e3 * data.timing[part]['median']:.2g}"
        for part, words in (("decode", "decoder"), ("caption", "text"))
    )
    style.add_caption(
        fig,
        f"{style.study_line(data.study)} Measured on {data.timing['machine']}, in batches of {data.timing['batch']}: "
        f"medians of {data.timing['repeats']} repeats, whiskers from the least to the greatest. A guided step "
        f"evaluates the {kind} twice, an unguided one of twice as many images once. "
        f"{_growth(*found[KINDS[0][0]])}Beside sampling, milliseconds an image: {beside}.",
    )
    return fig


def _curve(data: FigureData, network: str, kind: str) -> tuple[list[ModelInfo], list[Mapping[str, Any]]]:
    """The models that were timed with this kind of step, smallest first, and what was measured."""
    measured = data.timing["networks"].get(network, {})
    models = data.of_a_family([m for m in data.models if kind in measured.get(m.name, {})])
    return models, [measured[m.name][kind] for m in models]


def _draw(ax: Axes, xs: np.ndarray, values: np.ndarray, look: dict) -> None:
    """Medians with whiskers, values [N, (median, end, end)]."""
    ax.plot(xs, values[:, 0], markeredgecolor="white", markeredgewidth=0.5, clip_on=False, **look)
    ax.vlines(xs, values[:, 1], values[:, 2], color=look["color"], linewidth=0.7, alpha=0.45)


def _growth(models: list[ModelInfo], runs: list[Mapping[str, Any]]) -> str:
    """How a guided step's time grows with cost, by least squares in logarithms; empty with fewer than two models."""
    costs = {m.norm_cost for m in models}
    if len(costs) < 2:
        return ""
    slope = np.polyfit(np.log([m.norm_cost for m in models]), np.log([run["step"]["median"] for run in runs]), 1)[0]
    return f"Over the models, the time of a guided step grows as cost to the power {slope:.2f} (1: as FLOPs). "
