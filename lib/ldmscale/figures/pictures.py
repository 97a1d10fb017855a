"""Laying out grids of pictures: in inches, so that nothing can overlap whatever the counts, sizes and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ldmscale.figures import style

TEXT_WIDTH = 7.2  # inches: a page's text block, which grids fill where their cells stay in bounds
PAGE_HEIGHT = 9.2
CELL_BOUNDS = (0.85, 1.45)
GAP, ROW_GAP, BLOCK_GAP, MARGIN = 0.04, 0.09, 0.16, 0.06
TITLE_SIZE, HEADER_SIZE, LABEL_SIZE, PROMPT_SIZE = 8.5, 7.5, 6.2, 7.2
LINE_HEIGHT = 1.32  # over font size
PIXELS_PER_INCH = 300
MAX_PROMPT_LINES = 3
TALL = 4  # rows from more of which two blocks stand side by side, where they fit
WIDEST = 9.6


@dataclass(frozen=True)
class Row:
    """A row of pictures uint8 [H,W,3]: a title above it, a name at its left, a label under each picture, a text under
    all; each may be empty."""

    pictures: Sequence[np.ndarray]
    text: str = ""
    labels: Sequence[str] = field(default=())
    name: str = ""
    title: str = ""


def picture_grid(headers: Sequence[str], rows: Sequence[Row], caption: str) -> Figure:
    """Rows of equally large pictures under column headers; many short rows stand in two blocks, read downwards.

    Text wraps to the grid's width; long prompts end in an ellipsis after three lines.
    """
    named = any(row.name for row in rows)
    wide = 2 * len(headers) * (CELL_BOUNDS[0] + GAP) <= WIDEST
    blocks = 2 if len(rows) > TALL and wide and not named else 1
    left = MARGIN + (0.12 + _widest(row.name for row in rows) if named else 0.0)
    count = len(headers) * blocks
    gaps = GAP * (len(headers) - 1) * blocks + BLOCK_GAP * (blocks - 1)
    per_block = -(-len(rows) // blocks)
    cell = (TEXT_WIDTH - left - MARGIN - gaps) / count
    cell = min(cell, CELL_BOUNDS[1], PAGE_HEIGHT / per_block - 0.3)
    cell = max(cell, CELL_BOUNDS[0], _widest(headers) + 0.04)
    width = max(left + count * cell + gaps + MARGIN, 3.6)

    block_width = (width - left - MARGIN - BLOCK_GAP * (blocks - 1)) / blocks
    starts = [left + b * (block_width + BLOCK_GAP) for b in range(blocks)]
    lines = [_Line(rows[i::per_block], starts, cell, block_width) for i in range(per_block)]
    caption = style.wrap(caption, (width - 2 * MARGIN) * 72 - 2, style.CAPTION_SIZE)
    header_height = _height(max(headers, key=lambda h: h.count("\n")), HEADER_SIZE) + 0.05
    between = GAP if named else ROW_GAP
    height = MARGIN + header_height + sum(line.height + between for line in lines)
    height += (ROW_GAP - between) + _height(caption, style.CAPTION_SIZE) + 0.03 + MARGIN

    fig = Figure(figsize=(width, height))
    canvas = fig.add_axes((0, 0, 1, 1), frameon=False, xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    y = MARGIN
    for i, line in enumerate(lines):
        y = line.draw_title(canvas, y)
        if i == 0:
            y += header_height
            for start in starts:
                for j, header in enumerate(headers):
                    x = start + j * (cell + GAP) + cell / 2
                    canvas.text(x, y - 0.05, header, ha="center", va="bottom", size=HEADER_SIZE, linespacing=1.2)
        y = line.draw(fig, canvas, y) + between
    look = {"size": style.CAPTION_SIZE, "color": style.GREY, "linespacing": 1.2}
    canvas.text(MARGIN, height - MARGIN, caption, ha="left", va="bottom", **look)
    return fig


class _Line:
    """One row of each block, drawn at the same height. Distances in inches, y downwards."""

    def __init__(self, rows: Sequence[Row], starts: Sequence[float], cell: float, width: float):
        self.rows, self.starts, self.cell = rows, starts, cell
        self.texts = [style.wrap(r.text, width * 72 - 2, PROMPT_SIZE, MAX_PROMPT_LINES, style="italic") for r in rows]
        self.title_height = max(_height(r.title, TITLE_SIZE) + 0.03 if r.title else 0.0 for r in rows)
        self.label_height = max(_height("0", LABEL_SIZE) + 0.02 if r.labels else 0.0 for r in rows)
        self.text_height = max(_height(t, PROMPT_SIZE) + 0.05 if t else 0.0 for t in self.texts)

    @property
    def height(self) -> float:
        return self.title_height + self.cell + self.label_height + self.text_height

    def draw_title(self, canvas: Axes, y: float) -> float:
        """Draw the titles at ``y``; returns where the pictures or their headers may start."""
        for row, x in zip(self.rows, self.starts, strict=False):
            canvas.text(x, y, row.title, ha="left", va="top", size=TITLE_SIZE, weight="bold")
        return y + self.title_height

    def draw(self, fig: Figure, canvas: Axes, y: float) -> float:
        """Draw pictures, names, labels and texts with the pictures' upper edge at ``y``; returns the lower end."""
        width, height = fig.get_size_inches()
        cell = self.cell
        for row, text, start in zip(self.rows, self.texts, self.starts, strict=False):
            look = {"size": HEADER_SIZE, "linespacing": 1.2}
            canvas.text(start - 0.07, y + cell / 2, row.name, ha="right", va="center", **look)
            for i, picture in enumerate(row.pictures):
                x = start + i * (cell + GAP)
                box = (x / width, 1 - (y + cell) / height, cell / width, cell / height)
                ax = fig.add_axes(box, xticks=[], yticks=[], frame_on=False)
                ax.imshow(resized(picture, round(cell * PIXELS_PER_INCH)), aspect="auto")
                if row.labels:
                    look = {"size": LABEL_SIZE, "color": style.GREY}
                    canvas.text(x + cell / 2, y + cell + 0.025, row.labels[i], ha="center", va="top", **look)
            below = y + cell + self.label_height + 0.035
            canvas.text(start, below, text, ha="left", va="top", size=PROMPT_SIZE, style="italic", linespacing=1.2)
        return y + cell + self.label_height + self.text_height


def _height(text: str, size: float) -> float:
    return (text.count("\n") + 1) * size * LINE_HEIGHT / 72


def _widest(texts) -> float:
    return max(style.text_width(line, HEADER_SIZE) for text in texts for line in text.split("\n")) / 72


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
