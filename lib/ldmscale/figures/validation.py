"""Validation loss by noise level: which noise a larger model removes better."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ldmscale.analysis.families import network_name
from ldmscale.analysis.study import format_params
from ldmscale.errors import UserError
from ldmscale.figures import style
from ldmscale.figures.data import FigureData
from ldmscale.figures.fits import style_points


@style.styled
def validation(data: FigureData) -> Figure:
    """Left, validation loss of each model's last weights against its size, a curve a noise level; right, the same
    relative to the smallest model's."""
    rows = pd.DataFrame(data.fits.get("levels", ()))
    if not len(rows):
        raise UserError(
            "the figure validation needs text-to-image models that are scored: set figures.validation to null"
        )
    rows = rows.rename(columns={"loss": "value"})
    timesteps = data.fits["timesteps"]
    colours = style.sequential("plasma", len(timesteps), 0.9, 0.05)
    looks = [{"color": c, "marker": style.MARKERS[i % len(style.MARKERS)]} for i, c in enumerate(colours)]
    fig = style.new_figure(7.2, 3.3)
    left, right = fig.subplots(1, 2)
    first = rows.drop_duplicates("level").set_index("level")["value"]
    relative = rows.assign(value=rows["value"] / rows["level"].map(first), low=float("nan"), high=float("nan"))
    for ax, table in ((left, rows), (right, relative)):
        for level, look in enumerate(looks):
            style_points(ax, table[table["level"] == level], "params", look)
        style.log_axis(ax, "x", table["params"], at_least=3)
        style.log_axis(ax, "y", table["value"])
        ax.set_xticks(ax.get_xticks(), [format_params(n) for n in ax.get_xticks()])
        ax.set_xlabel(f"Parameters of the {network_name(data.of_a_family(data.models))}")
    left.set_ylabel("Validation loss  (lower is better)")
    right.set_ylabel(f"Loss relative to {rows['model'].iloc[0]}'s")
    handles = [Line2D([], [], label=f"{t:,}", markeredgecolor="white", markeredgewidth=0.5, **look)
               for t, look in zip(timesteps, looks, strict=True)]  # fmt: skip
    style.side_legend(fig, handles, "Timestep\n(more: noisier)")
    style.add_caption(
        fig,
        f"{style.study_line(data.study)} Mean squared error of the predicted noise on held-out images, each with its "
        "caption, at the last checkpoint of every model; all models see the same latents, timesteps and noises. "
        "Whiskers: 95% bootstrap intervals over images.",
    )
    return fig
