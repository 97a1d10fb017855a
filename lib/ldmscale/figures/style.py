"""The shared look of all figures: palettes, fonts, captions, log ticks, and files that are the same every time.

No text is ever read as markup: prompts, study names and labels may hold ``$ _ & % < > \\``.
"""

from __future__ import annotations

import functools
from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from ldmscale.analysis.frontier import check_axis
from ldmscale.analysis.intervals import interval
from ldmscale.analysis.selection import METRIC_NAMES, METRICS, replicates
from ldmscale.analysis.study import ModelInfo, StudyInfo, format_count, model_label
from ldmscale.config.study import DIT, UNET
from ldmscale.provenance import atomic_path
from ldmscale.text import one_line

STYLE = {
    "text.parse_math": False,
    "text.usetex": False,
    "font.family": "DejaVu Sans",  # ships with matplotlib, so that every machine draws the same figure
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 5.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#444444",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.fontsize": 7.0,
    "legend.title_fontsize": 7.0,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.labelspacing": 0.35,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.0,
    "figure.constrained_layout.h_pad": 0.05,
    "figure.constrained_layout.w_pad": 0.05,
    "figure.constrained_layout.wspace": 0.03,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "text.hinting": "no_hinting",  # so that lines are as wide as :func:`text_width` says
    "pdf.fonttype": 42,
}
INK, GREY = "#222222", "#666666"
CAPTION_SIZE = 6.2
LONGEST_LINE = 400  # characters: accents have no width
WHISKERS = "Whiskers: 95% bootstrap intervals over prompts; all points share the prompts, so differences are surer."
AXIS_NOTES = {
    "cost": "Sampling cost: a network's cost relative to the reference model × steps.",
    "nfe_cost": "Sampling cost: a network's cost relative to the reference model × its evaluations, two a guided step.",
    "sampling_tflops": "TFLOPs: all evaluations of the network, text encoder and decoder.",
    "seconds": "Seconds: all evaluations of the network, text encoder and decoder, measured on {}.",
}
MARKERS = ("o", "s", "^", "D", "v", "p", "<", "h", ">", "d", "8")
RAMPS = {UNET: ("viridis", 0.87, 0.0, MARKERS), DIT: ("OrRd", 0.45, 1.0, ("P", "X", "*", (3, 0, 90), (4, 1, 0)))}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under the shared style, untouched by the user's own matplotlib settings."""

    @functools.wraps(draw)
    def inner(data: object) -> Figure:
        with style():
            return draw(data)

    return inner


def style():
    """A context with matplotlib's defaults and :data:`STYLE` on top."""
    return mpl.rc_context({**{k: v for k, v in mpl.rcParamsDefault.items() if k not in _KEPT}, **STYLE})


_KEPT = {"backend", "backend_fallback", "interactive", "toolbar", "timezone", "docstring.hardcopy"}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` x ``height`` inches that keeps its parts from overlapping."""
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(fig: Figure, pdf_path: str | Path, png_path: str | Path, dpi: int, digest: str = "") -> None:
    """Write ``fig`` as PDF and PNG, which carry the ``digest`` of what it was drawn from; the same figure gives the
    same bytes (no date, no program version in the PNG)."""
    with style():
        with atomic_path(pdf_path) as temporary:
            fig.savefig(temporary, format="pdf", dpi=max(dpi, 300), metadata={"CreationDate": None, "Subject": digest})
        with atomic_path(png_path) as temporary:
            fig.savefig(temporary, format="png", dpi=dpi, metadata={"Software": None, "digest": digest})


# ---------------------------------------------------------------------------------------------------------------------
# Colours


def sequential(name: str, n: int, first: float, last: float) -> list[tuple[float, float, float]]:
    """``n`` colours of a perceptually ordered map, from ``first`` to ``last`` in [0,1]."""
    at = np.linspace(first, last, n) if n > 1 else [(first + last) / 2]
    return [tuple(float(c) for c in mpl.colormaps[name](x)[:3]) for x in at]


def model_styles(models: Sequence[ModelInfo]) -> dict[str, dict]:
    """Colour and marker of each model, one ramp and set of markers a family: light and small to dark and large
    (viridis, and reds beside it that are told from it in grey by their markers: safe for colour-blind readers)."""
    looks = {}
    for family, (ramp, first, last, markers) in RAMPS.items():
        mine = [m for m in models if m.family == family]
        colours = sequential(ramp, len(mine), first, last) if mine else []
        for i, (m, colour) in enumerate(zip(mine, colours, strict=True)):
            looks[m.name] = {"color": colour, "marker": markers[i % len(markers)]}
    return {m.name: looks[m.name] for m in models}


def cfg_colours(cfgs: Sequence[float]) -> dict[float, tuple[float, float, float]]:
    """Colour of each guidance weight: light and weak to dark and strong."""
    return dict(zip(sorted(cfgs), sequential("YlOrBr", len(cfgs), 0.28, 0.95), strict=True))


def legible_on(colour: Sequence[float]) -> str:
    """White on dark colours, ink on light ones, by relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return "white" if np.dot([0.2126, 0.7152, 0.0722], linear) < 0.3 else INK


# ---------------------------------------------------------------------------------------------------------------------
# Text


def text_width(text: str, size: float, **font: str) -> float:
    """Width in points of a line of text."""
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=size, **font), ismath=False)[0]


def wrap(text: str, width: float, size: float, max_lines: int = 0, **font: str) -> str:
    """Break ``text`` into lines of at most ``width`` points (and :data:`LONGEST_LINE` characters); beyond ``max_lines``
    (0: any) it ends in an ellipsis."""
    fits = lambda line: len(line) <= LONGEST_LINE and text_width(line, size, **font) <= width  # noqa: E731
    lines, line, words = [], "", one_line(text).split(" ")[::-1]
    while words and not 0 < max_lines < len(lines):
        word = words.pop()
        joined = f"{line} {word}" if line else word
        if fits(joined):
            line = joined
        elif fits(word) or len(word) == 1:
            lines += [line] if line else []
            line = word
        else:  # a word longer than a line
            lines += [line] if line else []
            places = range(1, min(len(word), LONGEST_LINE + 1))
            cut = max(1, bisect(places, False, key=lambda n: not fits(word[:n])))
            lines.append(word[:cut])
            words.append(word[cut:])
            line = ""
    lines.append(line)
    if max_lines and len(lines) > max_lines:
        last = lines[max_lines - 1] + "…"
        while not fits(last) and len(last) > 1:
            last = last[:-2].rstrip() + "…"
        lines = [*lines[: max_lines - 1], last]
    return "\n".join(lines)


def study_line(study: StudyInfo, rows: pd.DataFrame | None = None, metric: str = "fid") -> str:
    """What every caption says: study, data and, where ``rows`` are shown, the metric's features and sample count."""
    text = f"Study “{study.name}”: {study.data}, {study.image_size}×{study.image_size} px."
    if rows is None:
        return text
    counts = sorted({int(n) for n in rows["n"]})
    n = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    few = f" {study.few(counts[0])}." if metric == "fid" and study.few(counts[0]) else ""
    return f"{text} {_measured(study, metric)}, n = {n} held-out prompts.{few}"


def _measured(study: StudyInfo, metric: str) -> str:
    """The metric and the features that it is computed in."""
    name = _title(metric)
    if metric == "fd_dino":  # whose name says it
        return name
    if metric in ("clip", "cmmd"):
        return f"{name} {'by' if metric == 'clip' else 'on'} {study.clip_features}"
    return f"{name} on {study.fid_features}"


def _title(metric: str) -> str:
    return METRIC_NAMES[metric][0].upper() + METRIC_NAMES[metric][1:]


def axis_note(rows: pd.DataFrame, axis: str) -> str:
    """What the cost on ``axis`` counts, for a caption; of measured seconds also the machine."""
    check_axis(rows, axis)
    machines = rows["seconds_machine"].unique() if axis == "seconds" else []
    return AXIS_NOTES[axis].format(" and ".join(machines))


def whiskers(rows: pd.DataFrame, metric: str) -> str:
    """:data:`WHISKERS` and a blank, or nothing where ``rows`` have no replicates of ``metric``."""
    return f"{WHISKERS} " if replicates(rows, metric).shape[1] else ""


def add_caption(fig: Figure, text: str) -> None:
    """Put ``text`` at the bottom left, wrapped to the figure's width; constrained layout leaves room for it."""
    width = fig.get_figwidth() * 72 * 0.98
    fig.supxlabel(wrap(text, width, CAPTION_SIZE), x=0.01, ha="left", size=CAPTION_SIZE, color=GREY, linespacing=1.25)


# ---------------------------------------------------------------------------------------------------------------------
# Axes

_LOG_SUBS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.5, 2, 3, 4, 6, 8))


def log_axis(ax: Axes, axis: str, values: Iterable[float], at_least: int = 4) -> None:
    """A log axis over ``values`` with plain labels (1, 30, 2k, 5M) at round numbers, at least so many if possible."""
    values = np.asarray(list(values), float)
    low, high = values.min() / 1.12, values.max() * 1.12
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = []
    for subs in _LOG_SUBS:
        ticks = [s * 10.0**d for d in decades for s in subs if low <= s * 10.0**d <= high]
        if len(ticks) >= at_least:
            break
    getattr(ax, f"set_{axis}scale")("log")
    getattr(ax, f"set_{axis}lim")(low, high)
    _set_ticks(ax, axis, ticks)


def steps_axis(ax: Axes, steps: Sequence[int], width_in: float) -> None:
    """A log x axis with a tick at every step count, and labels on as many of them as ``width_in`` inches hold."""
    log_axis(ax, "x", steps)
    low, high = np.log(ax.get_xlim())
    room, kept = width_in * 72 / (high - low), []
    # The ends first, then the others from small to large where they fit.
    for step in dict.fromkeys([min(steps), max(steps), *sorted(steps)]):
        half = text_width(str(step), 7.0) / 2 + 2
        if all(abs(np.log(step / k)) * room > half + text_width(str(k), 7.0) / 2 for k in kept):
            kept.append(step)
    _set_ticks(ax, "x", sorted(steps), [str(s) if s in kept else "" for s in sorted(steps)])


def _set_ticks(ax: Axes, axis: str, ticks: Sequence[float], labels: Sequence[str] | None = None) -> None:
    which = getattr(ax, f"{axis}axis")
    which.set_major_locator(FixedLocator(ticks))
    which.set_major_formatter(FixedFormatter(labels or [format_count(t) for t in ticks]))
    which.set_minor_locator(NullLocator())


def metric_axis(ax: Axes, values: Iterable[float], metric: str = "fid") -> None:
    """The y axis of ``metric``: linear as in the paper, log where distances span more than a factor of eight."""
    values = np.asarray(list(values), float)
    if METRICS[metric] < 0 and values.min() > 0 and values.max() > 8 * values.min():
        log_axis(ax, "y", values)
    ax.set_ylabel(f"{_title(metric)}  ({'higher' if METRICS[metric] > 0 else 'lower'} is better)")


def curve(ax: Axes, rows: pd.DataFrame, x: str, metric: str, intervals: bool = True, **look) -> None:
    """``metric`` against column ``x`` with the 95% interval of each point as a thin whisker."""
    rows = rows.sort_values(x)
    xs, ys = rows[x].to_numpy(float), rows[metric].to_numpy(float)
    ax.plot(xs, ys, markeredgecolor="white", markeredgewidth=0.5, clip_on=False, **look)
    limits = np.array([interval(y, r) for y, r in zip(ys, replicates(rows, metric), strict=True)])
    if intervals and len(limits) and np.isfinite(limits).all():
        ax.vlines(xs, limits[:, 0], limits[:, 1], color=look["color"], linewidth=0.7, alpha=0.45)


def model_handles(models: Sequence[ModelInfo], styles: dict[str, dict]) -> list[Line2D]:
    """Legend entries, smallest model first."""
    return [
        Line2D([], [], label=model_label(m), markeredgecolor="white", markeredgewidth=0.5, **styles[m.name])
        for m in models
    ]


def side_legend(fig: Figure, handles: Sequence[Line2D], title: str) -> None:
    """A legend to the right of all panels, where it covers nothing."""
    fig.legend(handles=handles, title=title, loc="outside right upper", alignment="left", borderaxespad=0.2)
