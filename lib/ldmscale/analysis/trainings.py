"""Several trainings of every model as one row: means over training seeds, with replicates that cover training again."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import pandas as pd

from ldmscale.cells.cell import Cell
from ldmscale.errors import UserError

REPLICATES = "_reps"


def over_trainings(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with one row for all that differ in ``training`` alone (0, 1, ...: whose cells are named apart).

    Scores become means over the S trainings, ``cell`` is the first one's, and ``trainings`` says S. Replicate r
    becomes the mean of their replicates r (the prompts' luck) plus a bootstrap draw of the trainings' mean about itself
    (the luck of training), times sqrt(S / (S - 1)), which corrects its variance for small S. All rows of a model share
    the draws, so that what its trainings share cancels in differences; models are trained independently, and so drawn.
    With two or three trainings such an interval is rough. DreamBooth's scores stay lists, one a prompt: their intervals
    cover the prompts alone.

    Raises:
        UserError: a training lacks a row that another one has.
    """
    count = int(table["training"].max()) + 1
    paths = table[["cell", "model"]].drop_duplicates("cell").itertuples(index=False)
    first = {path: Cell.parse(path).at(model=model).path for path, model in paths}
    rows = table.assign(cell=table["cell"].map(first))
    rows["row"] = rows.groupby(["cell", "training", "split"]).cumcount()  # an interpolation has several a split
    parts = [rows[rows["training"] == k].set_index(["cell", "split", "row"]) for k in range(count)]
    for k, part in enumerate(parts):
        if not part.index.sort_values().equals(parts[0].index.sort_values()):
            raise UserError(
                f"training {k} was scored on other cells than training 0: run `snakemake --forcerun gather`"
            )
    parts = [part.loc[parts[0].index] for part in parts]
    folded = parts[0].assign(trainings=count)
    for column in folded.columns if count > 1 else ():
        values = [part[column] for part in parts if column in part]
        if column.endswith(REPLICATES):
            scores = np.stack([part[column.removesuffix(REPLICATES)].astype(float) for part in parts], axis=1)
            each = zip(folded["model"], scores, zip(*values, strict=True), strict=True)
            folded[column] = pd.Series([_replicates(*row) for row in each], folded.index, object)
        elif pd.api.types.is_numeric_dtype(folded[column]):
            if not all(v.equals(values[0]) for v in values):
                folded[column] = np.mean([v.astype(float) for v in values], axis=0)
        elif folded[column].map(np.ndim).eq(1).any():
            means = [np.mean(row, axis=0) if np.ndim(row[0]) else row[0] for row in zip(*values, strict=True)]
            folded[column] = pd.Series(means, folded.index, object)
    return folded.reset_index().drop(columns=["row", "training"])[
        [*(c for c in table.columns if c != "training"), "trainings"]
    ]


def _replicates(model: str, scores: np.ndarray, replicates: tuple) -> np.ndarray | None:
    """Replicates [R] of the mean of S trainings' ``scores`` [S], of each one's ``replicates`` [R]; None without."""
    if any(np.ndim(r) == 0 for r in replicates):
        return None
    prompts = np.mean([np.asarray(r, float) for r in replicates], axis=0)
    count = len(scores)
    drawn = np.random.default_rng(crc32(model.encode())).integers(count, size=(len(prompts), count))
    return prompts + np.sqrt(count / (count - 1)) * (scores[drawn].mean(axis=1) - scores.mean())
