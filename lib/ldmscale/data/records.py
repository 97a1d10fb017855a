"""Captioned images on disk: npz shards without pickles, written whole or not at all, each checked when read.

A shard ``<split>-00000.npz`` holds ``images`` uint8 [n,S,S,3] and ``index``, the UTF-8 bytes of a JSON object with
``keys``, ``captions`` (a list per image), the shard's number, the split's totals, the digest that it was written under
and what was left out of it: a shard holds fewer images than it was asked to where some cannot be used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldmscale.data.source import Source, Tally, Unusable
from ldmscale.errors import UserError
from ldmscale.provenance import atomic_path
from ldmscale.storage import exists, fetch, glob, push, remove


@dataclass(frozen=True)
class Records:
    """One split, or one shard of it: images uint8 [N,S,S,3] with as many captions (tuples) and keys."""

    images: np.ndarray
    captions: list[tuple[str, ...]]
    keys: list[str]


class Written(NamedTuple):
    """A split on disk: its files in order, how many images they hold, and what was left out."""

    paths: list[Path]
    images: int
    skipped: Tally


class _Job(NamedTuple):
    """What the workers that write a split have to know."""

    folder: Path
    source: Source
    split: str
    count: int
    shard_size: int
    digest: str


def write_split(
    folder: str | Path,
    source: Source,
    split: str,
    count: int,
    shard_size: int,
    digest: str = "",
    workers: int = 1,
    tell: Callable[[int, int], None] = lambda *_: None,
    part: tuple[int, int] = (0, 1),
) -> Written | None:
    """Writes the first ``count`` examples of a split as shards of ``shard_size``, in ``workers`` processes.

    A shard that is there whole and was written under ``digest`` is left as it is, so a run that was cut off goes on
    where it was; shards of a longer earlier run are removed. Unusable examples are left out of their shard and counted.
    ``tell(done, shards)`` is called after each shard. Of ``part`` (k, n) every nth shard from k on is written, and
    nothing returned of the whole. Raises UserError where the split has fewer examples.
    """
    folder = Path(folder)
    if not 0 < count <= source.size(split):
        raise UserError(f"{count} {split} examples were asked for, the data has {source.size(split)}")
    job = _Job(folder, source, split, count, shard_size, digest)
    paths = [_shard_path(folder, split, number) for number in range(-(-count // shard_size))]
    mine = range(part[0], len(paths), part[1])
    made = {number: index for number in mine if (index := _finished(job, number))}
    missing = [number for number in mine if number not in made]
    if made:
        tell(len(made), len(mine))
    workers = min(workers, len(missing))
    # Forked, so that the source is there already: its lists can be gigabytes.
    with ProcessPoolExecutor(workers, get_context("fork"), _begin, (job,)) if workers > 1 else nullcontext() as pool:
        indexes = (_write_shard(job, n) for n in missing) if pool is None else pool.map(_write_begun, missing)
        try:
            for number, index in zip(missing, indexes, strict=True):
                made[number] = index
                push(paths[number])
                tell(len(made), len(mine))
        except BrokenProcessPool:
            raise UserError(
                f"a process that wrote {split} records was killed, most likely for want of memory: lower data.shard "
                f"({shard_size} images) or the job's threads ({workers}); what is written stays"
            ) from None
    if part != (0, 1):
        return None
    for stale in set(_shards(folder, split)) - set(paths):
        remove(stale)
    skipped = Tally()
    for number in range(len(paths)):
        skipped.merge(*made[number]["skipped"])
    images = sum(len(index["keys"]) for index in made.values())
    if not images:
        raise UserError(f"none of the {count} {split} examples can be used: {skipped.sentence()}")
    return Written(paths, images, skipped)


_job: _Job | None = None


def _begin(job: _Job) -> None:
    global _job
    _job = job


def _write_begun(number: int) -> dict:
    return _write_shard(_job, number)


def _about(job: _Job, number: int) -> dict:
    return {"shard": number, "shards": -(-job.count // job.shard_size), "count": job.count, "digest": job.digest}


def _finished(job: _Job, number: int) -> dict | None:
    """The index of shard ``number``, if it is there and made under the job's digest; its pixels are not read."""
    path = _shard_path(job.folder, job.split, number)
    if not job.digest or not exists(path):
        return None
    try:
        index = _read_index(path)
    except UserError:
        return None
    return index if _about(job, number).items() <= index.items() else None


def _write_shard(job: _Job, number: int) -> dict:
    """Write shard ``number`` -> its index."""
    start, examples, skipped = number * job.shard_size, [], Tally()
    for i in range(start, min(start + job.shard_size, job.count)):
        try:
            examples.append(job.source.example(job.split, i))
        except Unusable as found:
            skipped.add(found.kind, found.name, found.why)
    index = {
        **_about(job, number),
        "skipped": [skipped.counts, skipped.names],
        "keys": [example.key for example in examples],
        "captions": [example.captions for example in examples],
    }
    size = job.source.image_size
    images = np.stack([e.image for e in examples]) if examples else np.zeros((0, size, size, 3), np.uint8)
    blob = np.frombuffer(json.dumps(index).encode(), np.uint8)
    with atomic_path(_shard_path(job.folder, job.split, number)) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, images=images, index=blob)
    return index


class Shards(Sequence[Records]):
    """The shards of a split in order, each read when it is asked for: for what does not fit in memory.

    Raises UserError naming the file where a shard is missing, truncated, corrupt or of another run.
    """

    def __init__(self, folder: str | Path, split: str):
        self._folder, self._split = Path(folder), split
        self._paths = _shards(self._folder, split)
        if not self._paths:
            raise UserError(f"{folder} holds no {split} records ({split}-00000.npz and so on)")
        self._run = self._of(_read_index(self._paths[0]))
        for number in range(self._run["shards"]):
            if (path := _shard_path(self._folder, split, number)) not in self._paths[number : number + 1]:
                raise UserError(f"{path} is missing: write the {split} records again")

    @staticmethod
    def _of(index: dict) -> dict:
        return {"digest": "", **{name: index[name] for name in ("shards", "count", "digest") if name in index}}

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> Records:
        records, index = _read_shard(self._paths[number])
        if index["shard"] != number or self._of(index) != self._run or self._run["shards"] != len(self):
            raise UserError(
                f"{self._paths[number]} belongs to another run than its neighbours: write the {self._split} records "
                "again"
            )
        return records


def read_split(folder: str | Path, split: str) -> Records:
    """A whole split in memory. Raises UserError as :class:`Shards` does."""
    shards = list(Shards(folder, split))
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
    return glob(folder, f"{split}-[0-9][0-9][0-9][0-9][0-9].npz")


@contextmanager
def _reading(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    try:
        with np.load(fetch(path), allow_pickle=False) as shard:
            yield shard
    except UserError:
        raise
    except Exception as error:  # zip files and array headers raise almost anything where they are damaged
        raise UserError(
            f"{path} is truncated or not a shard of records ({error}): delete it and write it again"
        ) from error


def _index(shard: np.lib.npyio.NpzFile) -> dict:
    index = json.loads(shard["index"].tobytes())
    if not all(isinstance(index[name], int) for name in ("shard", "shards", "count")):
        raise ValueError("its numbers are none")
    return index


def _read_index(path: Path) -> dict:
    with _reading(path) as shard:
        return _index(shard)


def _read_shard(path: Path) -> tuple[Records, dict]:
    # The zip container carries a checksum of every member, so a flipped bit is an error here, not a wrong pixel.
    with _reading(path) as shard:
        images, index = shard["images"], _index(shard)
        captions = [tuple(texts) for texts in index["captions"]]
        pixels = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
        if not pixels or not len(images) == len(captions) == len(index["keys"]):
            raise ValueError("its images, captions and keys do not fit")
    return Records(images, captions, index["keys"]), index
