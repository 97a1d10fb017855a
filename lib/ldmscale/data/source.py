"""What every source of captioned images offers: three splits, each a sequence that can be read in any order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ldmscale.text import printable

SPLITS = ("train", "tuning", "heldout")
NAMES = 3  # so many of each kind are named


@dataclass(frozen=True)
class Example:
    """One image with its captions.

    image: uint8 [S,S,3]; captions: at least one, stripped, without line breaks; key: unique within the source.
    """

    image: np.ndarray
    captions: tuple[str, ...]
    key: str


def tidy(caption: str) -> str:
    """Blanks and line breaks collapsed; half of a surrogate pair, which JSON can carry and no later file format
    accepts, replaced."""
    return " ".join(caption.encode("utf-8", "replace").decode("utf-8").split())


class Unusable(Exception):
    """An example that has to be left out: what ``kind`` of problem it is, the ``name`` that finds it, and ``why``."""

    def __init__(self, kind: str, name: str, why: str = ""):
        super().__init__(kind, name, why)
        self.kind, self.name, self.why = kind, name, why


@dataclass
class Tally:
    """What was left out, by kind of problem: how many, and the names of the first few, with why; ``title`` of what."""

    title: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str, why: str = "") -> None:
        """Count one."""
        self.merge({kind: 1}, {kind: [f"{name} ({why})" if why else name]})

    def merge(self, counts: Mapping[str, int], names: Mapping[str, list[str]]) -> None:
        """Count what another tally has counted."""
        for kind, count in counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            self.names[kind] = [*self.names.get(kind, ()), *names.get(kind, ())][:NAMES]

    def sentence(self) -> str:
        """``title; 2 unreadable (a.jpg (why), b.jpg); 1 no caption (c.jpg)``, or ``no problems``."""
        parts = [counted(count, kind, self.names[kind]) for kind, count in self.counts.items()]
        return "; ".join([*filter(None, [self.title]), *(parts or ["no problems"])])


def counted(count: int, kind: str, names: Sequence[str]) -> str:
    """``5 unreadable (a.jpg, b.jpg, c.jpg, ...)``."""
    return f"{count} {kind} ({printable(', '.join(names[:NAMES]))}{', ...' if count > NAMES else ''})"


class Source(Protocol):
    """Captioned images in the splits ``train``, ``tuning`` (chooses guidance) and ``heldout`` (what is reported).

    No group of related images (a scene's attributes, an emoji's variants) is in two splits.
    """

    image_size: int

    def size(self, split: str) -> int:
        """Number of examples in ``split``, those included that will turn out to be unusable."""
        ...

    def example(self, split: str, index: int) -> Example:
        """Example ``index`` of ``split``: the same whenever and wherever it is asked for.

        Raises Unusable for one of the training split that has to be left out; those of the others are all usable.
        """
        ...
