"""What the commands' arguments share: declaring a command, and values that are checked as they are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def command(commands: Any, name: str, summary: str, about: str, example: str) -> argparse.ArgumentParser:
    """Add the command ``name`` to ``commands``: ``summary`` for the list of commands, ``about`` and ``example`` for
    its own help."""
    return commands.add_parser(
        name,
        help=summary,
        description=about,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def whole(least: int = 1) -> Callable[[str], int]:
    """Reads a whole number of at least ``least``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {least}")
        return value

    return read


def number(above: float, most: float = float("inf")) -> Callable[[str], float]:
    """Reads a number greater than ``above`` and at most ``most``."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = above
        if not above < value <= most:
            limit = f" and at most {most:g}" if most < float("inf") else ""
            raise argparse.ArgumentTypeError(f"'{text}' is not a number above {above:g}{limit}")
        return value

    return read


def whole_list(text: str) -> list[int]:
    """Reads ``64,96,128``: positive whole numbers, ascending and each once afterwards."""
    return sorted({whole()(part.strip()) for part in text.split(",")})


def context(text: str) -> tuple[int, int]:
    """Reads ``77x1024``: tokens and width of the text states."""
    tokens, cross, width = text.partition("x")
    if not cross:
        raise argparse.ArgumentTypeError(f"'{text}' is not TOKENSxWIDTH, as in 77x1024")
    return whole()(tokens), whole()(width)


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of one length as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
