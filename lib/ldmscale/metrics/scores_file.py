"""The tidy table on disk: parquet, with the digest of what it was made from."""

from __future__ import annotations

import zlib
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ldmscale.errors import UserError
from ldmscale.metrics.finite import require_finite
from ldmscale.provenance import atomic_path


def write_scores(path: str | Path, table: pd.DataFrame, digest: str) -> None:
    """Write the table as parquet with the digest of what it was made from, and checksums of its pages and columns."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    metadata = {**(arrow.schema.metadata or {}), b"digest": digest.encode()}
    metadata[b"crc32"] = _crc32(arrow.replace_schema_metadata(metadata).schema)
    with atomic_path(path) as temporary:
        pq.write_table(
            arrow.replace_schema_metadata(metadata),
            temporary,
            write_page_checksum=True,
            use_compliant_nested_type=False,
        )


def read_scores(path: str | Path, digest: str) -> pd.DataFrame:
    """Read the table; ``UserError`` if it is damaged, was gathered from other cells than ``digest`` names, or holds a
    score that is no number (:func:`ldmscale.metrics.finite.require_finite`)."""
    try:
        arrow = pq.read_table(path, page_checksum_verification=True)
        if (arrow.schema.metadata or {}).get(b"crc32", whole := _crc32(arrow.schema)) != whole:
            raise OSError("its columns have another checksum")
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({error}): run `snakemake --forcerun gather`") from None
    found = (arrow.schema.metadata or {}).get(b"digest", b"none").decode()
    if found != digest:
        raise UserError(
            f"{path} was gathered under a different config (digest {found}, this run needs {digest}): "
            "run `snakemake --forcerun gather`"
        )
    table = arrow.to_pandas()
    require_finite(table)
    return table


def _crc32(schema: pa.Schema) -> bytes:
    """A checksum of the columns' names and types and of what else the table says of itself."""
    metadata = sorted(item for item in (schema.metadata or {}).items() if item[0] != b"crc32")
    return b"%08x" % zlib.crc32(repr((str(schema.remove_metadata()), metadata)).encode())
