"""Batches made before they are asked for, by Grain's threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def batches(batch: Callable[[int], T], start: int, stop: int, threads: int) -> Iterator[T]:
    """``batch(start)``, ``batch(start + 1)`` ... up to ``batch(stop - 1)``, in order.

    ``threads`` make up to as many batches ahead; 0: each when it is asked for. ``batch`` must be a function of the step
    alone, which may be called from several threads, so the order and what is in it depend on neither ``threads`` nor
    ``start``. What it raises is raised here, when its step's turn comes.
    """
    if not threads:
        yield from map(batch, range(start, stop))
        return
    import grain

    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    yield from grain.MapDataset.range(start, stop).map(batch).to_iter_dataset(ahead)
