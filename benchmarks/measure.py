"""What the benchmarks share: measuring two ways in turns, and the rows of docs/benchmarks.md."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

COLUMNS = ("what", "here", "beside it", "ratio", "least to greatest", "beside it is; notes")


def seconds(run: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def in_turns(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of ``rounds`` calls of each, one after the other: what else the machine does falls on both."""
    found = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return [a for a, _ in found], [b for _, b in found]


def header() -> str:
    """The table's first two lines."""
    return f"| {' | '.join(COLUMNS)} |\n|---|---:|---:|---:|---:|---|"


def compared(what: str, ours: list[float], theirs: list[float], notes: str, per: float = 0.0, unit: str = "s") -> str:
    """A row: medians of both, how many times faster ``ours`` is, and the least and greatest of the rounds' ratios.

    Both are seconds of a call; with ``per``, how many things a call makes, the medians are things a second.
    """
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    medians = [statistics.median(times) for times in (ours, theirs)]
    shown = [f"{per / m if per else m:.3g} {unit}" for m in medians]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"| {what} | {shown[0]} | {shown[1]} | {medians[1] / medians[0]:.2f} | {spread} | {notes} |"


def alone(what: str, value: str, notes: str) -> str:
    """A row of what is compared with nothing."""
    return f"| {what} | {value} | - | - | - | {notes} |"
