"""The tidy table on disk: parquet, with the digest of what it was made from."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ldmscale.errors import UserError
from ldmscale.provenance import atomic_path


def write_scores(path: str | Path, table: pd.DataFrame, digest: str) -> None:
    """Write the table as parquet with the digest of what it was made from."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    with atomic_path(path) as temporary:
        pq.write_table(
            arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"digest": digest.encode()}), temporary
        )


def read_scores(path: str | Path, digest: str) -> pd.DataFrame:
    """Read the table; ``UserError`` if it is damaged or was gathered from other cells than ``digest`` names."""
    try:
        arrow = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({error}): run `snakemake --forcerun gather`") from None
    found = (arrow.schema.metadata or {}).get(b"digest", b"none").decode()
    if found != digest:
        raise UserError(
            f"{path} was gathered under a different config (digest {found}, this run needs {digest}): "
            "run `snakemake --forcerun gather`"
        )
    return arrow.to_pandas()
