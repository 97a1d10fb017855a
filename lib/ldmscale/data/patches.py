"""Patches of a folder of large photos (as DIV2K's HR folders): fixed ones to evaluate on, random ones to train on."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ldmscale.data.images import UnreadableImage, open_image
from ldmscale.data.source import counted
from ldmscale.errors import UserError

PROBLEMS = {
    "unreadable": "images that cannot be read",
    "small": "images that are too small",
}
FLIP_PROBABILITY = 0.5  # of training crops, as in Real-ESRGAN's options (use_hflip)


@dataclass(frozen=True)
class Patch:
    """A crop: the file's name within its folder, and the upright image's row and column where the crop begins."""

    file: str
    top: int
    left: int


class Patches:
    """``per_image`` random crops of size x size from every image in ``folder`` (not in folders below it).

    An image is a file with the suffix of a format that PIL reads, unless its name begins with a dot; other files are
    ignored. An image's crops follow from the seed, its name and its size, whatever else is in the folder; in a small
    image they overlap. on_error: what to do with images that cannot be read or are smaller than a patch, ``refuse``
    (UserError that counts and names them) or ``skip``. Every image is decoded once, here.

    ``files``: names of the usable images, sorted; ``problems``: kind (a key of PROBLEMS) -> names with reasons;
    ``patches``: tuple of Patch, file by file.
    """

    def __init__(self, folder: str | Path, size: int, per_image: int, seed: int, on_error: str = "refuse"):
        if on_error not in ("refuse", "skip"):
            raise UserError(f"on_error is {on_error!r}, it must be refuse or skip")
        if size < 1 or per_image < 1:
            raise UserError(f"{per_image} patches per image of {size} pixels; both must be at least 1")
        self.folder, self.size = Path(folder), size
        if not self.folder.is_dir():
            raise UserError(f"the image folder {self.folder} does not exist")
        self.problems: dict[str, list[str]] = {}
        patches = []
        names = image_names(self.folder)
        for name in names:
            patches += self._crops(name, per_image, seed)
        if self.problems and on_error == "refuse":
            raise UserError(f"{self.sentence()}. Mend or remove them, or set on_error to skip to leave them out")
        if not patches:
            found = f"none of its {len(names)} images is usable: {self.sentence()}" if names else "it holds no images"
            raise UserError(f"no patches of {size} pixels can be cut from the folder {self.folder}: {found}")
        self.patches = tuple(patches)
        self.files = tuple(dict.fromkeys(patch.file for patch in patches))
        self._open: tuple[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.patches)

    def read(self, index: int) -> np.ndarray:
        """Patch ``index``, uint8 [size,size,3]. Quickest in order: the last image stays open.

        Raises UserError where the file has changed since.
        """
        patch = self.patches[index]
        if self._open is None or self._open[0] != patch.file:
            try:
                self._open = patch.file, pixels(self.folder / patch.file)
            except UnreadableImage as error:
                raise UserError(
                    f"{self.folder / patch.file} could be read a moment ago and cannot any more: {error}"
                ) from error
        crop = self._open[1][patch.top : patch.top + self.size, patch.left : patch.left + self.size]
        if crop.shape[:2] != (self.size, self.size):
            raise UserError(f"{self.folder / patch.file} was larger a moment ago: the patch lies outside of it")
        return crop.copy()

    def sentence(self) -> str:
        """What was wrong with the folder's images: every kind with its count and first names."""
        parts = [counted(len(names), PROBLEMS[kind], names) for kind, names in self.problems.items()]
        return f"{self.folder}: {'; '.join(parts) if parts else 'no problems'}"

    def _crops(self, name: str, per_image: int, seed: int) -> list[Patch]:
        try:
            height, width = pixels(self.folder / name).shape[:2]
        except UnreadableImage as error:
            self.problems.setdefault("unreadable", []).append(f"{name}: {error}")
            return []
        if min(height, width) < self.size:
            reason = f"{name}: {width} x {height} pixels, a patch needs {self.size} of both"
            self.problems.setdefault("small", []).append(reason)
            return []
        digest = hashlib.blake2b(json.dumps([seed, name]).encode(), digest_size=16).digest()
        rng = np.random.default_rng(int.from_bytes(digest))
        tops = rng.integers(height - self.size + 1, size=per_image)
        lefts = rng.integers(width - self.size + 1, size=per_image)
        return [Patch(name, int(top), int(left)) for top, left in zip(tops, lefts, strict=True)]


def crops(folder: str | Path, size: int, count: int, seed: int) -> np.ndarray:
    """``count`` random crops of ``folder``'s images, uint8 [count,size,size,3], about as many of each.

    Raises UserError where an image cannot be read or is smaller than a crop.
    """
    images = max(1, len(image_names(Path(folder)))) if Path(folder).is_dir() else 1
    patches = Patches(folder, size, -(-count // images), seed)
    # Evenly over all of them, in their order: an image stays open for its crops.
    chosen = np.arange(count) * len(patches) // count
    return np.stack([patches.read(i) for i in chosen])


def image_names(folder: Path) -> list[str]:
    """Names, sorted, of the files in ``folder`` that have an image's suffix and are not hidden."""
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and not path.is_dir()
    )


def train_crop(image: bytes | np.ndarray, size: int, seed: int, index: int) -> np.ndarray:
    """A random crop, uint8 [size,size,3], mirrored left to right half the time, of a file's bytes or uint8 [H,W,3].

    Follows from the image, size, seed and index (both >= 0) alone. Raises UserError where the bytes are no readable
    image, or the image is smaller than the crop.
    """
    if isinstance(image, bytes):
        try:
            image = pixels(io.BytesIO(image))
        except UnreadableImage as error:
            raise UserError(f"training image {index} cannot be read: {error}") from error
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise UserError(f"training image {index} has {width} x {height} pixels; a crop needs at least {size} of both")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
    crop = image[top : top + size, left : left + size]
    return np.ascontiguousarray(crop[:, ::-1] if rng.random() < FLIP_PROBABILITY else crop)


def pixels(source: Path | io.BytesIO) -> np.ndarray:
    """An image of any kind as uint8 [H,W,3], upright; raises UnreadableImage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, on odd metadata
        return np.asarray(open_image(source), np.uint8)
