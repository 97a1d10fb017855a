"""Inception features and distances of folders of image files, as clean-fid computes them (arXiv 2104.11222)."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ldmscale.data.images import check_drawn
from ldmscale.errors import UserError
from ldmscale.metrics.inception import inception_network

# clean-fid's cleanfid.utils.EXTENSIONS, which to import takes seconds (test_cli.py compares).
EXTENSIONS = ("JPEG", "JPG", "PNG", "bmp", "jpeg", "jpg", "npy", "pgm", "png", "ppm", "tif", "tiff", "webp")


def image_files(folder: str | Path) -> list[str]:
    """The image files of ``folder`` and of the folders in it, in clean-fid's order; hidden files are passed over.

    Raises:
        UserError: ``folder`` is none, holds fewer than two images, a file that clean-fid would leave out without a
            word, what is no regular file, or a link by which its images would count twice.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is no folder: give a folder of image files")
    found = glob.glob(os.path.join(glob.escape(str(folder)), "**", "*"), recursive=True)
    files = sorted(path for path in found if not os.path.isdir(path))
    for path in found:
        inside = os.path.join(os.path.realpath(os.path.dirname(path)), "")
        if os.path.islink(path) and inside.startswith(os.path.join(os.path.realpath(path), "")):
            raise UserError(f"{path} is a link to a folder that it lies in, whose images would count again: remove it")
    for path in files:
        if os.path.lexists(path) and not os.path.isfile(path):
            raise UserError(f"{path} is no regular file, or a link to none: move it elsewhere")
        if not path.endswith(tuple(f".{ending}" for ending in EXTENSIONS)):
            raise UserError(f"{path} is no image that clean-fid reads ({', '.join(EXTENSIONS)}): move it elsewhere")
    if len(files) < 2:
        raise UserError(f"{folder} holds {len(files) or 'no'} image{'s'[len(files) :]}: a distance needs two or more")
    return files


def file_features(
    files: Sequence[str], weights_path: str | Path, batch: int = 32, say: Callable[[int], None] = lambda done: None
) -> np.ndarray:
    """Inception features float32 [N,2048] of image files of any sizes, by clean-fid's own loader, resizer and network.

    ``weights_path`` is clean-fid's inception-2015-12-05.pt; ``say`` gets the number of images done. On a GPU where
    PyTorch sees one.

    Raises:
        UserError: a file cannot be read as an image; the weights are missing or another network's.
    """
    network, device = inception_network(Path(weights_path))
    import torch
    from cleanfid.fid import get_batch_features
    from cleanfid.utils import ResizeDataset

    dataset = ResizeDataset(list(files), mode="clean")
    dataset.custom_image_tranform = _checked

    def load(index: int) -> torch.Tensor:
        try:
            if not files[index].endswith(".npy"):
                with Image.open(files[index]) as image:
                    check_drawn(image)
            return dataset[index]
        except Exception as error:  # PIL's readers raise almost anything on damaged data
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{files[index]} cannot be read as an image ({reason}): mend it or move it away") from None

    features = []
    # Decoding and resizing release Python's lock.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(files), batch):
            images = list(pool.map(load, range(start, min(start + batch, len(files)))))
            features.append(get_batch_features(torch.stack(images), network, device))
            say(start + len(images))
    return np.concatenate(features)


def kid(features: np.ndarray, reference: np.ndarray, seed: int = 0) -> float:
    """Kernel distance (KID, arXiv 1801.01401) by ``cleanfid.fid.kernel_distance``: 100 subsets of up to 1,000 images,
    drawn from ``seed``; NumPy's global state, which clean-fid draws from, is put back."""
    from cleanfid.fid import kernel_distance

    state = np.random.get_state()
    try:
        np.random.seed(seed)
        return kernel_distance(features, reference)
    finally:
        np.random.set_state(state)


def _checked(image: np.ndarray) -> np.ndarray:
    # What .npy files hold is not converted to RGB, and of four dimensions clean-fid would take the wrong three.
    if image.ndim != 3 or image.shape[2] < 3 or not image.size:
        raise ValueError(f"its array is {list(image.shape)}, but must be [height, width, 3]")
    if image.dtype.kind not in "uif" or not np.isfinite(image).all():
        raise ValueError("its array holds values that are no finite real numbers")
    return image
