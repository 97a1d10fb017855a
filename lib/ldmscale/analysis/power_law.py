"""Power laws y = a x^-b and y = c + a x^-b through a few measured points, with intervals.

Both are fitted by least squares in log y: distances such as FID and losses err in proportion to their size, and log
residuals are symmetric where relative ones punish a curve above the points more than one below.

An interval covers two things: the noise of the points (their bootstrap replicates) and their scatter about the curve
beyond that noise, which is what a law that does not hold exactly and the luck of one training run leave. The scatter is
drawn from its posterior under a flat prior (residual sum of squares over a chi-square of n - p), so that few points
give wide intervals; without replicates' noise the exponent's interval is then Student's. A floor is *determined* only
if its interval lies clear of zero and of the last value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ldmscale.analysis.intervals import centred
from ldmscale.errors import UserError

LAWS = {"power": 2, "floor": 3}  # y = a x^-b; y = c + a x^-b: their parameters
DRAWS = 200  # of the scatter, where points have no replicates
MARGIN = 0.01  # a floor this share of the last value from it, or from zero, touches it
EXPONENTS = (1e-3, 10.0)  # that a floored law is looked for within
TAILS = (0.025, 0.975)
_STARTS = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95, 0.99)  # floors, in units of the least value, that the search begins at
_ITERATIONS = 60
_WIDEST = 5.0  # scatter of log y: a factor of 150, beyond which nothing is known either way


class Estimate(NamedTuple):
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """``law`` through ``n`` points: y = ``floor`` + ``scale`` x^-``exponent``.

    ``determined`` is false where the points do not fix the floor; its value, the scale and the exponent then mean
    nothing, and only the floor's interval says what is known. ``r2`` and ``scatter`` (the standard deviation of the
    residuals) are of log y. ``last`` predicts the y of the largest x from the other points (None where too few are
    left); ``measured`` is that y.
    """

    law: str
    n: int
    scale: Estimate
    exponent: Estimate
    floor: Estimate
    determined: bool
    r2: float
    scatter: float
    last: Estimate | None
    measured: float

    def curve(self, x: np.ndarray) -> np.ndarray:
        return self.floor.value + self.scale.value * np.asarray(x, float) ** -self.exponent.value


def fit(law: str, x: Sequence[float], y: Sequence[float], replicates: np.ndarray, seed: int) -> Fit | None:
    """Fit ``law`` (one of :data:`LAWS`) to points x [N], y [N] with paired replicates [N,R] of y, R may be 0.

    None where there are too few different x to tell how far the points scatter: 3 for a power law, 4 with a floor.
    Raises UserError for values that have no logarithm.
    """
    order = np.argsort(np.asarray(x, np.float64), kind="stable")
    x, y, reps = np.asarray(x, np.float64)[order], np.asarray(y, np.float64)[order], np.asarray(replicates)[order]
    if not (np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)).all():
        raise UserError("a power law needs finite values above zero")
    if len(np.unique(x)) <= LAWS[law]:
        return None
    draws = _draws(law, x, y, reps, seed)
    theta, lx = _solve(law, x, np.log(y)[None])[0], np.log(x)
    residual = np.log(y) - _log_curve(theta, lx)
    total = np.sum((np.log(y) - np.log(y).mean()) ** 2)
    solved = _solve(law, x, draws)
    low, high = np.quantile(solved, TAILS, axis=0)
    scale, exponent, floor = (Estimate(*map(float, v)) for v in zip(theta, low, high, strict=True))
    bounded = np.mean((solved[:, 1] <= EXPONENTS[0] * 1.01) | (solved[:, 1] >= EXPONENTS[1] * 0.99))
    clear = MARGIN * y[-1] < floor.low and floor.high < (1 - MARGIN) * y[-1]
    return Fit(
        law, len(x), scale, exponent, floor,
        determined=law == "power" or bool(clear and bounded <= TAILS[0]),
        r2=float(1 - np.sum(residual**2) / total) if total > 0 else float("nan"),
        scatter=float(np.sqrt(np.sum(residual**2) / (len(x) - LAWS[law]))),
        last=_last(law, x, y, reps, seed),
        measured=float(y[-1]),
    )  # fmt: skip


def _last(law: str, x: np.ndarray, y: np.ndarray, reps: np.ndarray, seed: int) -> Estimate | None:
    """The value at the largest x, predicted from the others; the interval is that of a measurement there."""
    others = x < x[-1]
    if len(np.unique(x[others])) <= LAWS[law]:
        return None
    at = np.log(x[-1:])
    theta = _solve(law, x[others], np.log(y[others])[None])[0]
    draws, extra = _draws(law, x[others], y[others], reps[others], seed, more=1)
    solved = _solve(law, x[others], draws)
    predicted = np.array([_log_curve(t, at)[0] for t in solved]) + extra[:, 0]
    if reps.shape[1]:
        own = np.log(np.maximum(centred(y[-1:], reps[-1:])[0], np.finfo(float).tiny))
        predicted += own - own.mean()
    return Estimate(float(np.exp(_log_curve(theta, at)[0])), *map(float, np.exp(np.quantile(predicted, TAILS))))


def _draws(law: str, x: np.ndarray, y: np.ndarray, reps: np.ndarray, seed: int, more: int = 0):
    """log y [R,N] as it might have come out; with ``more``, also the scatter [R, more] of further points."""
    rng = np.random.default_rng(seed)
    lx, ly, free = np.log(x), np.log(y), len(x) - LAWS[law]
    if reps.shape[1]:
        noisy = np.log(np.maximum(centred(y, reps), 1e-3 * y[:, None])).T
    else:
        noisy = np.tile(ly, (DRAWS, 1))
    # What of the replicates' noise shows as residuals: noise that all points share moves the curve as a whole.
    design = np.stack([np.ones_like(lx), lx], axis=1)
    off = noisy - ly
    off = off - off @ np.linalg.pinv(design).T @ design.T
    noise = np.mean(np.sum(off**2, axis=1)) / max(1, len(x) - 2)
    residual = ly - _log_curve(_solve(law, x, ly[None])[0], lx)
    variance = np.sum(residual**2) / rng.chisquare(free, len(noisy))
    spread = np.sqrt(np.clip(variance - noise, 0.0, _WIDEST**2))[:, None]
    drawn = noisy + spread * rng.standard_normal(noisy.shape)
    return (drawn, spread * rng.standard_normal((len(noisy), more))) if more else drawn


def _log_curve(theta: np.ndarray, lx: np.ndarray) -> np.ndarray:
    """log(c + a x^-b) for theta = (a, b, c)."""
    a, b, c = theta
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log(a) - b * lx, np.log(c))


def _solve(law: str, x: np.ndarray, ly: np.ndarray) -> np.ndarray:
    """(a, b, c) [R,3] of the least squares in each row of ly [R,N]."""
    lx = np.log(x)
    centre = lx.mean()
    u = lx - centre
    b = -(ly @ u) / (u @ u)
    k = ly.mean(axis=1)
    theta = np.stack([k, b, np.zeros_like(b)], axis=1)
    if law == "floor":
        theta = _floored(u, ly, theta)
    theta[:, 0] = np.exp(theta[:, 0] + theta[:, 1] * centre)
    return theta


def _floored(u: np.ndarray, ly: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """(k, b, c) [R,3] of y = c + exp(k - b u): Levenberg-Marquardt in (k, log b, log c) from the best of several
    floors, kept where it beats the law without one, ``plain``."""
    least = ly.min(axis=1)
    bounds = np.log(EXPONENTS)
    starts = []
    for share in _STARTS:
        rest = least[:, None] + np.log(np.exp(ly - least[:, None]) - share)
        b = np.clip(-(rest @ u) / (u @ u), *EXPONENTS)
        starts.append(np.stack([rest.mean(axis=1), np.log(b), least + np.log(share)], axis=1))
    starts = np.stack(starts)  # [starts, R, 3]
    costs = np.stack([np.sum(_residuals(theta, u, ly)[0] ** 2, axis=1) for theta in starts])
    theta = starts[costs.argmin(axis=0), np.arange(len(ly))]
    residual, jacobian = _residuals(theta, u, ly)
    cost, damping = np.sum(residual**2, axis=1), np.full(len(ly), 1e-2)
    for _ in range(_ITERATIONS):
        normal = np.einsum("rni,rnj->rij", jacobian, jacobian)
        normal = normal + damping[:, None, None] * (normal * np.eye(3) + 1e-9 * np.eye(3))
        step = np.linalg.solve(normal, np.einsum("rni,rn->ri", jacobian, residual)[..., None])[..., 0]
        trial = theta - np.clip(step, -2.0, 2.0)
        trial[:, 1] = np.clip(trial[:, 1], *bounds)
        trial[:, 2] = np.clip(trial[:, 2], least - 20.0, ly.max(axis=1))  # noisy points may lie under their floor
        new_residual, new_jacobian = _residuals(trial, u, ly)
        new_cost = np.sum(new_residual**2, axis=1)
        better = new_cost < cost
        theta = np.where(better[:, None], trial, theta)
        residual = np.where(better[:, None], new_residual, residual)
        jacobian = np.where(better[:, None, None], new_jacobian, jacobian)
        cost = np.where(better, new_cost, cost)
        damping = np.clip(np.where(better, damping / 4, damping * 4), 1e-9, 1e9)
    found = np.stack([theta[:, 0], np.exp(theta[:, 1]), np.exp(theta[:, 2])], axis=1)
    without = np.sum((plain[:, :1] - plain[:, 1:2] * u - ly) ** 2, axis=1)
    return np.where((cost < without)[:, None], found, plain)


def _residuals(theta: np.ndarray, u: np.ndarray, ly: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log(curve) - ly [R,N] and its derivatives [R,N,3] by (k, log b, log c)."""
    k, b, floor = theta[:, :1], np.exp(theta[:, 1:2]), theta[:, 2:]
    power = k - b * u
    curve = np.logaddexp(power, floor)
    share = np.exp(power - curve)
    return curve - ly, np.stack([share, -share * b * u, 1 - share], axis=2)
