"""Image files to square uint8 arrays: any format, mode, orientation and shape that PIL can read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

FITS = ("crop", "pad", "squash")
PROGRAMS = ("EPS", "WMF")  # what PIL draws by running another program on the file
BAND = 1 << 20  # pixels of deep images converted at once


class UnreadableImage(Exception):
    """The file is no image, is cut short or damaged, or is larger than PIL's guard against decompression bombs."""


def check_regular(path: str | Path) -> None:
    """Raises UnreadableImage for what is no file, such as a pipe, which to open would wait for ever."""
    if os.path.lexists(path) and not os.path.isfile(path):
        raise UnreadableImage("it is no regular file, or a link to none")


def check_drawn(image: Image.Image) -> None:
    """Raises UnreadableImage for an opened file of ``PROGRAMS``; nothing of it has run yet."""
    if image.format in PROGRAMS:
        raise UnreadableImage(f"{image.format} files are programs, which are not run")


def open_image(path: str | Path | BinaryIO) -> Image.Image:
    """Decodes a file completely to an upright RGB image; transparency is laid over white.

    Raises UnreadableImage with the reason. The first frame of a file with several is taken.
    """
    try:
        if isinstance(path, (str, Path)):
            check_regular(path)
        with Image.open(path) as image:
            check_drawn(image)
            width, height = image.size
            if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
                raise UnreadableImage(f"{width}x{height} is more than {Image.MAX_IMAGE_PIXELS} pixels")
            image.load()
            return _to_rgb(_upright(image))
    except UnreadableImage:
        raise
    except Exception as error:  # PIL's readers raise almost anything on damaged data
        raise UnreadableImage(" ".join(f"{type(error).__name__}: {error}".split())) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata around sound pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_to_rgb(image)
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    """Greyscale of 16 or 32 bits or floats: PIL's own conversion would clip all values above 255 to white."""
    values = np.asarray(image)
    rows = max(1, BAND // values.shape[1])
    bands = [slice(start, start + rows) for start in range(0, len(values), rows)]  # in float64 it is 8 times as large
    most = max(np.nan_to_num(values[band].astype(np.float64)).max(initial=0) for band in bands)
    if image.mode == "F":
        top = 1.0 if most <= 1 else 255.0
    else:
        top = 65535.0 if image.mode.startswith("I;16") or most > 255 else 255.0
    grey = np.empty(values.shape, np.uint8)
    for band in bands:
        scaled = np.nan_to_num(values[band].astype(np.float64)) * (255 / top)
        grey[band] = np.clip(np.round(scaled), 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def fit_image(image: Image.Image, size: int, fit: str) -> np.ndarray:
    """An RGB image as uint8 [size,size,3], resampled with PIL's antialiased Lanczos filter (also when shrinking).

    fit: ``crop`` scales the shorter side to ``size`` and keeps the centre, ``pad`` scales the longer side and fills
    with white, ``squash`` ignores the aspect ratio.
    """
    width, height = image.size
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        image = image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    elif fit == "pad":
        scale = size / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        canvas = Image.new("RGB", (size, size), "white")
        canvas.paste(image.resize(inner, Image.Resampling.LANCZOS), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        image = canvas
    else:
        if Image.MAX_IMAGE_PIXELS and size * height > Image.MAX_IMAGE_PIXELS:  # PIL widens before it shortens
            image = image.resize((width, size), Image.Resampling.LANCZOS)
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8)
