"""Numbers gone wrong are refused, none is passed over in silence: real features that are all the same before cells are
scored against them, and scores that are no numbers where they are made, gathered and read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ldmscale.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SIZES = ("filters", "width", "depth")  # of a network: each family has its own

ROUNDING = 1e-6  # float32's, with a margin


def require_varied(features: np.ndarray, name: str) -> None:
    """Raise UserError where real images' ``features`` [N,D], called ``name``, differ by rounding alone.

    In those of a network that maps all images to one point, any drawn images are perfect.
    """
    if len(features) > 1 and np.ptp(features, axis=0).max() <= ROUNDING * max(np.max(features), -np.min(features)):
        raise UserError(
            f"the {name} of all {len(features)} real images are the same: the images do not differ, or the network "
            "that makes them is broken, and distances in them would mean nothing"
        )


def require_numbers(rows: Iterable[Mapping[str, Any]]) -> None:
    """Raise UserError, naming cell and score, for a value of score ``rows``, or one in its list of numbers, that is not
    finite. A score that cannot be given is None."""
    for row in rows:
        for name, value in row.items():
            if isinstance(value, list):
                value = sum(value)
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(
                    f"{name} of {row['cell']} ({row['split']}) is not finite: its images or features are broken; run "
                    "`snakemake --forcerun generate score` to make them again"
                )


def require_finite(table: pd.DataFrame) -> None:
    """Raise UserError, naming cell and column, where a number of the tidy table is infinite, or missing for some cells
    and there for others of their task and split: choices, fits and figures would pass over the former in silence.

    What no cell of a task and split has may be missing, and so may the sizes that a family of networks lacks.
    """
    names = [name for name in table.select_dtypes("number") if name not in SIZES]
    values = table[names].to_numpy(np.float64, na_value=np.nan)
    missing, partly = np.isnan(values), np.zeros(values.shape, bool)
    for rows in table.reset_index(drop=True).groupby(["task", "split"]).indices.values():
        partly[rows] = ~missing[rows].all(axis=0)
    bad = np.argwhere(np.isinf(values) | missing & partly)
    if len(bad):
        row, column = bad[0]
        raise UserError(
            f"{names[column]} of {table['cell'].iloc[row]} ({table['split'].iloc[row]}) is no finite number, though "
            "other cells have one: score all cells alike, with `snakemake --forcerun score`"
        )
