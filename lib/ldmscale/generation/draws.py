"""What a cell draws: text states, image numbers (which fix the noises) and, for super-resolution, conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ldmscale.cells.cell import Cell
from ldmscale.data.encoded import OFFSETS, Prompts, load_array


@dataclass(frozen=True)
class Draws:
    """N images to sample: text states [N,L,D] and the empty caption's [L,D], image numbers [N], each image's split,
    and for super-resolution the latents [N,h,w,C] of the low-resolution images, scaled."""

    states: np.ndarray
    null: np.ndarray
    numbers: np.ndarray
    splits: list[str]
    condition: np.ndarray | None = None


def open_draws(task: str, folder: str | Path) -> Callable[..., Draws]:
    """``draws(cell, **settings) -> Draws`` of ``task``, from the folder of the stage that encoded what it draws.

    Settings, beside the cell (see ``Chain.cell``): t2i, codi and guided ``scored``; interpolation ``noises``; superres
    none; dreambooth ``images_per_prompt`` and ``class_images``.
    """
    folder = Path(folder)
    if task in ("superres", "dreambooth"):
        return partial({"superres": _superres, "dreambooth": _dreambooth}[task], folder)
    return partial(_interpolation if task == "interpolation" else _prompts, Prompts.load(folder))


def _prompts(prompts: Prompts, cell: Cell, scored: bool) -> Draws:
    states, numbers, splits = prompts.drawn(scored)
    return Draws(states, prompts.null, numbers, splits)


def _interpolation(prompts: Prompts, cell: Cell, noises: int) -> Draws:
    states, numbers, splits = prompts.interpolated(noises)
    return Draws(states, prompts.null, numbers, splits)


def _superres(folder: Path, cell: Cell) -> Draws:
    condition, null = load_array(folder / "condition.npy"), load_array(folder / "null.npy")
    count = len(condition)
    states = np.broadcast_to(null, (count, *null.shape))
    return Draws(states, null, OFFSETS["superres"] + np.arange(count), ["superres"] * count, condition)


def _dreambooth(folder: Path, cell: Cell, images_per_prompt: int, class_images: int) -> Draws:
    """K images of each of the subject's prompts, then images of its class alone."""
    prompts, kind = (load_array(folder / cell.subject / f"{name}.npy") for name in ("prompts", "class"))
    count = len(prompts) * images_per_prompt
    states = [np.repeat(prompts, images_per_prompt, axis=0), np.broadcast_to(kind, (class_images, *kind.shape))]
    numbers = [OFFSETS["dreambooth"] + np.arange(count), OFFSETS["class"] + np.arange(class_images)]
    splits = ["dreambooth"] * count + ["class"] * class_images
    return Draws(np.concatenate(states), load_array(folder / "null.npy"), np.concatenate(numbers), splits)
