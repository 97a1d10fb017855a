"""High resolution to low: what happens to image number i is drawn from (seed, i), then done to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldmscale.data.degradation.kernels import Kernel, draw_final_sinc, draw_kernel
from ldmscale.data.degradation.operators import (
    filter2d,
    gaussian_noise,
    jpeg,
    poisson_noise,
    resize,
    sharpen,
    to_uint8,
)
from ldmscale.data.degradation.settings import MODES, RESIZES, SCALE, Settings, Stage
from ldmscale.errors import UserError


@dataclass(frozen=True)
class StageDraw:
    """What one stage does: kernel None is no blur; scale is of the resize; amount is a Gaussian's sigma (in 1/255) or
    the factor on Poisson noise; quality is of the stage's JPEG, an integer."""

    kernel: Kernel | None
    resize: str
    scale: float
    mode: str
    gaussian: bool
    amount: float
    gray: bool
    quality: int


@dataclass(frozen=True)
class Draw:
    """All that happens to one image. intact: nothing but the area resize; final_sinc None: no last filter."""

    intact: bool
    first: StageDraw
    second: StageDraw
    final_sinc: Kernel | None
    jpeg_last: bool
    final_mode: str


def degrade(image: np.ndarray, settings: Settings, seed: int, index: int) -> np.ndarray:
    """Low-resolution uint8 [H/4,W/4,3] of a high-resolution image uint8 [H,W,3].

    The result follows from the image, the settings, seed and index (both >= 0) alone. Raises UserError where the
    image is of another type or shape, or H or W is no multiple of 4.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        raise UserError(f"an image to degrade is {image.dtype} {list(image.shape)}; it must be uint8 [H,W,3].")
    if image.shape[0] % SCALE or image.shape[1] % SCALE:
        raise UserError(
            f"an image to degrade is {image.shape[0]} pixels high and {image.shape[1]} wide; "
            f"both must be multiples of {SCALE}."
        )
    return apply(image, draw(settings, _generator(seed, index, 0)), _generator(seed, index, 1))


def _generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """Streams of their own for choices and noise: another image size does not change what is chosen."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, stream)))


def draw(settings: Settings, rng: np.random.Generator) -> Draw:
    """One image's degradation."""
    return Draw(
        intact=bool(rng.random() < settings.no_degradation_prob),
        first=_draw_stage(settings.first, rng),
        second=_draw_stage(settings.second, rng),
        final_sinc=draw_final_sinc(rng) if rng.random() < settings.final_sinc_prob else None,
        jpeg_last=bool(rng.random() < settings.jpeg_last_prob),
        final_mode=_draw_mode(rng),
    )


def _draw_stage(stage: Stage, rng: np.random.Generator) -> StageDraw:
    kernel = draw_kernel(stage, rng) if rng.random() < stage.blur_prob else None
    kind = RESIZES[rng.choice(len(RESIZES), p=stage.resize_prob)]
    low, high = stage.resize_range
    scale = {"up": rng.uniform(1, high), "down": rng.uniform(low, 1), "keep": 1.0}[kind]
    mode = _draw_mode(rng)
    gaussian = bool(rng.random() < stage.gaussian_noise_prob)
    amount = rng.uniform(*(stage.noise_range if gaussian else stage.poisson_scale_range))
    gray = bool(rng.random() < stage.gray_noise_prob)
    return StageDraw(kernel, kind, scale, mode, gaussian, amount, gray, int(rng.uniform(*stage.jpeg_range)))


def _draw_mode(rng: np.random.Generator) -> str:
    return MODES[rng.integers(len(MODES))]


def apply(image: np.ndarray, drawn: Draw, rng: np.random.Generator) -> np.ndarray:
    """Does ``drawn`` to image uint8 [H,W,3], noise from ``rng``: uint8 [H/4,W/4,3].

    Order: sharpen; blur, resize, noise, JPEG; blur, resize, noise; then the resize to the final size with the sinc
    filter, and JPEG, in either order.
    """
    height, width = image.shape[:2]
    small = (height // SCALE, width // SCALE)
    x = sharpen(image.astype(np.float32) / 255)
    if drawn.intact:
        # StableSR shows the network the high-resolution image itself then; at low resolution, its mean over 4 x 4.
        return to_uint8(resize(x, small, "area"))
    first, second = drawn.first, drawn.second
    size = tuple(max(1, int(n * first.scale)) for n in (height, width))
    x = _blur_resize_noise(x, first, size, first.scale, rng)
    x = jpeg(x, first.quality)
    size = tuple(max(1, int(n / SCALE * second.scale)) for n in (height, width))
    x = _blur_resize_noise(x, second, size, None, rng)
    if not drawn.jpeg_last:
        x = jpeg(x, second.quality)
    x = resize(x, small, drawn.final_mode)
    if drawn.final_sinc:
        x = filter2d(x, drawn.final_sinc.weights())
    if drawn.jpeg_last:
        x = jpeg(x, second.quality)
    return to_uint8(x)


def _blur_resize_noise(x: np.ndarray, stage: StageDraw, size: tuple[int, int], scale: float | None,
                       rng: np.random.Generator) -> np.ndarray:  # fmt: skip
    if stage.kernel:
        x = filter2d(x, stage.kernel.weights())
    x = resize(x, size, stage.mode, scale)
    noise = gaussian_noise if stage.gaussian else poisson_noise
    return np.clip(x + noise(x, stage.amount, stage.gray, rng), 0, 1)
