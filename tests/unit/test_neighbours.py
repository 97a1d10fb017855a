"""Precision, recall, density and coverage against their definitions written out, and on sets where they are known."""

import numpy as np
import pytest

from ldmscale.errors import UserError
from ldmscale.metrics import neighbours
from ldmscale.metrics.neighbours import Neighbourhoods


def features(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def plain(x, y, k):
    """Drawn x, real y, k neighbours: (precision, recall, density, coverage), distance by distance."""

    def distance(p, q):
        return np.sqrt(((p - q) ** 2).sum())

    def radii(z):
        return [sorted(distance(p, q) for j, q in enumerate(z) if j != i)[k - 1] for i, p in enumerate(z)]

    of_real, of_drawn = radii(y), radii(x)
    inside = np.array([[distance(p, q) < r for q, r in zip(y, of_real, strict=True)] for p in x])  # [N,M]
    back = np.array([[distance(p, q) < r for p, r in zip(x, of_drawn, strict=True)] for q in y])  # [M,N]
    return inside.any(1).mean(), back.any(1).mean(), inside.sum(1).mean() / k, inside.any(0).mean()


@pytest.mark.parametrize(("n", "m", "d"), [(30, 30, 2), (25, 40, 5), (40, 12, 30), (4, 6, 3), (50, 9, 1)])
@pytest.mark.parametrize("block", [11, 2**22])
@pytest.mark.parametrize("grid", [False, True])
def test_the_four_are_their_definitions(monkeypatch, n, m, d, block, grid):
    """On features far from the origin, whose distances are small against their lengths, and on a grid, with ties."""
    monkeypatch.setattr(neighbours, "BLOCK", block)
    x, y = features(n, d, 0, 100.4), features(m, d, 1, 100.0)
    if grid:
        x, y = x.round(), y.round()
    found = Neighbourhoods(y).of(x)
    precision, recall, *_ = plain(x, y, 3)
    density, coverage = plain(x, y, 5)[2:] if n > 5 else (None, None)
    assert found.precise.shape == found.dense.shape == (n,) and found.recalled.shape == found.covered.shape == (m,)
    assert found.precise.mean() == precision and found.recalled.mean() == recall
    if n > 5:
        assert found.dense.mean() == pytest.approx(density, rel=1e-12) and found.covered.mean() == coverage


def means(x, y):
    found = Neighbourhoods(y).of(x)
    return tuple(float(values.mean()) for values in (found.precise, found.recalled, found.dense, found.covered))


def test_the_same_images_are_precise_varied_and_as_dense():
    y = features(50, 4, 0)
    assert means(y[::-1], y) == pytest.approx((1, 1, 1, 1))


def test_what_lies_elsewhere_has_nothing():
    assert means(features(50, 4, 0, 100.0), features(50, 4, 1)) == (0, 0, 0, 0)


def test_a_collapsed_generator_is_precise_and_not_varied():
    """One real image over and over."""
    y = features(60, 4, 0)
    precision, recall, density, coverage = means(np.repeat(y[:1], 40, axis=0), y)
    assert precision == 1 and density >= 1
    assert recall == 0 and coverage < 0.3


def test_half_of_the_modes():
    y = np.concatenate([features(40, 3, 0), features(40, 3, 1, 50.0)])
    x = features(80, 3, 2)
    precision, recall, density, coverage = means(x, y)
    assert precision > 0.8 and recall == pytest.approx(0.5, abs=0.1)
    assert density == pytest.approx(1, abs=0.2) and coverage == pytest.approx(0.5, abs=0.05)


def test_an_outlier_widens_precision_more_than_density():
    y = np.concatenate([features(60, 2, 0), [[40.0, 40.0]]])
    x = features(60, 2, 1, 15.0)
    found = Neighbourhoods(y).of(x)
    assert found.precise.mean() == 1 and found.dense.mean() < 0.25


def test_neighbourhoods_refuse():
    y = features(9, 4, 0)
    with pytest.raises(UserError, match=r"\[5, 4\].*at least 6"):
        Neighbourhoods(y[:5])
    for few in (y[:3], y[:1], y[:0], y[0]):
        with pytest.raises(UserError, match="at least 4"):
            Neighbourhoods(y).of(few)
    with pytest.raises(UserError, match="5 dimensions and the real ones 4"):
        Neighbourhoods(y).of(features(9, 5, 0))
    with pytest.raises(UserError, match="finite"):
        Neighbourhoods(y).of(np.where(np.arange(9)[:, None] == 2, np.nan, y))


def test_real_images_that_are_all_the_same_are_refused():
    """Rounding leaves something of the distance of equal features, which is no neighbourhood."""
    for distinct in (1, 2):
        with pytest.raises(UserError, match="real images that differ"):
            Neighbourhoods(np.repeat(features(distinct, 700, 0, 30.0), 8, axis=0))
