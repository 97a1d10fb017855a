"""What degrades an image: filtering, resizing, noise, JPEG; and the sharpening before all of it.

Images are float32 [H,W,3] in [0,1]; filters and bicubic resizing can leave that range a little.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.sparse import coo_array

CUBIC = -0.75  # the a of PyTorch's and OpenCV's cubic convolution
GRAY = np.array([0.2989, 0.587, 0.114], np.float32)  # torchvision's rgb_to_grayscale
USM_RADIUS, USM_WEIGHT, USM_THRESHOLD = 51, 0.5, 10  # Real-ESRGAN's radius 50, made odd


def filter2d(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlation of every channel of image [H,W,C] with kernel [k,k] (k odd), reflecting without the edge pixel.

    Same size as the image. By FFT: exact to float32 rounding, and quicker than sums for kernels of this size.
    """
    height, width = image.shape[:2]
    pad = len(kernel) // 2
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    shape = [next_fast_len(n, real=True) for n in padded.shape[:2]]
    response = rfft2(kernel.astype(np.float32), shape).conj()
    return irfft2(rfft2(padded, shape, axes=(0, 1)) * response[..., None], shape, axes=(0, 1))[:height, :width]


def resize(image: np.ndarray, size: tuple[int, int], mode: str, scale: float | None = None) -> np.ndarray:
    """``torch.nn.functional.interpolate`` (align_corners False, no antialiasing) of image [H,W,C] to size (H', W').

    mode: ``area`` (adaptive average), ``bilinear`` or ``bicubic``. With ``scale``, as PyTorch's scale_factor, source
    positions follow from it instead of from the sizes' ratio, which differs where sizes were rounded.
    """
    if size == image.shape[:2] and scale in (None, 1):
        return image
    for length in size:  # rows, then columns: each turn transposes
        weights = _weights(image.shape[0], length, mode, scale)
        rows = weights @ np.ascontiguousarray(image, np.float32).reshape(image.shape[0], -1)
        image = rows.reshape(length, *image.shape[1:]).transpose(1, 0, 2)
    return np.ascontiguousarray(image)


@lru_cache(maxsize=256)  # small images come in few sizes
def _weights(n: int, length: int, mode: str, scale: float | None):
    """Sparse [length, n]: what each new pixel takes from the old ones."""
    i = np.arange(length)
    if mode == "area":
        start, stop = i * n // length, -(-(i + 1) * n // length)
        taps = start[:, None] + np.arange((stop - start).max())
        inside = taps < stop[:, None]
        values = inside / (stop - start)[:, None]
    else:
        position = (i + 0.5) * (n / length if scale is None else 1 / scale) - 0.5
        if mode == "bilinear":
            position = np.maximum(position, 0)
        first = np.floor(position).astype(int)
        t = (position - first)[:, None]
        if mode == "bilinear":
            taps, values = first[:, None] + [0, 1], np.concatenate([1 - t, t], axis=1)
        else:
            taps = first[:, None] + [-1, 0, 1, 2]
            values = np.concatenate([_cubic_far(1 + t), _cubic_near(t), _cubic_near(1 - t), _cubic_far(2 - t)], axis=1)
    taps = np.clip(taps, 0, n - 1)  # beyond the edge, the edge pixel
    rows = np.broadcast_to(i[:, None], taps.shape)
    return coo_array((values.astype(np.float32).ravel(), (rows.ravel(), taps.ravel())), shape=(length, n)).tocsr()


def _cubic_near(x: np.ndarray) -> np.ndarray:
    return ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1


def _cubic_far(x: np.ndarray) -> np.ndarray:
    return CUBIC * (((x - 5) * x + 8) * x - 4)


def gaussian_noise(image: np.ndarray, sigma: float, gray: bool, rng: np.random.Generator) -> np.ndarray:
    """Noise float32 [H,W,3] of standard deviation sigma / 255; ``gray``: the same in all channels."""
    shape = (*image.shape[:2], 1) if gray else image.shape
    noise = rng.standard_normal(shape, np.float32) * np.float32(sigma / 255)
    return np.broadcast_to(noise, image.shape)


def poisson_noise(image: np.ndarray, scale: float, gray: bool, rng: np.random.Generator) -> np.ndarray:
    """Shot noise float32 [H,W,3]: scale (Poisson(v x) / v - x), x the image in 256 levels.

    v = 2^ceil(log2(number of levels that occur)), so the noise's variance is scale^2 x / v. ``gray``: x is the
    image's luma, and the channels share its noise.
    """
    if gray:
        image = image @ GRAY[:, None]
    levels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    occurring = np.count_nonzero(np.bincount(levels.ravel(), minlength=256))
    v = 2.0 ** np.ceil(np.log2(occurring))
    noise = ((rng.poisson(levels * (v / 255)) / v - levels / 255.0) * scale).astype(np.float32)
    return np.broadcast_to(noise, (*noise.shape[:2], 3))


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """The image through libjpeg's baseline compression (chroma at half size); clipped and rounded to 8 bits first."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as decoded:
        return np.asarray(decoded, np.float32) / 255


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Clipped to [0,1] and rounded to uint8."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


@lru_cache(maxsize=1)
def usm_kernel() -> np.ndarray:
    """The Gaussian [51,51] that sharpening compares with; sigma by OpenCV's rule, 0.3 ((51 - 1) / 2 - 1) + 0.8 = 8."""
    sigma = 0.3 * ((USM_RADIUS - 1) * 0.5 - 1) + 0.8
    line = np.exp(-0.5 * ((np.arange(USM_RADIUS) - USM_RADIUS // 2) / sigma) ** 2)
    line /= line.sum()
    return np.outer(line, line)


def sharpen(image: np.ndarray) -> np.ndarray:
    """Unsharp masking as Real-ESRGAN does to its high-resolution images, before degrading them.

    K = clip(I + 0.5 (I - B)) with B the blurred image; mixed with I by the blurred mask of |I - B| > 10 / 255.
    """
    residual = image - filter2d(image, usm_kernel())
    mask = filter2d((np.abs(residual) * 255 > USM_THRESHOLD).astype(np.float32), usm_kernel())
    return mask * np.clip(image + USM_WEIGHT * residual, 0, 1) + (1 - mask) * image
