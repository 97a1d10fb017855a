"""Fig. 2: the networks and how a picture is made with them, drawn from the real U-Net's own list of blocks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch, Polygon, Rectangle

from ldmscale.analysis.study import model_label
from ldmscale.errors import UserError
from ldmscale.figures import style
from ldmscale.figures.data import Architecture, FigureData

# Colours after Paul Tol's schemes, which colour-blind readers can tell apart.
RESNET, ATTENTION, RESAMPLE, CONV, BOX, FRAME = "#4477aa", "#ee9944", "#b5b5b5", "#555555", "#f0f0f0", "#fafafa"
WIDTH, HEIGHT = 7.4, 3.27  # inches; so are all coordinates below
LEFT, RIGHT = 1.55, 5.5  # the U-Net's bars
FLOOR, TALLEST, LOWEST = 1.44, 1.1, 0.26  # where they stand, and the heights of the first and the last level
TOP = FLOOR + TALLEST
SMALL, NORMAL = 5.8, 7.0


@dataclass(frozen=True)
class Group:
    """Consecutive blocks of one level on the way down, in the middle, or on the way up."""

    phase: str
    level: int
    blocks: list[dict]

    @property
    def attention(self) -> bool:
        return any(b["attention"] for b in self.blocks)

    @property
    def shape(self) -> tuple[int, int]:
        """(resolution, channels) of its resnet blocks."""
        block = next(b for b in self.blocks if b["kind"] == "resnet")
        return block["resolution"], block["channels"]


def groups(blocks: list[dict]) -> list[Group]:
    """The blocks of :func:`ldmscale.models.unet.skeleton` by phase (down, middle, up) and level, in order."""
    resnets = [i for i, b in enumerate(blocks) if b["kind"] == "resnet"]
    levels = max(b["level"] for b in blocks) + 1
    # n blocks a level on the way down, two in the middle, n + 1 a level on the way up
    down = (len(resnets) - 2 - levels) // (2 * levels) * levels
    middle, up = resnets[down], resnets[down + 2]
    phases = ["down" if i < middle else "middle" if i < up else "up" for i in range(len(blocks))]
    tagged = groupby(zip(phases, blocks, strict=True), key=lambda pair: (pair[0], pair[1]["level"]))
    return [Group(phase, level, [b for _, b in pairs]) for (phase, level), pairs in tagged]


@style.styled
def fig02(data: FigureData) -> Figure:
    """Text encoder, U-Net with its blocks, tensor shapes and skip connections, sampling loop, decoder."""
    from ldmscale.models.unet import skeleton  # here, so that no other figure has to start JAX

    plan = data.architecture
    if plan is None:
        raise UserError("fig02 needs the architecture of a model")
    fig = Figure(figsize=(WIDTH, HEIGHT))
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT), frameon=False, xticks=[], yticks=[])
    parts = groups(skeleton(plan.unet, plan.latent_size))
    sizes = {m.name: model_label(m) for m in data.models}
    _unet(ax, parts, f"U-Net {style.one_line(sizes.get(plan.name, plan.name))}")
    _prompt(ax, plan)
    _loop(ax, plan, data.study.image_size)
    handles = [
        Patch(color=RESNET, label="residual block"),
        Patch(color=ATTENTION, label="transformer: self-attention, cross-attention to the text"),
        Patch(color=RESAMPLE, label="downsampling, upsampling"),
        Patch(color=CONV, label="convolution"),
    ]
    where = {"loc": "lower left", "bbox_to_anchor": (2.95, 0.3), "bbox_transform": ax.transData, "borderaxespad": 0}
    ax.legend(handles=handles, fontsize=SMALL, handlelength=0.9, handleheight=0.9, labelspacing=0.3, **where)
    caption = style.wrap(
        f"{style.study_line(data.study)} The blocks are those of the network that is trained. Height: resolution, "
        "width: channels.",
        (WIDTH - 0.16) * 72,
        style.CAPTION_SIZE,
    )
    ax.text(0.08, 0.06, caption, ha="left", va="bottom", size=style.CAPTION_SIZE, color=style.GREY, linespacing=1.2)
    return fig


def _unet(ax: Axes, parts: list[Group], title: str) -> None:
    """Bars on a common floor, one a block; skip connections across the valley; shapes under each group."""
    levels = max(part.level for part in parts) + 1
    heights = np.linspace(TALLEST, LOWEST, levels) if levels > 1 else np.array([TALLEST])
    most = max(b["channels"] for part in parts for b in part.blocks)
    pieces = [[_pieces(b, most) for b in part.blocks] for part in parts]
    between, around = 0.14, 0.55  # gaps between bars and groups, in bar units
    total = sum(w for part in pieces for bar in part for w, _ in bar)
    total += between * sum(len(part) - 1 for part in pieces) + around * (len(parts) - 1)
    unit = (RIGHT - LEFT) / total
    _rounded(ax, LEFT - 0.42, FLOOR - 0.36, RIGHT - LEFT + 0.54, TALLEST + 0.66, FRAME, zorder=0)
    ax.text(LEFT - 0.35, TOP + 0.18, title, ha="left", va="center", size=NORMAL, weight="bold")

    x, spans = LEFT, {}
    for part, bars in zip(parts, pieces, strict=True):
        start, height = x, heights[part.level]
        for bar in bars:
            for width, colour in bar:
                patch = Rectangle((x, FLOOR), width * unit, height, facecolor=colour, edgecolor="white", linewidth=0.4)
                ax.add_patch(patch)
                x += width * unit
            x += between * unit
        x -= between * unit
        spans[part.phase, part.level] = (start, x)
        resolution, channels = part.shape
        look = {"ha": "center", "va": "top", "size": SMALL, "linespacing": 1.15}
        ax.text((start + x) / 2, FLOOR - 0.04, f"{resolution}×{resolution}\n{channels}", **look)
        if part.attention:
            _arrow(ax, ((start + x) / 2, BUS), ((start + x) / 2, FLOOR - 0.3), ATTENTION)
        x += around * unit
    look = {"ha": "right", "va": "top", "size": 5.2, "color": style.GREY, "linespacing": 1.28}
    ax.text(LEFT - 0.07, FLOOR - 0.045, "pixels\nchannels", **look)
    _bus(ax, [sum(spans[p.phase, p.level]) / 2 for p in parts if p.attention])
    counts = {p.level: sum(b["kind"] == "resnet" for b in p.blocks) for p in parts if p.phase == "up"}
    for level, count in counts.items():
        _skip(ax, spans["down", level], spans["up", level], heights[level], level == levels - 1, count)


def _pieces(block: dict, most: int) -> list[tuple[float, str]]:
    """The coloured pieces of a block's bar: (width in bar units, colour)."""
    width = 0.55 + 0.45 * block["channels"] / most
    if block["kind"] == "resnet":
        return [(width, RESNET)] + ([(0.6 * width, ATTENTION)] if block["attention"] else [])
    return [(0.45, RESAMPLE if block["kind"] in ("downsample", "upsample") else CONV)]


def _skip(ax: Axes, down: tuple, up: tuple, height: float, deepest: bool, count: int) -> None:
    """The skip connections of a level: straight across the valley, over the middle blocks for the deepest level."""
    if deepest:
        a, b, y = sum(down) / 2, sum(up) / 2, FLOOR + height + 0.1
        ax.plot([a, a, b], [FLOOR + height, y, y], color=style.GREY, linewidth=0.8, solid_joinstyle="miter")
        _arrow(ax, (b, y), (b, FLOOR + height), style.GREY)
    else:
        a, b, y = down[1], up[0], FLOOR + height - 0.07
        _arrow(ax, (a + 0.015, y), (b - 0.015, y), style.GREY)
    text = f"{count} skip connections, concatenated" if b - a > 1.75 else f"{count} skips" if b - a > 0.5 else ""
    look = {"ha": "center", "va": "bottom", "size": 5.2, "color": style.GREY}
    ax.text((a + b) / 2, y + 0.015, text, **look)


BUS = 0.92


def _bus(ax: Axes, targets: list[float]) -> None:
    if targets:
        ax.plot([min(PROMPT_X, *targets), max(targets)], [BUS, BUS], color=ATTENTION, linewidth=1.1)


PROMPT_X = 1.95  # where the text states join the bus


def _prompt(ax: Axes, plan: Architecture) -> None:
    """Prompt and text encoder, below the U-Net."""
    y, height = 0.34, 0.36
    _box(ax, 0.1, y, 0.78, height, "prompt")
    _box(ax, 1.13, y, 1.64, height, f"{style.wrap(plan.text_encoder, 110, NORMAL, 1)}", "text encoder")
    _arrow(ax, (0.88, y + height / 2), (1.13, y + height / 2))
    _arrow(ax, (PROMPT_X, y + height), (PROMPT_X, BUS), ATTENTION)
    shape = f"{plan.context_length}×{plan.unet.context_width}"
    ax.text(PROMPT_X + 0.05, (y + height + BUS) / 2 - 0.01, shape, ha="left", va="center", size=SMALL)


def _loop(ax: Axes, plan: Architecture, image_size: int) -> None:
    """What the U-Net reads and writes, the sampler that repeats it, and the decoder after the last step."""
    latent = f"{plan.latent_size}×{plan.latent_size}×{plan.unet.in_channels}"
    frame_left, frame_right = LEFT - 0.42, RIGHT + 0.12
    y, side, loop = TOP - 0.24, 0.78, TOP + 0.5
    _box(ax, 0.1, y - 0.22, side, 0.44, latent, "latent z")
    _arrow(ax, (0.88, y), (frame_left, y))
    ax.text(0.1, y - 0.26, "at first pure noise", ha="left", va="top", size=5.4, color=style.GREY)
    low = FLOOR + 0.12
    _box(ax, 0.1, low - 0.15, side, 0.3, "timestep t")
    _arrow(ax, (0.88, low), (frame_left, low))
    ax.text(0.1, low - 0.19, "to every\nresidual block", ha="left", va="top", size=5.4, color=style.GREY)

    x = 6.22
    _box(ax, x, y - 0.26, 0.98, 0.52, "and sampler step", "guidance")
    _arrow(ax, (frame_right, y), (x, y))
    text = f"noise in z\n{latent}"
    ax.text((frame_right + x) / 2, y + 0.05, text, ha="center", va="bottom", size=5.4, linespacing=1.15)
    middle = x + 0.49
    ax.plot([middle, middle, 0.49], [y + 0.26, loop, loop], color=style.INK, linewidth=0.9, solid_joinstyle="miter")
    _arrow(ax, (0.49, loop), (0.49, y + 0.22))
    text = "less noisy z, once for every sampling step"
    ax.text((LEFT + RIGHT) / 2, loop + 0.04, text, ha="center", va="bottom", size=SMALL)

    top, bottom = 1.42, 0.98
    _arrow(ax, (middle, y - 0.26), (middle, top))
    note = {"size": 5.4, "color": style.GREY}
    ax.text(middle + 0.05, (y - 0.26 + top) / 2, "after the\nlast step", ha="left", va="center", **note)
    corners = [(middle - 0.28, top), (middle + 0.28, top), (middle + 0.5, bottom), (middle - 0.5, bottom)]
    ax.add_patch(Polygon(corners, facecolor=BOX, edgecolor=style.INK, linewidth=0.8, joinstyle="round"))
    ax.text(middle, (top + bottom) / 2 - 0.02, style.wrap(plan.decoder, 44, 6.2, 2), ha="center", va="center", size=6.2)
    _arrow(ax, (middle, bottom), (middle, 0.72))
    _box(ax, middle - 0.45, 0.34, 0.9, 0.38, f"{image_size}×{image_size}×3", "image")


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, title: str = "") -> None:
    """A rounded box with a line of text, under a bold one where there is a title."""
    _rounded(ax, x, y, width, height, BOX, edgecolor=style.INK)
    middle = x + width / 2
    if title:
        ax.text(middle, y + height / 2 + 0.015, title, ha="center", va="bottom", size=NORMAL, weight="bold")
        ax.text(middle, y + height / 2 - 0.015, text, ha="center", va="top", size=SMALL)
    else:
        ax.text(middle, y + height / 2, text, ha="center", va="center", size=NORMAL, weight="bold")


def _rounded(ax: Axes, x: float, y: float, width: float, height: float, colour: str, **look) -> None:
    shape = "round,pad=0,rounding_size=0.05"
    look = {"edgecolor": "#cccccc", "linewidth": 0.8, **look}
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, facecolor=colour, **look))


def _arrow(ax: Axes, start: tuple, end: tuple, colour: str = style.INK) -> None:
    look = {"arrowstyle": "-|>,head_length=0.3,head_width=0.13", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
    ax.annotate("", end, start, arrowprops={**look, "color": colour, "linewidth": 0.9})
