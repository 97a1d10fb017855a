"""explorer.html: one file with the table, the pictures, plotly.js and the program that chooses among them.

The page makes the choice of :func:`ldmscale.analysis.advice.advise` itself, from the tuning scores that it holds, and
says it in the same words. Everything from outside (names, prompts) reaches it as JSON and is shown as text.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ldmscale.analysis.advice import caveat
from ldmscale.analysis.frontier import COST_AXES
from ldmscale.analysis.intervals import interval
from ldmscale.analysis.selection import HELDOUT, METRIC_NAMES, METRICS, SERIES, TUNING, replicates
from ldmscale.analysis.study import ModelInfo, StudyInfo, model_label
from ldmscale.cells.cell import ON_PROMPTS, Cell
from ldmscale.errors import UserError
from ldmscale.text import json_for_html

PICTURE_BYTES = 6_000_000  # of all pictures as data URIs; plotly.js takes 5 MB, and the page is to stay under 15
LARGEST, SMALLEST = 128, 24  # pixels a side of a picture
POINTS = 5000  # cells that a page holds; of more, those alone that are a choice


def explorer_page(
    scores: pd.DataFrame,
    study: StudyInfo,
    models: Sequence[ModelInfo],
    gallery: Sequence[str],
    previews: Callable[[Cell], np.ndarray],
) -> str:
    """The whole page; ``previews`` gives a cell's images of the ``gallery`` prompts, uint8 [K,H,W,3].

    It holds every cell on the study's prompts that is scored on both splits, with the pictures and bootstrap replicates
    of those that are the choice under some budget; of more than :data:`POINTS` cells those alone, and says so.

    Raises:
        UserError: the table has no such cell.
    """
    from plotly.offline import get_plotlyjs

    data = explorer_data(scores, study, models, gallery, previews)
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    parts = {"DATA": json_for_html(text), "PLOTLY": get_plotlyjs(), "TITLE": _escaped(study.name)}
    parts |= {name: _own(f"page.{name.lower()}") for name in ("CSS", "JS")}
    return re.sub("@@([A-Z]+)@@", lambda mark: parts[mark[1]], _own("page.html"))


def _own(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def explorer_data(
    scores: pd.DataFrame,
    study: StudyInfo,
    models: Sequence[ModelInfo],
    gallery: Sequence[str],
    previews: Callable[[Cell], np.ndarray],
) -> dict[str, Any]:
    """What the page knows, JSON-able; see :func:`explorer_page`.

    A point's ``axes``, ``tuning``, ``held``, ``low``, ``high`` and ``reps`` are lists over ``axes`` and ``metrics``;
    numbers that the table lacks are None. ``reps`` are base64 of float32 [R].
    """
    from ldmscale.figures.style import model_styles

    held, tuning = _pairs(scores)
    axes = [axis for axis in COST_AXES if axis in held and _finite(held[axis]).any()]
    metrics = [m for m in METRICS if m in held and (_finite(held[m]) & _finite(tuning[m])).any()]
    chosen = {m: _choosable(held, tuning, axes, m) for m in metrics}
    shown, of_all = sorted(set().union(*chosen.values())), ""
    if len(held) > POINTS:
        of_all = f" Of {len(held):,} cells sampled, the {len(shown):,} that are the choice under some budget."
        held, tuning = (rows.iloc[shown].reset_index(drop=True) for rows in (held, tuning))
        place = {i: k for k, i in enumerate(shown)}
        chosen, shown = {m: {place[i] for i in found} for m, found in chosen.items()}, list(range(len(shown)))
    sprites, side = _pictures([previews(Cell.parse(held["cell"][i])) for i in shown], gallery)
    pictures = dict(zip(shown, sprites, strict=True))
    points: list[dict[str, Any]] = [
        {
            **{key: str(row[key]) for key in SERIES},
            **{key: row[key] for key in ("steps", "cfg", "params")},
            "axes": [_number(row[axis]) for axis in axes],
            "cost": _number(row["cost"]),
            "tuning": [_number(tuning[m][i]) for m in metrics],
            "held": [_number(row[m]) for m in metrics],
            "low": [], "high": [], "reps": [],
            "picture": pictures.get(i),
        }
        for i, row in enumerate(held.to_dict("records"))
    ]  # fmt: skip
    for m in metrics:
        values, reps = held[m].to_numpy(float), replicates(held, m)
        for i, point in enumerate(points):
            low, high = interval(values[i], reps[i])
            point["low"].append(_number(low))
            point["high"].append(_number(high))
            kept = i in chosen[m] and reps.shape[1] > 1
            point["reps"].append(base64.b64encode(reps[i].astype("<f4").tobytes()).decode() if kept else None)
    looks = model_styles(models)
    return {
        "study": study.name,
        "about": f"{study.data}, {study.image_size} x {study.image_size} pixels; settings chosen on "
        f"{study.n_tuning:,} tuning prompts, numbers of {study.n_heldout:,} held-out prompts.{of_all}",
        "caveat": caveat(study.trainings),
        "axes": [{"name": axis, "label": COST_AXES[axis]} for axis in axes],
        "metrics": [
            {"name": m, "label": METRIC_NAMES[m], "sign": METRICS[m], "features": _features(held, m)} for m in metrics
        ],
        "models": [
            {"name": m.name, "label": model_label(m), "colour": _hex(looks[m.name]["color"])}
            for m in models if m.name in set(held["model"])
        ],
        "gallery": [str(prompt) for prompt in gallery],
        "side": side,
        "points": points,
    }  # fmt: skip


def _pairs(scores: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The held-out and the tuning rows, alike numbered, of the cells on the study's prompts that have both; ordered as
    :func:`ldmscale.analysis.advice.advise` orders ties."""
    rows = scores[scores["task"].isin(ON_PROMPTS)].sort_values(["params", *SERIES], kind="stable")
    held, tuning = (rows[rows["split"] == split] for split in (HELDOUT, TUNING))
    held = held[held["cell"].isin(tuning["cell"])].reset_index(drop=True)
    if held.empty:
        raise UserError("the scores table has no text-to-image cell that is scored on tuning and held-out prompts")
    if held["cell"].duplicated().any() or tuning["cell"].duplicated().any():
        raise UserError("the scores table holds a cell twice in one split")
    return held, tuning.set_index("cell").loc[held["cell"]].reset_index()


def _choosable(held: pd.DataFrame, tuning: pd.DataFrame, axes: Sequence[str], metric: str) -> set[int]:
    """The cells that are their series' choice by ``metric`` under some budget, on any axis: row numbers."""
    loss = (-METRICS[metric] * tuning[metric].astype(float)).to_numpy()
    there = np.flatnonzero(np.isfinite(loss) & _finite(held[metric]))
    series = list(map(tuple, held[SERIES].to_numpy()))
    key = {i: (loss[i], held["cost"][i], held["cfg"][i], i) for i in there}
    found = set()
    for axis in axes:
        spent, best = held[axis].to_numpy(float), {}
        for i in sorted((i for i in there if np.isfinite(spent[i])), key=lambda i: (spent[i], key[i])):
            if series[i] not in best or key[i] < best[series[i]]:
                best[series[i]] = key[i]
                found.add(int(i))
    return found


def _pictures(images: Sequence[np.ndarray], gallery: Sequence[str]) -> tuple[list[str], int]:
    """Each cell's pictures as one PNG, one below the other, in a data URI, and how many pixels a side they have: so
    many that all take :data:`PICTURE_BYTES` at most, but no fewer than :data:`SMALLEST`."""
    for pictures in images:
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or len(pictures) != len(gallery):
            raise UserError(
                f"a cell's previews are {pictures.dtype} {list(pictures.shape)}: they should be uint8 "
                f"[{len(gallery)},H,W,3], one image a gallery prompt"
            )
    side = min([LARGEST, *(max(pictures.shape[1:3]) for pictures in images)])
    for some in (images[:: -(-len(images) // 8)], images):  # a few say about how small; all of them, exactly
        while True:
            found = [_sprite(pictures, side) for pictures in some]
            total = sum(map(len, found)) * len(images) / len(some)
            if total <= PICTURE_BYTES or side <= SMALLEST:
                break
            side = max(SMALLEST, min(side - 1, int(0.98 * side * math.sqrt(PICTURE_BYTES / total))))
    return found, side


def _sprite(pictures: np.ndarray, side: int) -> str:
    """``pictures`` uint8 [K,H,W,3], ``side`` pixels square and in 256 colours, as the data URI of a PNG."""
    sprite = Image.new("RGB", (side, side * len(pictures)))
    for k, picture in enumerate(pictures):
        image = Image.fromarray(picture)
        if image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.LANCZOS)
        sprite.paste(image, (0, k * side))
    buffer = io.BytesIO()
    sprite.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _features(held: pd.DataFrame, metric: str) -> str:
    """The network behind ``metric``, where the table names one."""
    column = f"{metric}_features"
    named = held[column].dropna() if column in held else ()
    return str(named.iloc[0]) if len(named) else ""


def _finite(column: pd.Series) -> np.ndarray:
    return np.isfinite(column.to_numpy(float))


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in colour)
