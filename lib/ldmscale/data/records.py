"""Captioned images on disk: npz shards without pickles, written whole or not at all, each checked when read.

A shard ``<split>-00000.npz`` holds ``images`` uint8 [n,S,S,3] and ``index``, the UTF-8 bytes of a JSON object with
``keys``, ``captions`` (a list per image), the shard's number and the split's totals.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldmscale.data.source import Source
from ldmscale.errors import UserError
from ldmscale.provenance import atomic_path


@dataclass(frozen=True)
class Records:
    """One split, or one shard of it: images uint8 [N,S,S,3] with as many captions (tuples) and keys."""

    images: np.ndarray
    captions: list[tuple[str, ...]]
    keys: list[str]


def write_split(folder: str | Path, source: Source, split: str, count: int, shard_size: int) -> list[Path]:
    """Writes the first ``count`` examples of a split as shards of ``shard_size`` and returns their paths, in order.

    Shards left in ``folder`` by a longer earlier run are removed. Raises UserError where the split has fewer examples.
    """
    folder = Path(folder)
    if not 0 < count <= source.size(split):
        raise UserError(f"{count} {split} examples were asked for, the data has {source.size(split)}")
    starts = range(0, count, shard_size)
    paths = [_shard_path(folder, split, number) for number in range(len(starts))]
    for number, (path, start) in enumerate(zip(paths, starts, strict=True)):
        examples = [source.example(split, i) for i in range(start, min(start + shard_size, count))]
        index = {
            "shard": number,
            "shards": len(starts),
            "count": count,
            "keys": [example.key for example in examples],
            "captions": [example.captions for example in examples],
        }
        blob = np.frombuffer(json.dumps(index).encode(), np.uint8)
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.savez(handle, images=np.stack([example.image for example in examples]), index=blob)
    for stale in set(_shards(folder, split)) - set(paths):
        stale.unlink()
    return paths


def read_shards(folder: str | Path, split: str) -> Iterator[Records]:
    """The shards of a split, one at a time and in order, for what does not fit in memory.

    Raises UserError naming the file where a shard is missing, truncated, corrupt or of another run.
    """
    folder = Path(folder)
    paths = _shards(folder, split)
    if not paths:
        raise UserError(f"{folder} holds no {split} records ({split}-00000.npz and so on)")
    first = None
    for number, path in enumerate(paths):
        records, index = _read_shard(path)
        first = first or index
        if path != _shard_path(folder, split, number) or len(paths) < index["shards"]:
            missing = next(n for n in range(index["shards"]) if _shard_path(folder, split, n) not in paths)
            raise UserError(f"{_shard_path(folder, split, missing)} is missing: write the {split} records again")
        if (index["shard"], index["shards"], index["count"]) != (number, len(paths), first["count"]):
            raise UserError(f"{path} belongs to another run than its neighbours: write the {split} records again")
        yield records


def read_split(folder: str | Path, split: str) -> Records:
    """A whole split in memory. Raises UserError as :func:`read_shards` does."""
    shards = list(read_shards(folder, split))
    if len({shard.images.shape[1:] for shard in shards}) > 1:
        raise UserError(f"the {split} shards in {folder} differ in image size: write the {split} records again")
    return Records(
        images=shards[0].images if len(shards) == 1 else np.concatenate([shard.images for shard in shards]),
        captions=[captions for shard in shards for captions in shard.captions],
        keys=[key for shard in shards for key in shard.keys],
    )


def _shard_path(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}-{number:05d}.npz"


def _shards(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}-[0-9][0-9][0-9][0-9][0-9].npz"))


def _read_shard(path: Path) -> tuple[Records, dict]:
    try:
        # The zip container carries a checksum of every member, so a flipped bit is an error here, not a wrong pixel.
        with np.load(path, allow_pickle=False) as shard:
            images, index = shard["images"], json.loads(shard["index"].tobytes())
        captions = [tuple(texts) for texts in index["captions"]]
        whole = (
            images.dtype == np.uint8
            and images.ndim == 4
            and images.shape[3] == 3
            and len(images) == len(captions) == len(index["keys"])
            and all(isinstance(index[name], int) for name in ("shard", "shards", "count"))
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is truncated or not a shard of records ({error}): write it again") from error
    if not whole:
        raise UserError(f"{path} is not a shard of records: its images, captions and keys do not fit: write it again")
    return Records(images, captions, index["keys"]), index
