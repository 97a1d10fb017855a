"""Fig. 24: images between two prompts, with what CLIP says of how straight the way is."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ldmscale.analysis.interpolation import Way, way
from ldmscale.analysis.study import SAMPLER_NAMES, ModelInfo, format_params, named_by_params
from ldmscale.errors import UserError
from ldmscale.figures import style
from ldmscale.figures.data import FigureData
from ldmscale.figures.pictures import Row, picture_grid


@style.styled
def fig24(data: FigureData) -> Figure:
    """One starting noise through every model while the text states go from prompt A to prompt B.

    Settings: ``experiment`` (one cell a model, of the task interpolation), ``pair``, ``models``. Under each picture
    stand the CLIP similarities to A and B, over all noises; beside each model how far from straight its way is.
    """
    section, pair = data.interpolation, data.require("pair")
    alphas, noises = section["alphas"], section["noises"]
    order = np.argsort(alphas)[::-1]
    cells = {cell.model: cell for cell in data.cells()}
    if len(cells) != len(data.cells()):
        raise UserError("fig24 needs one cell a model: give its experiment one sampler, step count and CFG")
    rows = []
    for model in data.shown(data.cells()):
        cell = cells[model.name]
        mine = data.scores[(data.scores["cell"] == cell.path) & (data.scores["pair"] == pair)]
        images = data.previews(cell).reshape(len(section["pairs"]), len(alphas), noises, *data.previews(cell).shape[1:])
        measured = way(mine)
        labels = [f"A {a:.2f}   B {b:.2f}" for a, b in zip(measured.clip_a, measured.clip_b, strict=True)]
        rows.append(Row([images[pair, i, 0] for i in order], labels=labels, name=_name(model, measured)))
    first, (a, b) = next(iter(cells.values())), section["pairs"][pair]
    rows[-1] = Row(
        rows[-1].pictures, labels=rows[-1].labels, name=rows[-1].name,
        text=f"A: “{style.one_line(a)}”   B: “{style.one_line(b)}”",
    )  # fmt: skip
    clip = data.scores.loc[data.scores["cell"] == first.path, "clip_features"].iloc[0]
    note = (
        f"{style.study_line(data.study)} {SAMPLER_NAMES[first.sampler]}, {first.steps} steps, CFG {first.cfg:g}; text "
        f"states αA + (1 − α)B. Pictures: one starting noise, not picked. Numbers: {clip}, mean cosine to each prompt "
        f"over {noises} noises; bend: largest distance of the similarity's progress from α (0: straight), with the 95% "
        "bootstrap interval over noises; ?: the images do not tell A from B."
    )
    return picture_grid([f"α = {alphas[i]:g}" for i in order], rows, note)


def _name(model: ModelInfo, measured: Way) -> str:
    name = model.name if named_by_params(model) else f"{model.name}\n{format_params(model.params)} params"
    if np.isnan(measured.bend):
        return f"{name}\nbend ?"
    return f"{name}\nbend {measured.bend:.2f}\n[{measured.low:.2f}, {measured.high:.2f}]"
