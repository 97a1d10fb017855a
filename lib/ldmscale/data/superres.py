"""Pairs for super-resolution by 4: images, and the poor small versions of them that a network is to restore.

High resolution (HR) comes from photos or is given as arrays; low resolution (LR) is made from it by Real-ESRGAN's
degradation, or read from a folder of its own (as StableSR's test sets). An item follows from the seed and its number
alone, so a set may be made in parts, in any order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ldmscale.data.degradation.operators import GRAY, resize, to_uint8
from ldmscale.data.degradation.pipeline import degrade
from ldmscale.data.degradation.settings import SCALE, Settings
from ldmscale.data.images import UnreadableImage
from ldmscale.data.patches import Patches, image_names, pixels, train_crop
from ldmscale.errors import UserError
from ldmscale.provenance import atomic_path

# Each split's degradations count from an offset of their own, so that no two of them are drawn alike.
OFFSETS = {"evaluation": 0, "training": 1 << 31}

# What an LR image must share with its HR one: see `same_content`.
COARSE, FLAT, LEAST_CORRELATION = 8, 12.0, 0.4
LEAST_SIDE = 4 * COARSE  # so that noise averages out


def check_size(size: int) -> None:
    """UserError unless HR images of ``size`` pixels have an LR size."""
    if size < SCALE or size % SCALE:
        raise UserError(
            f"images of {size} pixels have no low resolution: the size must be a multiple of {SCALE}, as "
            f"{max(SCALE, round(size / SCALE) * SCALE)}"
        )


def evaluation_patches(
    folder: str | Path, size: int, per_image: int, seed: int, on_error: str = "refuse"
) -> np.ndarray:
    """HR uint8 [N,size,size,3]: ``per_image`` fixed crops of every photo in ``folder``, photo by photo.

    See :class:`ldmscale.data.patches.Patches`, also for ``on_error``. Raises UserError where that does, and for a size
    that is no multiple of 4.
    """
    check_size(size)
    patches = Patches(folder, size, per_image, seed, on_error)
    return np.stack([patches.read(i) for i in range(len(patches))])


def usable_photos(folder: str | Path, size: int, seed: int, on_error: str = "refuse") -> tuple[str, ...]:
    """Names, sorted, of the photos in ``folder`` that crops can be cut from; every photo is decoded to see.

    Raises UserError as :func:`evaluation_patches` does.
    """
    check_size(size)
    return Patches(folder, size, 1, seed, on_error).files  # for its checks; the crops are `train_crop`'s own


def training_crops(folder: str | Path, files: Sequence[str], size: int, items: range, seed: int) -> np.ndarray:
    """HR uint8 [len(items),size,size,3]: item i is a random crop of photo i mod n, of the n ``files`` in ``folder``
    (:func:`usable_photos`)."""
    crops = np.empty((len(items), size, size, 3), np.uint8)
    for number, name in enumerate(files):  # every photo is opened once
        mine = [place for place, item in enumerate(items) if item % len(files) == number]
        if mine:
            photo = _read(Path(folder) / name)
            for place in mine:
                crops[place] = train_crop(photo, size, seed, items[place])
    return crops


def low_resolution(
    images: Iterable[np.ndarray], settings: Settings, seed: int, split: str, first: int = 0
) -> np.ndarray:
    """LR uint8 [N,S/4,S/4,3] of HR ``images`` uint8 [N,S,S,3], items ``first`` and on of ``split``.

    ``split`` is "training" or "evaluation": items of one number are degraded otherwise in each. Raises UserError where
    an image is no such array or S no multiple of 4.
    """
    start = OFFSETS[split] + first
    return np.stack([degrade(image, settings, seed, start + i) for i, image in enumerate(images)])


def upsample(lr: np.ndarray) -> np.ndarray:
    """uint8 [N,s,s,3] -> [N,4s,4s,3] by PyTorch's bicubic (a = -0.75), as StableSR's: condition, and baseline."""
    size = tuple(SCALE * n for n in lr.shape[1:3])
    return np.stack([to_uint8(resize(image.astype(np.float32) / 255, size, "bicubic")) for image in lr])


def given_pairs(hr_folder: str | Path, lr_folder: str | Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """HR uint8 [N,size,size,3] and LR [N,size/4,size/4,3] of two folders of files of the same names, by name.

    Raises UserError naming the first file that lacks its partner, cannot be read, is of another size or does not show
    what its partner shows.
    """
    check_size(size)
    names = {folder: _names(Path(folder)) for folder in (hr_folder, lr_folder)}
    for one, other in ((hr_folder, lr_folder), (lr_folder, hr_folder)):
        alone = sorted(set(names[one]) - set(names[other]))
        if alone:
            raise UserError(
                f"{other} has no file {alone[0]}, which {one} has: the folders of high and low resolution must hold "
                f"images of the same names ({len(alone)} lack their partner)"
            )
    hr, lr = [], []
    for name in names[hr_folder]:
        for folder, side, images in ((hr_folder, size, hr), (lr_folder, size // SCALE, lr)):
            path = Path(folder) / name
            image = _read(path)
            if image.shape != (side, side, 3):
                raise UserError(
                    f"{path} has {image.shape[1]} x {image.shape[0]} pixels; pairs of {size} pixels need {side} x "
                    f"{side} of it"
                )
            images.append(image)
        if not same_content(hr[-1], lr[-1]):
            raise UserError(
                f"{Path(lr_folder) / name} does not show what {Path(hr_folder) / name} shows: the files of a name in "
                "the folders of high and low resolution must be one picture"
            )
    return np.stack(hr), np.stack(lr)


def same_content(hr: np.ndarray, lr: np.ndarray) -> bool:
    """Whether LR [s,s,3] may be a degraded HR [4s,4s,3], both uint8: their luma, as 8 x 8 means, correlates by 0.4.

    So coarse, noise and blur hardly matter: Real-ESRGAN's degradation left 0.55 or more of 531 crops of photos. What
    says nothing is let through: a nearly flat HR image, and LR under 32 pixels, of which noise may leave nothing. A
    mixed-up pair may pass by chance (of photos about one in eight, of objects on white most), a folder of them not.
    """
    if len(lr) < LEAST_SIDE:
        return True
    coarse = [resize(image @ GRAY[:, None], (COARSE, COARSE), "area").ravel() for image in (hr, lr)]
    one, other = (values - values.mean() for values in coarse)
    if one.std() < FLAT:
        return True
    scale = np.linalg.norm(one) * np.linalg.norm(other)
    return bool(scale > 0 and one @ other >= LEAST_CORRELATION * scale)


def write_pngs(folder: str | Path, images: np.ndarray) -> None:
    """Images uint8 [N,H,W,3] as ``00000.png`` and so on, each whole or not at all; numbered files beyond N go."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = {f"{i:05d}.png" for i in range(len(images))}
    for path in folder.iterdir():
        # Of a longer set, or what a killed run was writing.
        if re.fullmatch(r"\d{5,}\.png", path.name) and path.name not in names or re.match(r"\.\d{5,}-", path.name):
            path.unlink()
    for name, image in zip(sorted(names, key=lambda name: int(name[:-4])), images, strict=True):
        with atomic_path(folder / name) as temporary:
            Image.fromarray(image).save(temporary)


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"the image folder {folder} does not exist")
    names = image_names(folder)
    if not names:
        raise UserError(f"the image folder {folder} holds no images")
    return names


def _read(path: Path) -> np.ndarray:
    """uint8 [H,W,3], upright."""
    try:
        return pixels(path)
    except UnreadableImage as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from error
