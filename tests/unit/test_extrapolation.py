"""FID-infinity against its definition, and on Gaussians whose distance is known."""

import numpy as np
import pytest
from scipy.stats import linregress

from ldmscale.errors import UserError
from ldmscale.metrics import extrapolation
from ldmscale.metrics.extrapolation import fid_infinity, subsets
from ldmscale.metrics.frechet import Reference, frechet_distance, gaussian


def features(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) * np.geomspace(1, 0.1, d) + shift


@pytest.mark.parametrize(("n", "least"), [(64, 5000), (64, 10), (9, 5000)])
def test_it_is_the_intercept_of_fid_over_one_over_n(monkeypatch, n, least):
    monkeypatch.setattr(extrapolation, "FEWEST", least)
    x, real = features(n, 6, 0), features(40, 6, 1, 0.2)
    sizes = sorted(set(np.linspace(min(least, n // 2), n, 15).astype(int)))
    order = np.random.default_rng(3).permutation(n)
    points = []
    for size in sizes:
        parts = [x[order[i * size : (i + 1) * size]] for i in range(n // size)]
        points.append(np.mean([frechet_distance(*gaussian(part), *gaussian(real)) for part in parts]))
    expected = linregress([1 / size for size in sizes], points).intercept
    assert fid_infinity(x, Reference(real), 3) == pytest.approx(expected, rel=1e-7)


def test_subsets_are_disjoint_and_as_many_as_there_are():
    x = np.arange(11)[:, None]
    assert [part[:, 0].tolist() for part in subsets(x, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(subsets(x, 11)) == 1 and len(subsets(x, 6)) == 1


def test_it_takes_most_of_the_bias_away():
    """Drawn and real are of one distribution; the reference is large, so FID would be all but 0."""
    reference = Reference(features(20_000, 16, 99))
    found = np.array(
        [(fid_infinity(x := features(200, 16, s), reference, 0), reference.distance(x)) for s in range(20)]
    )
    extrapolated, plain = found.mean(axis=0)
    assert plain > 0.05 and abs(extrapolated) < 0.2 * plain


def test_the_seed_and_the_number_alone_say_which_images_go_together():
    x, reference = features(50, 4, 0), Reference(features(60, 4, 1))
    assert fid_infinity(x, reference, 1) == fid_infinity(x, reference, 1) != fid_infinity(x, reference, 2)
    shift = np.full(4, 7.0)  # of both alike: the distances of the same subsets
    moved = fid_infinity(x + shift, Reference(features(60, 4, 1) + shift), 1)
    assert moved == pytest.approx(fid_infinity(x, reference, 1), rel=1e-6)


def test_it_refuses_sets_that_have_no_halves():
    reference = Reference(features(30, 4, 1))
    assert np.isfinite(fid_infinity(features(4, 4, 0), reference, 0))
    with pytest.raises(UserError, match="3 images.*at least 4"):
        fid_infinity(features(3, 4, 0), reference, 0)
    with pytest.raises(UserError, match="5 dimensions and the reference 4"):
        fid_infinity(features(9, 5, 0), reference, 0)
