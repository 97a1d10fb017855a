"""Inception-v3 pool features through clean-fid's own code (Parmar et al., arXiv 2104.11222), from a local file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from ldmscale.errors import UserError
from ldmscale.models.torchscript import check_programs, is_torchscript
from ldmscale.storage import fetch

WEIGHTS_NAME = "inception-2015-12-05.pt"  # the name that clean-fid loads


def inception_features(images: np.ndarray, weights_path: str | Path, batch: int = 64) -> np.ndarray:
    """Features float32 [N,2048] of images uint8 [N,H,W,3], as clean-fid's mode "clean" computes them.

    Each image is resized to 299 x 299 by clean-fid's resizer (PIL, bicubic, antialiased, in float) and goes through
    its wrapper of the 2015 TorchScript network, read from ``weights_path``; nothing is downloaded. On a GPU where
    PyTorch sees one. Raises :class:`UserError` for images of another type or shape, and for a weights file that is
    missing, named otherwise or not that network.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise UserError(f"images are {images.dtype} {list(images.shape)}; Inception features need uint8 [N,H,W,3].")
    network, device = inception_network(Path(weights_path))
    import torch
    from cleanfid.fid import get_batch_features
    from cleanfid.resize import build_resizer

    resize = build_resizer("clean")
    features = []
    for start in range(0, len(images), batch):
        resized = np.stack([resize(image) for image in images[start : start + batch]])
        channels_first = torch.from_numpy(np.ascontiguousarray(resized.transpose(0, 3, 1, 2)))
        features.append(get_batch_features(channels_first, network, device))
    return np.concatenate(features).astype(np.float32, copy=False)


@lru_cache(maxsize=1)
def inception_network(path: Path):
    """clean-fid's network in evaluation mode and its device; kept, because reading it takes seconds.

    The file is a program, which PyTorch runs: one that names files or other code is refused before
    (:func:`ldmscale.models.torchscript.check_programs`), but who wrote it has to be trusted.
    """
    path = fetch(path)
    if not path.is_file():
        raise UserError(f"Inception weights {path} do not exist; give the path of clean-fid's file {WEIGHTS_NAME}.")
    if path.name != WEIGHTS_NAME:
        raise UserError(f"Inception weights are {path.name}; they must be clean-fid's file {WEIGHTS_NAME}, so named.")
    from ldmscale.metrics.torch_guard import guard_torchvision

    guard_torchvision()
    import torch
    from cleanfid.inception_torchscript import InceptionV3W

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if is_torchscript(path):
            check_programs(path)
        network = InceptionV3W(str(path.parent), download=False, resize_inside=False)
        with torch.inference_mode():
            features = network.to(device).eval()(torch.zeros(1, 3, 299, 299, device=device))
        if not features.isfinite().all():
            raise RuntimeError("its features are not finite")
    except (RuntimeError, AttributeError, ValueError) as error:
        raise UserError(
            f"Inception weights {path} are not the TorchScript network of clean-fid's {WEIGHTS_NAME} "
            f"({' '.join(str(error).split())[:200]}); the file may be cut short or a plain state dict."
        ) from error
    return network, device
