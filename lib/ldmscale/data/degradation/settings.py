"""The numbers of the two-stage degradation: Real-ESRGAN's x4plus and StableSR's lighter variant."""

from __future__ import annotations

from dataclasses import dataclass

SCALE = 4  # high resolution over low resolution
KERNEL_SIZES = tuple(range(7, 22, 2))
KERNEL_KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
RESIZES = ("up", "down", "keep")
MODES = ("area", "bilinear", "bicubic")  # each as likely at every resize

Range = tuple[float, float]  # of a uniform draw


@dataclass(frozen=True)
class Stage:
    """One of the two rounds of blur, resize, noise and JPEG.

    blur_sigma: standard deviations of a blur kernel, pixels. betag, betap: shapes of generalised Gaussian and plateau
    kernels (half of the draws below 1, half above). resize_range: (smallest, largest) factor; ``up`` draws from 1 to
    the largest, ``down`` from the smallest to 1. noise_range: sigma of Gaussian noise, in 1/255. poisson_scale_range:
    factor on Poisson noise. jpeg_range: quality. The rest are probabilities: blur_prob that there is any blur,
    sinc_prob that it is a sinc filter, kernel_prob of KERNEL_KINDS otherwise, resize_prob of RESIZES,
    gaussian_noise_prob that noise is Gaussian and not Poisson, gray_noise_prob that all channels share it.
    """

    blur_sigma: Range
    betag_range: Range
    betap_range: Range
    resize_range: Range
    resize_prob: tuple[float, float, float]
    noise_range: Range
    poisson_scale_range: Range
    jpeg_range: Range
    blur_prob: float = 1.0
    sinc_prob: float = 0.1
    kernel_prob: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    gaussian_noise_prob: float = 0.5
    gray_noise_prob: float = 0.4


@dataclass(frozen=True)
class Settings:
    """Both stages and what follows them.

    final_sinc_prob: of the last sinc filter. jpeg_last_prob: that the last JPEG comes after the resize to the final
    size, not before. no_degradation_prob: of an image that is only made smaller.
    """

    first: Stage
    second: Stage
    final_sinc_prob: float = 0.8
    jpeg_last_prob: float = 0.5
    no_degradation_prob: float = 0.0


# options/train_realesrgan_x4plus.yml of xinntao/Real-ESRGAN.
REAL_ESRGAN = Settings(
    first=Stage(
        blur_sigma=(0.2, 3),
        betag_range=(0.5, 4),
        betap_range=(1, 2),
        resize_range=(0.15, 1.5),
        resize_prob=(0.2, 0.7, 0.1),
        noise_range=(1, 30),
        poisson_scale_range=(0.05, 3),
        jpeg_range=(30, 95),
    ),
    second=Stage(
        blur_sigma=(0.2, 1.5),
        betag_range=(0.5, 4),
        betap_range=(1, 2),
        resize_range=(0.3, 1.2),
        resize_prob=(0.3, 0.4, 0.3),
        noise_range=(1, 25),
        poisson_scale_range=(0.05, 2.5),
        jpeg_range=(30, 95),
        blur_prob=0.8,
    ),
)

# configs/stableSRNew/v2-finetune_text_T_512.yaml of IceClear/StableSR (arXiv 2305.07015).
STABLESR = Settings(
    first=Stage(
        blur_sigma=(0.2, 1.5),
        betag_range=(0.5, 2),
        betap_range=(1, 1.5),
        resize_range=(0.3, 1.5),
        resize_prob=(0.2, 0.7, 0.1),
        noise_range=(1, 15),
        poisson_scale_range=(0.05, 2),
        jpeg_range=(60, 95),
    ),
    second=Stage(
        blur_sigma=(0.2, 1.0),
        betag_range=(0.5, 2),
        betap_range=(1, 1.5),
        resize_range=(0.6, 1.2),
        resize_prob=(0.3, 0.4, 0.3),
        noise_range=(1, 12),
        poisson_scale_range=(0.05, 1),
        jpeg_range=(60, 100),
        blur_prob=0.5,
    ),
    no_degradation_prob=0.01,
)

PRESETS = {"real-esrgan": REAL_ESRGAN, "stablesr": STABLESR}
