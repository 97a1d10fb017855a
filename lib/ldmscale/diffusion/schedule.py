"""The forward process q(z_t | z_0) = N(sqrt(abar_t) z_0, (1 - abar_t) I) of a discrete-time diffusion model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ldmscale.errors import UserError

KINDS = ("scaled_linear", "linear")


@dataclass(frozen=True)
class Schedule:
    """Variance schedule beta_0 .. beta_{steps-1} of Ho et al. (arXiv 2006.11239); the defaults are Stable Diffusion's.

    ``steps``: number of training timesteps. ``kind``: "scaled_linear" (sqrt(beta) is linear in t: latent diffusion,
    arXiv 2112.10752) or "linear" (beta is linear in t). Raises :class:`UserError` for an unknown kind, for steps < 1
    and unless 0 < beta_start <= beta_end < 1.
    """

    steps: int = 1000
    kind: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"schedule kind is {self.kind!r}; it must be one of {', '.join(KINDS)}.")
        if self.steps < 1:
            raise UserError(f"schedule steps is {self.steps}; it must be at least 1.")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(
                f"schedule beta_start is {self.beta_start} and beta_end {self.beta_end}; "
                "they must satisfy 0 < beta_start <= beta_end < 1."
            )

    @cached_property
    def betas(self) -> np.ndarray:
        """beta_t, float64 [steps]."""
        if self.kind == "linear":
            return _frozen(np.linspace(self.beta_start, self.beta_end, self.steps))
        return _frozen(np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps) ** 2)

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """abar_t = prod_{i <= t} (1 - beta_i), float64 [steps], strictly decreasing."""
        return _frozen(np.cumprod(1.0 - self.betas))


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)  # cached and shared between callers
    return array
