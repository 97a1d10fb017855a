"""Samplers as coefficient tables.

One step of every sampler here is the same affine update, with coefficients known before sampling starts:

    z' = a z + b x0 + c x0_prev + s noise,      x0 = (z - sigma eps(z, t)) / alpha

where x0_prev is the x0 of the step before. The host computes the table in float64; the device runs one loop over it
(see :mod:`ldmscale.diffusion.sampling`). A new sampler is a function that returns a :class:`StepTable`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ldmscale.diffusion.schedule import Schedule
from ldmscale.errors import UserError

CODI_STRIDE = 20  # timesteps between the points of the grid that CoDi is taught on: 50 of 1000


@dataclass(frozen=True)
class StepTable:
    """Coefficients of S sampling steps, first (noisiest) step first; ``len(table)`` is the network evaluations S.

    timesteps: int32 [S]. a, b, c, s: float64 [S], of z' = a z + b x0 + c x0_prev + s noise.
    alpha, sigma: float64 [S], sqrt(abar_t) and sqrt(1 - abar_t) at the timesteps.
    """

    timesteps: np.ndarray
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    s: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)


def ddim(schedule: Schedule, steps: int, spacing: str, eta: float = 0.0) -> StepTable:
    """DDIM (Song et al., arXiv 2010.02502, eq. 12 and 16); eta = 0 is deterministic.

    As in Stable Diffusion the step from t always goes to t - T // S (T training timesteps), and below zero to abar_0,
    not to abar = 1. With "leading" spacing that is the next timestep of the table; with "trailing" it is so only where
    S divides T, and otherwise off by less than one timestep (kept: it is what the field's DDIM does).
    """
    timesteps = _timesteps(schedule, steps, spacing)
    now = schedule.alphas_cumprod[timesteps]
    after = schedule.alphas_cumprod[np.maximum(timesteps - schedule.steps // steps, 0)]
    s = eta * np.sqrt((1 - after) / (1 - now) * (1 - now / after))
    direction = np.sqrt(np.maximum(1 - after - s**2, 0.0))  # weight of eps in z'
    a = direction / np.sqrt(1 - now)
    b = np.sqrt(after) - direction * np.sqrt(now / (1 - now))
    return _table(timesteps, now, a, b, np.zeros(steps), s)


def ddpm(schedule: Schedule, steps: int, spacing: str, eta: float = 0.0) -> StepTable:
    """Ancestral sampling on a subset of the timesteps (arXiv 2006.11239, eq. 7; respaced as in arXiv 2102.09672).

    The noise has the posterior's own variance ("fixed small"); the last step goes to abar = 1 and adds none.
    """
    timesteps = _timesteps(schedule, steps, spacing)
    now = schedule.alphas_cumprod[timesteps]
    after = np.append(now[1:], 1.0)
    ratio = now / after  # alpha of the respaced chain
    a = np.sqrt(ratio) * (1 - after) / (1 - now)
    b = np.sqrt(after) * (1 - ratio) / (1 - now)
    s = np.sqrt((1 - after) / (1 - now) * (1 - ratio))
    return _table(timesteps, now, a, b, np.zeros(steps), s)


def dpmpp2m(schedule: Schedule, steps: int, spacing: str, eta: float = 0.0) -> StepTable:
    """DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, algorithm 2), midpoint form, down to sigma = 0.

    The first step has no history and the last one goes to infinite log-SNR: both are first order.
    """
    timesteps = _timesteps(schedule, steps, spacing)
    now = schedule.alphas_cumprod[timesteps]
    alpha = np.sqrt(np.append(now, 1.0))
    sigma = np.sqrt(np.append(1 - now, 0.0))
    log_snr = np.log(alpha[:-1]) - np.log(sigma[:-1])
    h = np.append(np.diff(log_snr), np.inf)
    a = sigma[1:] / sigma[:-1]
    first_order = -alpha[1:] * np.expm1(-h)
    correction = np.zeros(steps)  # 1 / (2 r) with r = h_previous / h
    correction[1:-1] = 0.5 * h[1:-1] / h[:-2]
    return _table(timesteps, now, a, first_order * (1 + correction), -first_order * correction, np.zeros(steps))


def codi(schedule: Schedule, steps: int, spacing: str, eta: float = 0.0, stride: int = CODI_STRIDE) -> StepTable:
    """Deterministic steps of a conditionally distilled network (arXiv 2310.01407), on the timesteps it was taught at.

    These are the grid 0, stride, 2 stride, ... of T // stride points. S of them are used, from the last one down by
    ceil(T // stride / S) points a step, as the authors' code does, and the last step goes to abar_0: of 50 points S = 4
    takes t = 980, 720, 460 and 200. Where that would leave the grid, or reach t = 0, from where no step leads further,
    the S timesteps are spread evenly down to t = stride instead (to 0 if S is all of them).
    """
    points = schedule.steps // stride
    lowest = max(points - 1 - (steps - 1) * -(-points // steps), min(1, points - steps))
    timesteps = (stride * np.round(np.linspace(points - 1, lowest, steps))).astype(np.int32)
    now = schedule.alphas_cumprod[timesteps]
    after = schedule.alphas_cumprod[np.append(timesteps[1:], 0)]
    a = np.sqrt((1 - after) / (1 - now))
    return _table(timesteps, now, a, np.sqrt(after) - a * np.sqrt(now), np.zeros(steps), np.zeros(steps))


SAMPLERS: dict[str, Callable[..., StepTable]] = {"ddim": ddim, "ddpm": ddpm, "dpmpp2m": dpmpp2m, "codi": codi}

# What each sampler accepts. DDIM on a linspace grid would step to timesteps that the grid does not hold; DPM-Solver++
# on a leading grid would start far below t = T - 1 (t = 951 at 50 steps), with noise that z_T does not have.
SPACINGS: dict[str, tuple[str, ...]] = {
    "ddim": ("leading", "trailing"),
    "ddpm": ("leading", "trailing"),
    "dpmpp2m": ("linspace", "trailing"),
    "codi": ("grid",),
}
DEFAULT_SPACING: dict[str, str] = {name: accepted[0] for name, accepted in SPACINGS.items()}


def step_table(
    sampler: str,
    schedule: Schedule,
    steps: int,
    spacing: str | None = None,
    eta: float = 0.0,
    stride: int = CODI_STRIDE,
) -> StepTable:
    """The table of ``sampler`` with exactly ``steps`` network evaluations.

    spacing: how the timesteps are chosen among the schedule's T (arXiv 2305.08891, table 2), None for the sampler's
    usual one: "leading" 1 + i (T // S), Stable Diffusion's; "trailing" T - 1 downwards in strides of T / S; "linspace"
    S + 1 points from T - 1 to 0 without the last; "grid" CoDi's alone. eta: noise of DDIM, 0 to 1. stride: timesteps
    between the points of CoDi's grid, as it was distilled; no other sampler has one.

    Raises :class:`UserError` for an unknown sampler, a spacing that the sampler cannot use, steps that the schedule
    cannot give, an eta outside 0..1 or for a sampler without one, and a stride that leaves CoDi fewer than ``steps``.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"sampler is {sampler!r}; it must be one of {', '.join(SAMPLERS)}.")
    spacing = DEFAULT_SPACING[sampler] if spacing is None else spacing
    if spacing not in SPACINGS[sampler]:
        raise UserError(
            f"spacing is {spacing!r} for sampler {sampler!r}; it must be one of {', '.join(SPACINGS[sampler])}."
        )
    if isinstance(steps, bool) or steps != int(steps) or not 1 <= steps <= schedule.steps:
        raise UserError(f"steps is {steps}; it must be a whole number from 1 to {schedule.steps}.")
    if not 0 <= eta <= 1:
        raise UserError(f"eta is {eta}; it must be from 0 (deterministic) to 1.")
    if eta and sampler != "ddim":
        raise UserError(f"eta is {eta} for sampler {sampler!r}; only 'ddim' has an eta, elsewhere it must be 0.")
    if sampler != "codi":
        return SAMPLERS[sampler](schedule, int(steps), spacing, float(eta))
    if not 1 <= stride <= schedule.steps // steps:
        raise UserError(
            f"stride is {stride} and steps {steps} for sampler 'codi'; every stride-th of {schedule.steps} training "
            f"timesteps can be a step, so stride must be from 1 to {schedule.steps // steps}."
        )
    return codi(schedule, int(steps), spacing, stride=stride)


def _timesteps(schedule: Schedule, steps: int, spacing: str) -> np.ndarray:
    """Strictly decreasing timesteps, int32 [steps]; :class:`UserError` where the spacing cannot give that many."""
    total = schedule.steps
    if spacing == "leading":
        timesteps = np.arange(steps)[::-1] * (total // steps) + 1
    elif spacing == "trailing":
        # diffusers' expression, for its rounding of ties; without the cut it has a step too many at some steps (61).
        timesteps = np.round(np.arange(total, 0, -total / steps)[:steps]) - 1
    else:
        timesteps = np.round(np.linspace(0, total - 1, steps + 1))[:0:-1]
    if timesteps[0] > total - 1 or np.any(np.diff(timesteps) >= 0):
        raise UserError(
            f"steps is {steps} with spacing {spacing!r}; of {total} training timesteps it can use at most {total - 1}."
        )
    return timesteps.astype(np.int32)


def _table(timesteps, abar, a, b, c, s) -> StepTable:
    return StepTable(timesteps, a, b, c, s, alpha=np.sqrt(abar), sigma=np.sqrt(1 - abar))
