"""Pairs for super-resolution through the frozen autoencoder: what its training, cells and scores start from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ldmscale.data.degradation.settings import PRESETS
from ldmscale.data.encoded import save_array
from ldmscale.data.superres import (
    check_size,
    evaluation_patches,
    given_pairs,
    low_resolution,
    training_crops,
    upsample,
    usable_photos,
    write_pngs,
)
from ldmscale.generation.encode import Encoders
from ldmscale.provenance import atomic_path
from ldmscale.storage import push

CHUNK = 512  # training pairs in memory at once


def evaluation_pairs(settings: dict[str, Any], size: int, seed: int,
                     own: Callable[[str], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """HR uint8 [N,S,S,3] and LR uint8 [N,S/4,S/4,3] to evaluate on, as ``settings`` (the config's superres) say.

    ``own(split)`` gives the study's own images of a split. Raises UserError for images that cannot be used.
    """
    check_size(size)
    if settings["evaluation_lr"]:
        return given_pairs(settings["evaluation"], settings["evaluation_lr"], size)
    if settings["evaluation"]:
        hr = evaluation_patches(settings["evaluation"], size, settings["patches"], seed, settings["on_error"])
    else:
        hr = own("heldout")
    return hr, low_resolution(hr, PRESETS[settings["degradation"]], seed, "evaluation")


def training_pairs(settings: dict[str, Any], size: int, seed: int,
                   own: Callable[[str], np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """``settings["items"]`` pairs to train on, in chunks: HR and LR as :func:`evaluation_pairs` gives them."""
    check_size(size)
    folder = settings["train"]
    files = usable_photos(folder, size, seed, settings["on_error"]) if folder else ()
    for start in range(0, settings["items"], CHUNK):
        items = range(start, min(start + CHUNK, settings["items"]))
        if folder:
            hr = training_crops(folder, files, size, items, seed)
        else:
            images = own("train")
            hr = images[np.arange(items.start, items.stop) % len(images)]
        yield hr, low_resolution(hr, PRESETS[settings["degradation"]], seed, "training", start)


def encode_pairs(folder: Path, settings: dict[str, Any], size: int, seed: int, own: Callable[[str], np.ndarray],
                 encoders: Encoders, weights: Any, scale: float, say: Callable[[str], None]) -> int:  # fmt: skip
    """Write what super-resolution reads into ``folder``; returns the number of evaluation patches.

    ``hr``, ``lr``, ``bicubic``, ``reconstruction`` (uint8) and ``condition`` (float32 [N,h,w,C], latents times
    ``scale``) of the evaluation patches, the first two as PNG files too; ``train-{mean,std,condition}`` of training.
    """
    hr, lr = evaluation_pairs(settings, size, seed, own)
    mean, _ = encoders.moments(weights, hr)
    bicubic = upsample(lr)
    condition, _ = encoders.moments(weights, bicubic)
    arrays = {"hr": hr, "lr": lr, "bicubic": bicubic, "reconstruction": encoders.decode(weights, mean),
              "condition": scale * condition}  # fmt: skip
    for name, array in arrays.items():
        save_array(folder / f"{name}.npy", array)
    for name in ("hr", "lr"):
        write_pngs(folder / name, arrays[name])
    say(f"{len(hr)} evaluation patches of {size} x {size} pixels")

    items, latent = settings["items"], mean.shape[1:]
    with ExitStack() as files:
        made = {}
        for name in ("mean", "std", "condition"):
            path = files.enter_context(atomic_path(folder / f"train-{name}.npy"))
            made[name] = np.lib.format.open_memmap(path, "w+", np.float32, (items, *latent))
        done = 0
        for hr, lr in training_pairs(settings, size, seed, own):
            rows = slice(done, done + len(hr))
            made["mean"][rows], made["std"][rows] = encoders.moments(weights, hr)
            made["condition"][rows] = scale * encoders.moments(weights, upsample(lr))[0]
            done = rows.stop
            say(f"{done}/{items} training pairs")
        for array in made.values():
            array.flush()
    for name in made:
        push(folder / f"train-{name}.npy")
    return len(arrays["hr"])
