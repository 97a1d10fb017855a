"""Images and captions after the frozen encoders, as arrays on disk: what training and sampling read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldmscale.errors import UserError
from ldmscale.provenance import atomic_path

PROMPT_SPLITS = ("gallery", "tuning", "heldout")
# Each split's images count from an offset of their own, so that a longer gallery leaves the other splits' noise alone.
_SPLITS = ("gallery", "tuning", "heldout", "interpolation", "superres", "dreambooth", "class", "prior", "validation")
OFFSETS = {split: 1_000_000 * i for i, split in enumerate(_SPLITS)}


def save_array(path: str | Path, array: np.ndarray) -> None:
    """Write ``array`` as .npy, whole or not at all."""
    with atomic_path(path) as temporary:
        np.save(temporary, array)


def load_array(path: str | Path) -> np.ndarray:
    """Map an array that :func:`save_array` wrote; ``UserError`` naming the file if it is missing or damaged."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): delete the manifest beside it and run snakemake again"
        ) from None


@dataclass(frozen=True)
class Latents:
    """What the U-Nets train on, encoded once.

    ``mean``, ``std`` float32 [N,h,w,C] are the moments of each image's latent; ``states`` [captions,L,D] the text
    tower's; captions of image i are rows ``first[i]`` up to ``first[i + 1]``; ``null`` [L,D] is the empty caption;
    ``scale`` brings latents to unit variance (arXiv 2112.10752, appendix G).
    """

    mean: np.ndarray
    std: np.ndarray
    states: np.ndarray
    first: np.ndarray
    null: np.ndarray
    scale: float

    ARRAYS = ("mean", "std", "states", "first", "null")

    def save(self, folder: str | Path) -> None:
        for name in self.ARRAYS:
            save_array(Path(folder) / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: str | Path, scale: float) -> Latents:
        return cls(**{name: load_array(Path(folder) / f"{name}.npy") for name in cls.ARRAYS}, scale=scale)


@dataclass(frozen=True)
class Prompts:
    """Text states [N,L,D] and CLIP embeddings [N,E] of each split's prompts; ``null`` [L,D] is the empty caption.

    ``between`` [P,A,L,D] are the states on the way between the prompts of P pairs, ``ends`` [P,2,E] the embeddings of
    the two prompts of each; both are empty where the study interpolates nothing.
    """

    states: Mapping[str, np.ndarray]
    embeddings: Mapping[str, np.ndarray]
    null: np.ndarray
    between: np.ndarray
    ends: np.ndarray

    ARRAYS = ("null", "between", "ends")

    def save(self, folder: str | Path) -> None:
        for split in PROMPT_SPLITS:
            save_array(Path(folder) / f"{split}-states.npy", self.states[split])
            save_array(Path(folder) / f"{split}-embeddings.npy", self.embeddings[split])
        for name in self.ARRAYS:
            save_array(Path(folder) / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: str | Path) -> Prompts:
        read = {kind: {s: load_array(Path(folder) / f"{s}-{kind}.npy") for s in PROMPT_SPLITS}
                for kind in ("states", "embeddings")}  # fmt: skip
        return cls(**read, **{name: load_array(Path(folder) / f"{name}.npy") for name in cls.ARRAYS})

    def interpolated(self, noises: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """:meth:`drawn` for a cell of interpolation: every state of ``between`` with the same ``noises`` noises."""
        states = self.between.reshape(-1, *self.between.shape[2:])
        numbers = OFFSETS["interpolation"] + np.tile(np.arange(noises), len(states))
        return np.repeat(states, noises, axis=0), numbers, ["interpolation"] * len(numbers)

    def drawn(self, scored: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """States, image numbers and split of every image a cell draws: the gallery alone unless ``scored``."""
        splits = PROMPT_SPLITS if scored else PROMPT_SPLITS[:1]
        states = np.concatenate([self.states[s] for s in splits])
        numbers = np.concatenate([OFFSETS[s] + np.arange(len(self.states[s])) for s in splits])
        return states, numbers, [s for s in splits for _ in self.states[s]]
