"""Picture grids: samples by model (Figs. 1, 14 to 16), by guidance weight (7), and at the same cost (10, 21 to 23)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from ldmscale.analysis.study import SAMPLER_NAMES, ModelInfo, format_params, named_by_params
from ldmscale.cells.cell import Cell
from ldmscale.cells.cost import steps_at_cost
from ldmscale.errors import UserError
from ldmscale.figures import style
from ldmscale.figures.data import FigureData
from ldmscale.figures.pictures import Row, picture_grid

NOT_PICKED = "One starting noise a prompt, the same throughout; pictures are not picked."


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
    setting = f"{_setting(columns[0])}, CFG {columns[0].cfg:g}"
    return picture_grid([_header(m) for m in models], rows, f"{style.study_line(data.study)} {setting}. {NOT_PICKED}")


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
        by_cfg = [[c for c in cells if c.model == model.name and c.cfg == cfg] for cfg in cfgs]
        mine = [_only(found, f"{model.name} at CFG {cfg:g}") for found, cfg in zip(by_cfg, cfgs, strict=True)]
        rows.append(Row([data.picture(cell, index) for cell in mine], name=_header(model)))
    rows[-1] = Row(rows[-1].pictures, text=_quoted(data.prompt(index)), name=rows[-1].name)
    note = f"{style.study_line(data.study)} {_setting(cells[0])}. {NOT_PICKED}"
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
    headers = [_header(m) for m in models]
    rows = []
    for row, mine in zip(wanted, by_row, strict=True):
        labels = [_steps(cell.steps) for cell in mine]
        prompt = _quoted(data.prompt(row["prompt"]))
        pictures = [data.picture(cell, row["prompt"]) for cell in mine]
        rows.append(Row(pictures, text=prompt, labels=labels, title=f"Sampling cost ≈ {row['cost']:g}"))
    if one_cost:  # the steps are the same down a column, so say them once
        headers = [f"{h}\n{_steps(c.steps)}" for h, c in zip(headers, by_row[0], strict=True)]
        rows = [Row(r.pictures, text=r.text, title=r.title if r is rows[0] else "") for r in rows]
    first = by_row[0][0]
    note = (
        f"{style.study_line(data.study)} {SAMPLER_NAMES[first.sampler]}, CFG {first.cfg:g}. Steps: cost over the "
        f"model's network cost relative to the reference, rounded, at least 1. {NOT_PICKED}"
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


def _header(model: ModelInfo) -> str:
    return model.name if named_by_params(model) else f"{model.name}\n{format_params(model.params)} params"


def _quoted(prompt: str) -> str:
    return f"“{style.one_line(prompt)}”"


def _steps(steps: int) -> str:
    return f"{steps} step" + "s" * (steps != 1)


def _setting(cell: Cell) -> str:
    return f"{SAMPLER_NAMES[cell.sampler]}, {_steps(cell.steps)}"
