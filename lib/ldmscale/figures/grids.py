"""Picture grids: samples by model (Figs. 1, 14 to 16), by guidance weight (7), and at the same cost (10, 21 to 23)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ldmscale.analysis.study import SAMPLER_NAMES, ModelInfo
from ldmscale.cells.cell import Cell
from ldmscale.cells.cost import steps_at_cost
from ldmscale.errors import UserError
from ldmscale.figures import style
from ldmscale.figures.data import FigureData

TEXT_WIDTH = 7.2  # inches: a page's text block, which grids fill where their cells stay in bounds
PAGE_HEIGHT = 9.2
CELL_BOUNDS = (0.85, 1.45)
GAP, MARGIN = 0.04, 0.06
HEADER_SIZE, LABEL_SIZE, PROMPT_SIZE = 7.5, 6.2, 7.2
LINE = 1.32  # line height over font size
PIXELS_PER_INCH = 300
MAX_PROMPT_LINES = 3


@dataclass(frozen=True)
class Row:
    """A row of pictures uint8 [H,W,3], the text under it, and a label under (or at the left of) each picture."""

    pictures: Sequence[np.ndarray]
    text: str = ""
    labels: Sequence[str] = field(default=())
    name: str = ""


@style.styled
def sample_grid(data: FigureData) -> Figure:
    """Figs. 1, 14 to 16: the same prompts and starting noises through every model, smallest first.

    Settings: ``experiment``, ``prompts`` (indices into the gallery), ``models`` (default: all of the experiment).
    """
    cells = data.cells()
    models = data.shown(cells)
    columns = [_only([c for c in cells if c.model == m.name], f"model {m.name}") for m in models]
    rows = [
        Row([data.picture(cell, i) for cell in columns], text=_quoted(data.prompt(i))) for i in data.require("prompts")
    ]
    settings = f"{_setting(columns[0])}, CFG {columns[0].cfg:g}"
    note = f"{style.study_line(data.study)} {settings}. One starting noise a prompt, the same for every model; not picked."
    return picture_grid([style.model_label(m, "\n") for m in models], rows, note)


@style.styled
def fig07(data: FigureData) -> Figure:
    """Fig. 7: one prompt through every guidance weight in two models.

    Settings: ``experiment``, ``models``, ``prompt``, ``steps`` (default: the most of the experiment).
    """
    cells = [cell for cell in data.cells() if cell.sampler == "ddim"]
    steps = data.settings.get("steps", max(cell.steps for cell in cells))
    cells = [cell for cell in cells if cell.steps == steps]
    cfgs = sorted({cell.cfg for cell in cells})
    index = data.require("prompt")
    rows = []
    for model in data.shown(cells):
        mine = [_only([c for c in cells if c.model == model.name and c.cfg == g], f"{model.name} CFG {g:g}") for g in cfgs]
        rows.append(Row([data.picture(cell, index) for cell in mine], name=style.model_label(model, "\n")))
    rows[-1] = Row(rows[-1].pictures, text=_quoted(data.prompt(index)), name=rows[-1].name)
    note = f"{style.study_line(data.study)} {_setting(cells[0])}. The same starting noise everywhere; not picked."
    return picture_grid([f"CFG {g:g}" for g in cfgs], rows, note)


@style.styled
def same_cost_grid(data: FigureData) -> Figure:
    """Figs. 10, 21 to 23: what each model draws at the same sampling cost, with the steps that it can afford.

    Settings: ``experiment``, ``rows`` (each a ``cost`` and a ``prompt``), ``models``.
    """
    cells = data.cells()
    models = data.shown(cells)
    wanted = data.require("rows")
    by_row = [[_at_cost(cells, m, row["cost"]) for m in models] for row in wanted]
    one_cost = len({row["cost"] for row in wanted}) == 1
    headers = [style.model_label(m, "\n") for m in models]
    rows = []
    for row, mine in zip(wanted, by_row, strict=True):
        labels = [_steps(cell.steps) for cell in mine]
        prompt = _quoted(data.prompt(row["prompt"]))
        pictures = [data.picture(cell, row["prompt"]) for cell in mine]
        rows.append(Row(pictures, text=f"Sampling cost ≈ {row['cost']:g}:  {prompt}", labels=labels))
    if one_cost:  # the steps are the same down a column, so say them once
        headers = [f"{h}\n{_steps(c.steps)}" for h, c in zip(headers, by_row[0], strict=True)]
        rows = [Row(r.pictures, text=r.text) for r in rows]
    note = (
        f"{style.study_line(data.study)} {_setting(by_row[0][0], steps=False)}, CFG {by_row[0][0].cfg:g}; steps = cost / U-Net "
        "cost relative to the reference, rounded, at least 1. One starting noise a prompt, the same for every model; not "
        "picked."
    )
    return picture_grid(headers, rows, note)


def _at_cost(cells: Sequence[Cell], model: ModelInfo, cost: float) -> Cell:
    steps = steps_at_cost(cost, model.norm_cost)
    mine = [c for c in cells if c.model == model.name and c.steps == steps]
    return _only(mine, f"cost {cost:g} ({model.name}, {steps} steps)")


def _only(cells: Sequence[Cell], what: str) -> Cell:
    if len(cells) != 1:
        raise UserError(f"a picture grid needs one cell for {what}, its experiment has {len(cells)}")
    return cells[0]


def _quoted(prompt: str) -> str:
    return f"“{style.one_line(prompt)}”"


def _steps(steps: int) -> str:
    return f"{steps} step" + "s" * (steps != 1)


def _setting(cell: Cell, steps: bool = True) -> str:
    return f"{SAMPLER_NAMES[cell.sampler]}, {_steps(cell.steps)}" if steps else SAMPLER_NAMES[cell.sampler]


def picture_grid(headers: Sequence[str], rows: Sequence[Row], caption: str) -> Figure:
    """Rows of equally large pictures under column headers, laid out in inches so that nothing can overlap.

    Text wraps to the grid's width; long prompts end in an ellipsis after three lines.
    """
    columns = len(headers)
    names = [row.name for row in rows if row.name]
    left = MARGIN
    if names:
        left += 0.12 + max(style.text_width(line, HEADER_SIZE) for n in names for line in n.split("\n")) / 72
    widest = max(style.text_width(line, HEADER_SIZE) for h in headers for line in h.split("\n")) / 72 + 0.04
    cell = (TEXT_WIDTH - left - MARGIN - GAP * (columns - 1)) / columns
    cell = min(cell, CELL_BOUNDS[1], PAGE_HEIGHT / len(rows) - 0.3)
    cell = max(cell, CELL_BOUNDS[0], widest)
    width = max(left + columns * cell + (columns - 1) * GAP + MARGIN, 3.6)

    def points(lines: int, size: float) -> float:
        return lines * size * LINE / 72

    text_points = (width - left - MARGIN) * 72
    texts = [style.wrap(row.text, text_points, PROMPT_SIZE, MAX_PROMPT_LINES, style="italic") for row in rows]
    caption_text = style.wrap(caption, (width - 2 * MARGIN) * 72, style.CAPTION_SIZE)
    header_height = points(max(h.count("\n") + 1 for h in headers), HEADER_SIZE) + 0.05
    below = []
    for row, text in zip(rows, texts, strict=True):
        labels = points(1, LABEL_SIZE) + 0.02 if row.labels else 0.0
        prompt = points(text.count("\n") + 1, PROMPT_SIZE) + 0.13 if text else GAP
        below.append((labels, prompt))
    caption_height = points(caption_text.count("\n") + 1, style.CAPTION_SIZE) + 0.03
    height = 2 * MARGIN + header_height + len(rows) * cell + sum(a + b for a, b in below) + caption_height

    fig = Figure(figsize=(width, height))
    canvas = fig.add_axes((0, 0, 1, 1), frameon=False)
    canvas.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    x = [left + i * (cell + GAP) for i in range(columns)]
    y = MARGIN + header_height
    for at, header in zip(x, headers, strict=True):
        canvas.text(at + cell / 2, y - 0.05, header, ha="center", va="bottom", size=HEADER_SIZE, linespacing=1.2)
    for row, text, (labels, prompt) in zip(rows, texts, below, strict=True):
        if row.name:
            canvas.text(left - 0.07, y + cell / 2, row.name, ha="right", va="center", size=HEADER_SIZE, linespacing=1.2)
        for i, picture in enumerate(row.pictures):
            box = (x[i] / width, 1 - (y + cell) / height, cell / width, cell / height)
            ax = fig.add_axes(box, xticks=[], yticks=[])
            ax.imshow(resized(picture, round(cell * PIXELS_PER_INCH)), aspect="auto")
            ax.set(frame_on=False)
            if row.labels:
                label = row.labels[i]
                canvas.text(x[i] + cell / 2, y + cell + 0.02, label, ha="center", va="top", size=LABEL_SIZE, color=style.GREY)
        y += cell + labels
        canvas.text(left, y + 0.035, text, ha="left", va="top", size=PROMPT_SIZE, style="italic", linespacing=1.2)
        y += prompt
    canvas.text(
        MARGIN, height - MARGIN, caption_text, ha="left", va="bottom", size=style.CAPTION_SIZE, color=style.GREY,
        linespacing=1.2,
    )  # fmt: skip
    return fig


def resized(picture: np.ndarray, pixels: int) -> np.ndarray:
    """``picture`` uint8 [H,W,3] at about ``pixels`` a side: small ones enlarged by a whole factor, so that their pixels
    stay equal squares, others resampled by Lanczos."""
    side = max(picture.shape[:2])
    if 2 * side <= pixels:
        factor = -(-pixels // side)
        return picture.repeat(factor, axis=0).repeat(factor, axis=1)
    if side == pixels:
        return picture
    height, width = (max(1, round(s * pixels / side)) for s in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
