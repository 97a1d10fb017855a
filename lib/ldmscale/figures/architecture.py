"""Fig. 2: the networks and how a picture is made with them, drawn from the real U-Net's own list of blocks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch, Polygon, Rectangle

from ldmscale.errors import UserError
from ldmscale.figures import style
from ldmscale.figures.data import FigureData

RESNET, ATTENTION, RESAMPLE, CONV, BOX = "#4477aa", "#ee9955", "#b8b8b8", "#555555", "#f2f2f2"  # after Tol's palettes
LINE = {"color": style.INK, "linewidth": 0.9}
ARROW = {"arrowstyle": "-|>,head_length=0.35,head_width=0.16", "shrinkA": 0, "shrinkB": 0, **LINE}
WIDTH, HEIGHT = 7.4, 3.75  # inches; so are all coordinates below
LEFT, RIGHT = 1.12, 5.45  # the U-Net's extent
FLOOR, TALLEST, LOWEST = 1.32, 1.15, 0.28  # where its bars stand, and the heights of the first and the last level


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
    spans = _draw_unet(ax, parts)
    size, channels = plan.latent_size, plan.unet.in_channels
    latent = f"{size}×{size}×{channels}"
    middle = FLOOR + TALLEST / 2

    # Left: what goes in.
    _box(ax, 0.1, middle - 0.26, 0.72, 0.52, f"latent z\n{latent}")
    _arrow(ax, (0.82, middle), (LEFT - 0.03, middle))
    ax.text(0.46, middle + 0.31, "noise at first", ha="center", va="bottom", size=6, color=style.GREY)
    _box(ax, 0.1, FLOOR - 0.35, 0.72, 0.42, "timestep t")
    ax.text(
        0.1, FLOOR - 0.40, "embedded, and added\nin every residual block", ha="left", va="top", size=5.8, color=style.GREY
    )
    _arrow(ax, (0.82, FLOOR + 0.0), (LEFT - 0.03, FLOOR + 0.12))

    # Below: the prompt, by cross-attention.
    context = f"{plan.context_length}×{plan.unet.context_width}"
    bus = 0.62
    _box(ax, 1.75, 0.30, 1.25, 0.0, "")
    return fig
