"""Image files to square uint8 arrays: any format, mode, orientation and shape that PIL can read."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

FITS = ("crop", "pad", "squash")


class UnreadableImage(Exception):
    """The file is no image, is cut short or damaged, or is larger than PIL's guard against decompression bombs."""


def open_image(path: str | Path | BinaryIO) -> Image.Image:
    """Decodes a file completely to an upright RGB image; transparency is laid over white.

    Raises UnreadableImage with the reason. The first frame of a file with several is taken.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
                raise UnreadableImage(f"{width}x{height} is more than {Image.MAX_IMAGE_PIXELS} pixels")
            image.load()
            return _to_rgb(_upright(image))
    except UnreadableImage:
        raise
    except Exception as error:  # PIL's readers raise almost anything on damaged data
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


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
    values = np.nan_to_num(np.asarray(image, np.float64))
    if image.mode == "F":
        top = 1.0 if values.max(initial=0) <= 1 else 255.0
    else:
        top = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
    grey = np.clip(np.round(values * (255 / top)), 0, 255).astype(np.uint8)
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
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8)
