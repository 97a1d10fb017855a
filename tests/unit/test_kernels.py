"""CMMD and KID against their definitions written out, and KID against clean-fid's own function."""

import numpy as np
import pytest

from ldmscale.errors import UserError
from ldmscale.metrics import kernels
from ldmscale.metrics.bootstrap import interval, resample_counts
from ldmscale.metrics.kernels import CMMD, KID
from ldmscale.metrics.torch_guard import guard_torchvision


def features(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def plain_cmmd(x, y):
    """The definition, pair by pair: unit embeddings, every pair counts, those of an image with itself too."""
    x, y = (a / np.sqrt((a**2).sum(axis=1, keepdims=True)) for a in (x, y))

    def mean(a, b):
        return np.mean([[np.exp(-((p - q) ** 2).sum() / (2 * 10**2)) for q in b] for p in a])

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


def plain_kid(x, y):
    """The definition, pair by pair: an image makes no pair with itself."""

    def k(p, q):
        return (sum(p * q) / len(p) + 1) ** 3

    def among(a):
        return np.mean([k(p, q) for i, p in enumerate(a) for j, q in enumerate(a) if i != j])

    return among(x) + among(y) - 2 * np.mean([[k(p, q) for q in y] for p in x])


DEFINITIONS = [(CMMD, plain_cmmd), (KID, plain_kid)]
SHAPES = [(20, 13, 6), (5, 30, 40), (2, 2, 3), (37, 37, 1)]


@pytest.mark.parametrize(("metric", "definition"), DEFINITIONS)
@pytest.mark.parametrize(("n", "m", "d"), SHAPES)
@pytest.mark.parametrize("block", [7, 1024])
def test_a_discrepancy_is_its_definition(monkeypatch, metric, definition, n, m, d, block):
    monkeypatch.setattr(kernels, "BLOCK", block)
    x, y = features(n, d, 0), features(m, d, 1, 0.3)
    found = metric(y)(x)
    assert isinstance(found, float)
    assert found == pytest.approx(definition(x, y), rel=1e-9, abs=1e-10)


@pytest.mark.parametrize(("metric", "definition"), DEFINITIONS)
@pytest.mark.parametrize("block", [7, 1024])
def test_resamples_are_sets_of_images(monkeypatch, metric, definition, block):
    monkeypatch.setattr(kernels, "BLOCK", block)
    x, y = features(19, 5, 0), features(12, 5, 1)
    counts = resample_counts(19, 4, seed=3)
    for value, drawn in zip(metric(y).of_resamples(x, counts), counts, strict=True):
        assert value == pytest.approx(definition(np.repeat(x, drawn, axis=0), y), rel=1e-9, abs=1e-10)


def test_kid_is_cleanfids_where_its_subsets_are_everything():
    """clean-fid draws subsets of both; of as many images as there are, each is all of them."""
    guard_torchvision()
    from cleanfid.fid import kernel_distance

    x, y = features(60, 16, 0), features(60, 16, 1, 0.1)
    assert KID(y)(x) == pytest.approx(kernel_distance(x, y, num_subsets=2, max_subset_size=60), rel=1e-9)
    np.random.seed(0)  # of fewer, they scatter about it
    draws = np.array([kernel_distance(x, y, num_subsets=1, max_subset_size=30) for _ in range(300)])
    assert abs(draws.mean() - KID(y)(x)) < 4 * draws.std() / np.sqrt(300)


def test_kid_is_unbiased_and_cmmd_is_not():
    """Over sets of one distribution: KID's mean is 0, the minimum-variance estimate's lies above it."""
    pairs = [features(2 * 30, 8, seed).reshape(2, 30, 8) for seed in range(200)]
    kid, cmmd = (np.array([metric(y)(x) for x, y in pairs]) for metric in (KID, CMMD))
    assert abs(kid.mean()) < 3 * kid.std() / np.sqrt(200) and kid.min() < 0
    assert cmmd.min() > 0 and cmmd.mean() > 10 * cmmd.std() / np.sqrt(200)


def test_more_differs_more():
    y = features(200, 8, 1, 1.0)
    for metric in (CMMD, KID):
        near, far = (metric(y)(features(200, 8, 0, shift)) for shift in (0.9, 0.0))
        assert 0 < 5 * near < far


def test_the_same_images_twice():
    x = features(40, 6, 0)
    assert CMMD(x)(x) == pytest.approx(0, abs=1e-10)
    assert CMMD(x)(3 * x[::-1]) == pytest.approx(0, abs=1e-10)  # neither order nor length counts
    assert KID(x)(x) < 0  # unbiased: the pairs of an image with itself, the likest, count across alone
    constant = np.full((5, 4), 2.0)
    assert KID(constant)(constant) == CMMD(constant)(constant) == 0


def test_one_image_has_a_cmmd_and_no_kid():
    x, y = features(1, 4, 0), features(9, 4, 1)
    assert CMMD(y)(x) == pytest.approx(plain_cmmd(x, y))
    with pytest.raises(UserError, match=r"\[1, 4\].*at least 2"):
        KID(y)(x)
    with pytest.raises(UserError, match=r"\[1, 4\].*at least 2"):
        KID(x)


@pytest.mark.parametrize("metric", [CMMD, KID])
def test_a_discrepancy_refuses(metric):
    y = features(9, 4, 1)
    with pytest.raises(UserError, match="5 dimensions and the real ones 4"):
        metric(y)(features(9, 5, 0))
    for bad in (np.nan, np.inf):
        with pytest.raises(UserError, match="finite"):
            metric(y)(np.where(np.arange(9)[:, None] == 2, bad, y))
    with pytest.raises(UserError, match=r"\[4\]"):
        metric(y[0])


def test_cmmd_names_an_embedding_without_direction():
    y = features(9, 4, 1)
    with pytest.raises(UserError, match="CLIP embeddings of image 2 are zero"):
        CMMD(y)(np.where(np.arange(9)[:, None] == 2, 0.0, y))


@pytest.mark.parametrize(("metric", "about"), [(KID, 0.5), (CMMD, 0.5)])
def test_intervals_cover_the_truth(metric, about):
    """Nominal 95 % over 200 sets against fixed real images; the truth is the mean over many sets.

    CMMD's point has a bias of order 1/N (an interval around the point does not know it), so its truth is the mean of
    sets of the same size.
    """
    y = features(60, 4, 1, about)
    real = metric(y)
    sets = [features(60, 4, 10 + seed) for seed in range(200)]
    points = [real(x) for x in sets]
    truth = np.mean([real(features(60, 4, 1000 + seed)) for seed in range(600)])
    hits = 0
    for x, point in zip(sets, points, strict=True):
        low, high = interval(point, real.of_resamples(x, resample_counts(60, 200, 0)))
        hits += low <= truth <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_memory_stays_bounded(monkeypatch):
    """No product of a kernel is larger than a block."""
    sizes = []
    monkeypatch.setattr(kernels, "BLOCK", 16)

    def kernel(x, y):
        sizes.append(len(x) * len(y))
        return kernels.cubic(x, y)

    metric = kernels.Discrepancy(features(100, 3, 0), kernel, unbiased=True)
    metric(features(90, 3, 1))
    assert max(sizes) <= 16 * 16
