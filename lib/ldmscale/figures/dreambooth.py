"""DreamBooth: its pictures (Fig. 6), and its metrics against model size, which the paper does not give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter

from ldmscale.analysis.dreambooth import CEILINGS, DREAMBOOTH, MEASURES, by_model
from ldmscale.analysis.intervals import interval
from ldmscale.analysis.selection import replicates
from ldmscale.analysis.study import SAMPLER_NAMES, ModelInfo, format_params, model_label
from ldmscale.cells.cell import Cell
from ldmscale.errors import UserError
from ldmscale.figures import style
from ldmscale.figures.data import FigureData
from ldmscale.figures.pictures import Row, picture_grid

# Which network each metric is of, the published one's name begins with, and which way is better.
PANELS = {
    "dino": ("subject_features", "DINO", "higher: more like the subject"),
    "clip_i": ("clip_features", "", "higher: more like the subject"),
    "clip_t": ("clip_features", "", "higher: closer to the prompt"),
    "pres": ("subject_features", "DINO", "lower: the class is kept apart"),
    "div": ("diversity_features", "LPIPS", "higher: more varied"),
}
APART = 1.06  # factor in parameters between a model's two points, so that their whiskers do not lie on each other


@style.styled
def fig06(data: FigureData) -> Figure:
    """Fig. 6: each subject, first as it is, then as every model draws it after finetuning, smallest model first.

    Settings: ``experiment`` (of the task dreambooth, one sampler, step count and CFG), ``subjects`` (names),
    ``prompt`` (index into each subject's prompts), ``models``. Of several checkpoints the last is shown.
    """
    cells, index = _cells(data, "fig06"), data.require("prompt")
    models = data.shown(cells)
    rows, shown = [], []
    for name in data.require("subjects"):
        if name not in data.subjects:
            raise UserError(f"fig06 shows the subject '{name}', which the study lacks: it has {_words(data.subjects)}")
        subject = data.subjects[name]
        prompts = subject["prompts"]
        if not 0 <= index < len(prompts):
            raise UserError(f"fig06 shows prompt {index} of '{name}', which has {len(prompts)} prompts (from 0)")
        mine = [_last(cells, model, name) for model in models]
        shown += mine
        drawn = [_picture(data, cell, index, len(prompts)) for cell in mine]
        text = f"“{style.one_line(prompts[index])}”, the {subject['class_name']} being the subject {name}"
        rows.append(Row([data.arrays(f"dreambooth/{name}/images")[0], *drawn], text=style.one_line(text)))
    if not rows:
        raise UserError("fig06 shows no subject: give its 'subjects' at least one name")
    note = (
        f"{style.study_line(data.study)} DreamBooth: each model finetuned on the subject's few images for "
        f"{_steps(c.train_step for c in shown)} steps. {_sampling(shown[0])}. The prompts are given to the models with "
        "the subject's identifier before the class. First of the images drawn for the prompt, one starting noise in "
        "every model; pictures are not picked."
    )
    return picture_grid(["A real image", *(model_label(m, "\n") for m in models)], rows, note)


@style.styled
def dreambooth_metrics(data: FigureData) -> Figure:
    """DINO, CLIP-I, CLIP-T, prior preservation and diversity of every model, finetuned and before, over all subjects.

    Settings: ``experiment`` (of the task dreambooth, one sampler, step count and CFG; with ``weights: all`` it holds
    step 0, before finetuning), ``models``.
    """
    cells = _cells(data, "dreambooth_metrics")
    models = data.shown(cells)
    rows = data.rows(models=models)
    table = by_model(rows)
    after = table[table["train_step"] > 0].drop_duplicates("model", keep="last")
    lost = [m.name for m in models if m.name not in set(after["model"])]
    if lost:
        raise UserError(f"dreambooth_metrics draws finetuned models, its experiment has {lost[0]} at step 0 only")
    before = table[table["train_step"] == 0]
    looks = style.model_styles(data.models)
    fig = style.new_figure(7.2, 4.6)
    axes = fig.subplots(2, 3).ravel()
    for ax, measure in zip(axes, PANELS, strict=False):
        _panel(ax, measure, before, after, looks)
    _legends(axes[-1], style.model_handles(models, looks), bool(len(before)))
    prompts = sorted({np.size(values) for values in rows["dino"]})
    subjects = int(table["subjects"].iloc[0])
    same = ""
    if np.allclose(table["dino"], table["clip_i"], atol=1e-9):
        same = " DINO's stand-in is what CLIP-I measures with, so the two are one number here."
    style.add_caption(
        fig,
        f"{style.study_line(data.study)} DreamBooth over {subjects} subject{'s' * (subjects != 1)} with "
        f"{_range(prompts)} prompts each, finetuned for {_steps(after['train_step'])} steps. {_sampling(cells[0])}. "
        "DINO, CLIP-I: mean cosine to the subject's real images; CLIP-T: to the prompt without the identifier; PRES: "
        "of images of the class alone to the subject; DIV: distance among the images of a prompt."
        f"{same} Whiskers: 95% bootstrap intervals over prompts (PRES: class images) within each subject, of these "
        "subjects and one training run a model.",
    )
    return fig


def _panel(ax: Axes, measure: str, before: pd.DataFrame, after: pd.DataFrame, looks: dict[str, dict]) -> None:
    # Grey lines join the models, so that the eye follows the metric and not the pairs.
    if len(before):
        ax.plot(before["params"] / APART**0.5, before[measure], color="#bbbbbb", linewidth=0.8, linestyle=":")
    ax.plot(after["params"] * APART**0.5, after[measure], color="#bbbbbb", linewidth=0.9)
    for rows, shift, filled in ((before, APART**-0.5, False), (after, APART**0.5, True)):
        for (_, row), reps in zip(rows.iterrows(), replicates(rows, measure), strict=True):
            look, x = looks[row["model"]], row["params"] * shift
            ax.vlines(x, *interval(row[measure], reps), color=look["color"], linewidth=0.9, alpha=0.6)
            face = {} if filled else {"markerfacecolor": "white"}
            ax.plot([x], [row[measure]], linestyle="none", clip_on=False, **look, **face)
    if measure in CEILINGS:
        ax.axhline(after[CEILINGS[measure]].iloc[0], color=style.INK, linestyle="--", linewidth=0.9, zorder=1.5)
    style.log_axis(ax, "x", after["params"], at_least=3)
    ax.xaxis.set_major_formatter(FixedFormatter([format_params(tick) for tick in ax.get_xticks()]))
    ax.set_xlabel("Parameters")
    column, published, better = PANELS[measure]
    features = after[column].iloc[0]
    label = features if features.startswith(published) else f"stand-in: {features}"
    ax.set_title(MEASURES[measure])
    ax.set_ylabel(style.wrap(label, 1.75 * 72, 7.0, max_lines=2) + f"\n{better}", size=7)


def _legends(ax: Axes, models: list[Line2D], before: bool) -> None:
    """The place of a sixth panel, with what the marks mean below which model is which."""
    ax.set_axis_off()
    for handle in models:
        handle.set_linestyle("none")
    look = {"borderaxespad": 0, "alignment": "left"}
    top = {"loc": "upper left", "bbox_to_anchor": (0, 1.1), "ncols": 1 if len(models) <= 6 else 2}
    ax.add_artist(ax.legend(handles=models, title="Model, parameters", **top, **look))
    grey = {"color": style.GREY, "marker": "o", "linestyle": "none"}
    marks = [Line2D([], [], label="finetuned", **grey)]
    if before:
        marks.append(Line2D([], [], label="before finetuning", markerfacecolor="white", **grey))
    marks.append(Line2D([], [], label="real images among themselves", color=style.INK, linestyle="--", linewidth=0.9))
    ax.legend(handles=marks, loc="lower left", **look)


def _cells(data: FigureData, figure: str) -> list[Cell]:
    """The experiment's cells: all of DreamBooth, at one sampling setting."""
    cells = data.cells()
    other = [cell.path for cell in cells if cell.task != DREAMBOOTH]
    if other:
        raise UserError(f"{figure} shows DreamBooth, its experiment holds {other[0]}")
    settings = sorted({(cell.sampler, cell.steps, cell.cfg) for cell in cells})
    if len(settings) > 1:
        raise UserError(
            f"{figure} needs one sampler, step count and CFG, its experiment has {len(settings)}: "
            + ", ".join(f"{sampler} {steps} steps CFG {cfg:g}" for sampler, steps, cfg in settings)
        )
    return cells


def _last(cells: Sequence[Cell], model: ModelInfo, subject: str) -> Cell:
    """The last checkpoint of ``model`` finetuned on ``subject``."""
    mine = [c for c in cells if c.model == model.name and c.subject == subject and c.train_step > 0]
    if not mine:
        raise UserError(f"fig06 shows '{subject}' by model {model.name}, which its experiment has no finetuned cell of")
    return max(mine, key=lambda cell: cell.train_step)


def _picture(data: FigureData, cell: Cell, prompt: int, prompts: int) -> np.ndarray:
    """The first image of ``prompt`` in ``cell``: uint8 [H,W,3]."""
    images = np.asarray(data.previews(cell))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) % prompts or not len(images):
        raise UserError(
            f"the images of {cell.path} are {images.dtype} {list(images.shape)}: they should be uint8 [P*K,H,W,3], "
            f"K images for each of {prompts} prompts"
        )
    return images[prompt * (len(images) // prompts)]


def _sampling(cell: Cell) -> str:
    return f"{cell.steps}-step {SAMPLER_NAMES[cell.sampler]}, CFG {cell.cfg:g}"


def _steps(steps) -> str:
    return _range(sorted(set(steps)))


def _range(numbers: Sequence[int]) -> str:
    return " to ".join(dict.fromkeys(f"{n:,}" for n in (numbers[0], numbers[-1])))


def _words(names) -> str:
    return ", ".join(names) or "none"
