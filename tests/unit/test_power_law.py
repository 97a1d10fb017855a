"""Power laws on made points whose law is known: recovery, coverage of the intervals, floors that cannot be told."""

import math

import numpy as np
import pytest
from scipy.optimize import least_squares

from ldmscale.analysis.power_law import LAWS, fit
from ldmscale.errors import UserError

X = np.geomspace(1e15, 1e19, 10)


def made(a, b, c, x=X, scatter=0.02, noise=0.01, count=200, seed=0):
    """Points of c + a (x/1e15)^-b with log-normal scatter, and replicates with noise of their own."""
    rng = np.random.default_rng(seed)
    truth = c + a * (x / 1e15) ** -b
    y = truth * np.exp(scatter * rng.normal(size=len(x)) + noise * rng.normal(size=len(x)))
    # Replicates lie above the point, as a resample's FID does.
    return y, 1.05 * y[:, None] * np.exp(noise * rng.normal(size=(len(x), count)))


@pytest.mark.parametrize("b", [0.05, 0.25, 0.9])
def test_the_exponent_of_a_power_law_is_recovered(b):
    y, reps = made(30, b, 0)
    found = fit("power", X, y, reps, 0)
    assert found.exponent.low < b < found.exponent.high < b + 0.02
    assert found.floor.value == 0 and found.determined and found.n == 10
    np.testing.assert_allclose(found.curve(X), y, rtol=0.1)
    assert found.scatter == pytest.approx(0.022, rel=0.5)


@pytest.mark.parametrize("b, c", [(0.25, 2.0), (0.25, 10.0), (0.6, 2.0)])
def test_exponent_and_floor_are_recovered(b, c):
    y, reps = made(30, b, c, scatter=0.005, noise=0.005)
    found = fit("floor", X, y, reps, 0)
    assert found.determined
    assert found.exponent.low < b < found.exponent.high
    assert found.floor.low < c < found.floor.high and found.floor.high - found.floor.low < c
    np.testing.assert_allclose(found.curve(X), y, rtol=0.05)
    assert found.r2 > 0.99


def test_points_without_error_are_fitted_exactly_in_any_order():
    y, _ = made(30, 0.6, 2, scatter=0, noise=0)
    mixed = np.random.default_rng(0).permutation(len(X))
    found = fit("floor", X[mixed], y[mixed], np.empty((len(X), 0)), 0)
    assert (found.exponent.value, found.floor.value) == (pytest.approx(0.6), pytest.approx(2))
    assert found.scale.value * 1e15**-0.6 == pytest.approx(30)
    assert found.r2 == pytest.approx(1) and found.measured == y[-1] and found.last.value == pytest.approx(y[-1])


def test_the_floored_fit_is_the_least_squares_of_scipy():
    for seed in range(6):
        y, reps = made(30, 0.5, 3, scatter=0.1, seed=seed)
        found = fit("floor", X, y, reps, 0)

        def residual(theta, y=y):
            return np.log(theta[2] + np.exp(theta[0] - theta[1] * np.log(X / 1e15))) - np.log(y)

        bounds = ([-50, 1e-3, 0], [50, 10, y.max()])
        starts = [[3, b, c * y.min()] for b in (0.3, 1) for c in (0.1, 0.9)]
        best = min(least_squares(residual, s, bounds=bounds, xtol=1e-12, ftol=1e-12).cost for s in starts)
        assert np.sum((np.log(found.curve(X)) - np.log(y)) ** 2) <= 2 * best * (1 + 1e-5)


@pytest.mark.parametrize("law, truth, n", [("power", (0.3, 0), 5), ("floor", (0.7, 4), 5), ("floor", (0.4, 4), 8),
                                           ("floor", (1.2, 10), 10)])  # fmt: skip
def test_intervals_cover_the_truth_about_as_often_as_they_say(law, truth, n):
    x, trials = np.geomspace(1e15, 1e19, n), 120
    inside = 0
    for seed in range(trials):
        y, reps = made(30, *truth, x=x, scatter=0.03, noise=0.03, count=100, seed=seed)
        found = fit(law, x, y, reps, seed)
        value, (_, low, high) = (truth[0], found.exponent) if law == "power" else (truth[1], found.floor)
        inside += low <= value <= high
    assert 0.9 <= inside / trials


def test_intervals_of_a_power_law_are_no_wider_than_needed():
    x = np.geomspace(1e15, 1e19, 6)
    exponents, widths = [], []
    for seed in range(100):
        y, reps = made(30, 0.3, 0, x=x, scatter=0.05, noise=0, count=100, seed=seed)
        found = fit("power", x, y, reps, seed)
        exponents.append(found.exponent.value)
        widths.append(found.exponent.high - found.exponent.low)
    student = 2 * 2.776  # of four degrees of freedom, both sides
    assert np.median(widths) == pytest.approx(student * np.std(exponents), rel=0.25)


def test_noise_that_all_points_share_does_not_widen_the_exponent():
    y, _ = made(30, 0.3, 0, scatter=0, noise=0)
    luck = np.exp(0.3 * np.random.default_rng(0).normal(size=200))
    found = fit("power", X, y, y[:, None] * luck, 0)
    assert found.exponent.high - found.exponent.low < 1e-6


def test_luck_that_all_points_share_does_not_hide_their_scatter():
    y, _ = made(30, 0.3, 0, scatter=0.05, noise=0)
    luck = np.exp(0.3 * np.random.default_rng(0).normal(size=200))
    shared, alone = (fit("power", X, y, reps, 0).exponent for reps in (y[:, None] * luck, np.empty((10, 0))))
    assert shared.high - shared.low == pytest.approx(alone.high - alone.low, rel=0.1)


@pytest.mark.parametrize(
    "points",
    [
        made(30, 0.3, 0),  # there is none
        made(30, 0.2, 2, x=np.geomspace(1e15, 1e16, 10)),  # far below what was measured
        made(30, 0.6, 5, x=np.geomspace(1e15, 1e18, 4), scatter=0.1),  # four points
        made(30, 0.5, 8, scatter=0.5),
    ],
)
def test_a_floor_that_the_points_do_not_fix_is_not_determined(points):
    y, reps = points
    x = np.geomspace(1e15, {10: 1e19, 4: 1e18}[len(y)], len(y)) if y[0] / y[-1] > 2 else np.geomspace(1e15, 1e16, 10)
    found = fit("floor", x, y, reps, 0)
    assert not found.determined
    assert 0 <= found.floor.low < found.floor.high


def test_a_curve_that_has_flattened_out_does_not_tell_its_floor_from_its_last_value():
    y, reps = made(30, 1.2, 10)
    found = fit("floor", X, y, reps, 0)
    assert not found.determined and found.floor.low < y[-1] < found.floor.high * 1.01
    assert found.floor.high - found.floor.low < 1


def test_a_curve_that_rises_has_no_floor():
    found = fit("floor", X, np.geomspace(1, 3, 10) * made(1, 0, 0)[0], np.empty((10, 0)), 0)
    assert not found.determined
    assert fit("power", X, np.geomspace(1, 3, 10), np.empty((10, 0)), 0).exponent.high < 0


@pytest.mark.parametrize("law, least", [("power", 3), ("floor", 4)])
def test_too_few_points_give_no_fit(law, least):
    y, reps = made(30, 0.3, 1)
    for n in range(least):
        assert fit(law, X[:n], y[:n], reps[:n], 0) is None
    assert fit(law, np.ones(10), y, reps, 0) is None
    just = fit(law, X[:least], y[:least], reps[:least], 0)
    assert just.n == least and just.last is None  # nothing is left to predict from
    assert fit(law, X[: least + 1], y[: least + 1], reps[: least + 1], 0).last is not None


def test_the_largest_is_predicted_from_the_others():
    y, reps = made(30, 0.3, 0)
    y, reps = y * np.r_[np.ones(9), 2.0], reps * np.r_[np.ones(9), 2.0][:, None]
    found = fit("power", X, y, reps, 0)
    assert found.last.low < y[-1] / 2 < found.last.high < found.measured == y[-1]
    inside = 0
    for seed in range(100):
        y, reps = made(30, 0.3, 0, scatter=0.1, noise=0.05, seed=seed)
        found = fit("power", X, y, reps, 0)
        inside += found.last.low < found.measured < found.last.high
    assert inside >= 88


def test_values_without_a_logarithm_are_refused():
    y, reps = made(30, 0.3, 0)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="above zero"):
            fit("power", X, np.r_[y[:-1], bad], reps, 0)
    assert set(LAWS) == {"power", "floor"}
