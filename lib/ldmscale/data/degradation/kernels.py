"""Blur kernels: six bivariate bells and the sinc filter, as BasicSR's basicsr/data/degradations.py defines them.

With q(x, y) = (x y) S^-1 (x y)^T, where S = R(theta) diag(sigma_x^2, sigma_y^2) R(theta)^T, x along columns:

    Gaussian                exp(-q / 2)
    generalised Gaussian    exp(-q^beta / 2)
    plateau                 1 / (1 + q^beta)
    sinc                    w J1(w r) / (2 pi r) with r^2 = x^2 + y^2 (w^2 / (4 pi) at 0): passes frequencies below w

each divided by its sum. An isotropic kernel has sigma_y = sigma_x.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import numpy as np
from scipy.special import j1

from ldmscale.data.degradation.settings import KERNEL_KINDS, KERNEL_SIZES, Stage


@dataclass(frozen=True)
class Kernel:
    """One drawn kernel: ``kind`` is one of KERNEL_KINDS or "sinc".

    size: odd, pixels; sigma_x, sigma_y: pixels; rotation, cutoff (of sinc): radians. What a kind has no use for is
    left at its default.
    """

    kind: str
    size: int
    sigma_x: float = 1.0
    sigma_y: float = 1.0
    rotation: float = 0.0
    beta: float = 1.0
    cutoff: float = pi

    def weights(self) -> np.ndarray:
        """The kernel, float64 [size,size], of sum 1."""
        y, x = np.indices((self.size, self.size)) - self.size // 2
        values = self._sinc(x, y) if self.kind == "sinc" else self._bell(x, y)
        return values / values.sum()

    def _bell(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        cos, sin = np.cos(self.rotation), np.sin(self.rotation)
        q = ((cos * x + sin * y) / self.sigma_x) ** 2 + ((cos * y - sin * x) / self.sigma_y) ** 2
        if self.kind.startswith("plateau"):
            return 1 / (1 + q**self.beta)
        return np.exp(-0.5 * q**self.beta)

    def _sinc(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        centre = (x == 0) & (y == 0)
        r = np.where(centre, 1, np.hypot(x, y))
        return np.where(centre, self.cutoff**2 / (4 * pi), self.cutoff * j1(self.cutoff * r) / (2 * pi * r))


def draw_kernel(stage: Stage, rng: np.random.Generator) -> Kernel:
    """A stage's blur kernel: size, then sinc or one of the six kinds, then its parameters."""
    size = _draw_size(rng)
    if rng.random() < stage.sinc_prob:
        # A small kernel cannot hold the long waves of a low cutoff.
        return Kernel("sinc", size, cutoff=rng.uniform(pi / 3 if size < 13 else pi / 5, pi))
    kind = KERNEL_KINDS[rng.choice(len(KERNEL_KINDS), p=stage.kernel_prob)]
    sigma_x = sigma_y = rng.uniform(*stage.blur_sigma)
    rotation = 0.0
    if kind.endswith("aniso"):
        sigma_y = rng.uniform(*stage.blur_sigma)
        rotation = rng.uniform(-pi, pi)
    beta = 1.0
    if kind not in ("iso", "aniso"):
        low, high = stage.betap_range if kind.startswith("plateau") else stage.betag_range
        # Half of the draws on either side of 1, a plain Gaussian; so exactly 1 where that is the lower bound.
        beta = rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
    return Kernel(kind, size, sigma_x, sigma_y, rotation, beta)


def draw_final_sinc(rng: np.random.Generator) -> Kernel:
    """The last filter of all: a sinc of any size, its cutoff from pi / 3."""
    return Kernel("sinc", _draw_size(rng), cutoff=rng.uniform(pi / 3, pi))


def _draw_size(rng: np.random.Generator) -> int:
    return int(rng.choice(KERNEL_SIZES))
