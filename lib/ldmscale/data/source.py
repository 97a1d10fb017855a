"""What every source of captioned images offers: three splits, each a sequence that can be read in any order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

SPLITS = ("train", "tuning", "heldout")


@dataclass(frozen=True)
class Example:
    """One image with its captions.

    image: uint8 [S,S,3]; captions: at least one, stripped, without line breaks; key: unique within the source.
    """

    image: np.ndarray
    captions: tuple[str, ...]
    key: str


class Source(Protocol):
    """Captioned images in the splits ``train``, ``tuning`` (chooses guidance) and ``heldout`` (what is reported).

    No group of related images (a scene's attributes, an emoji's variants) is in two splits.
    """

    image_size: int

    def size(self, split: str) -> int:
        """Number of examples in ``split``."""
        ...

    def example(self, split: str, index: int) -> Example:
        """Example ``index`` of ``split``: the same whenever and wherever it is asked for."""
        ...
