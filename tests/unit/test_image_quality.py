"""PSNR and SSIM of luma, and Inception score: against their formulas, worked out another way, and known answers."""

import math

import numpy as np
import pytest
from scipy.stats import entropy

from ldmscale.errors import UserError
from ldmscale.metrics.image_quality import inception_score, luma, psnr_y, ssim_y


def pair(height=20, width=17, noise=12, seed=0):
    """A smooth picture and a noisy copy, uint8 [height,width,3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = 128 + 80 * np.stack([np.sin(x / 4), np.cos(y / 5), np.sin((x + y) / 6)], axis=-1)
    noisy = image + rng.normal(scale=noise, size=image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), np.clip(noisy, 0, 255).astype(np.uint8)


# ---------------------------------------------------------------- luma, PSNR


def test_luma_of_known_colours():
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_allclose(luma(colours)[0], [16, 235, 81.481, 144.553, 40.966])


def test_psnr_by_hand():
    # A grey difference of 10 is one of 10 x 219 / 255 in luma.
    black, grey = np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 10, np.uint8)
    expected = 20 * math.log10(255 / (10 * 219 / 255))
    np.testing.assert_allclose(psnr_y(black, grey), [expected])
    # In one of 64 pixels only: the mean squared error is a 64th.
    spot = black.copy()
    spot[0, 3, 5] = 10
    np.testing.assert_allclose(psnr_y(black, spot), [expected + 10 * math.log10(64)])
    # Blue alone weighs 24.966 of 219.
    blue = black.copy()
    blue[..., 2] = 10
    np.testing.assert_allclose(psnr_y(black, blue), [20 * math.log10(255 / (10 * 24.966 / 255))])


def test_psnr_is_per_image_and_infinite_for_equal_ones():
    a, b = pair()
    out = psnr_y(np.stack([a, a, b]), np.stack([b, a, a]))
    assert out.dtype == np.float64 and out.shape == (3,)
    assert out[1] == np.inf and out[0] == out[2] and 20 < out[0] < 40


# ---------------------------------------------------------------- SSIM


def ssim_by_windows(a, b):
    """Equation 13 window by window, moments about each window's own mean."""
    y1, y2 = (16 + (65.481 * x[..., 0] + 128.553 * x[..., 1] + 24.966 * x[..., 2]) / 255 for x in (a / 1.0, b / 1.0))
    dy, dx = np.mgrid[-5:6, -5:6]
    window = np.exp(-(dx**2 + dy**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for top in range(y1.shape[0] - 10):
        for left in range(y1.shape[1] - 10):
            p, q = (y[top : top + 11, left : left + 11] for y in (y1, y2))
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            c1, c2 = 2.55**2, 7.65**2
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return np.mean(values)


@pytest.mark.parametrize("height, width, noise", [(20, 17, 12), (11, 11, 40), (13, 30, 3)])
def test_ssim_is_its_formula(height, width, noise):
    a, b = pair(height, width, noise)
    out = ssim_y(a[None], b[None])
    assert out.dtype == np.float64
    np.testing.assert_allclose(out, [ssim_by_windows(a, b)], atol=1e-10)


def test_ssim_of_flat_images_by_hand():
    # Without contrast only the means are compared: 16 and 235, black and white.
    black, white = np.zeros((1, 12, 12, 3), np.uint8), np.full((1, 12, 12, 3), 255, np.uint8)
    c1 = 6.5025
    np.testing.assert_allclose(ssim_y(black, white), [(2 * 16 * 235 + c1) / (16**2 + 235**2 + c1)])


def test_ssim_ranks():
    clean = pair(32, 32)[0]
    noisy = [pair(32, 32, noise)[1] for noise in (2, 8, 30)]
    out = ssim_y(np.stack([clean, *noisy]), np.stack([clean] * 4))
    assert out[0] == pytest.approx(1, abs=1e-12) and (np.diff(out) < 0).all()
    assert ssim_y(255 - clean[None], clean[None])[0] < 0  # a negative is anti-correlated


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
def test_pairs_that_do_not_fit(metric):
    a = np.zeros((2, 12, 12, 3), np.uint8)
    for images, reference, words in (
        (a, a[:, :, :11], r"\[2, 12, 12, 3\] and their references \[2, 12, 11, 3\]"),
        (a, a[:1], r"references \[1, 12"),
        (a.astype(np.float32), a, r"images are float32"),
        (a, a.astype(np.float64), r"reference images are float64"),
        (a[0], a[0], r"\[12, 12, 3\]"),
        (a[..., :1], a[..., :1], r"\[2, 12, 12, 1\]"),
        (a[:0], a[:0], r"\[0, 12, 12, 3\]"),
    ):
        with pytest.raises(UserError, match=words):
            metric(images, reference)


def test_images_smaller_than_the_window():
    a = np.zeros((1, 10, 40, 3), np.uint8)
    with pytest.raises(UserError, match="10 pixels high and 40 wide; SSIM needs at least 11"):
        ssim_y(a, a)


# ---------------------------------------------------------------- Inception score


@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score_of_known_probabilities(splits):
    uniform = np.full((100, 8), 1 / 8)
    assert inception_score(uniform, splits, 0) == pytest.approx((1, 0), abs=1e-12)
    same = np.tile([0.7, 0.2, 0.1, 0.0], (50, 1))
    assert inception_score(same, splits, 0) == pytest.approx((1, 0), abs=1e-12)


def test_inception_score_of_classes_equally_often_is_their_number():
    one_hot = np.eye(1008, dtype=np.float32)[np.arange(40) * 25]
    assert inception_score(one_hot, 1, 0) == pytest.approx((40, 0))
    assert inception_score(np.repeat(one_hot, 5, axis=0), 1, 3) == pytest.approx((40, 0))
    # Half of the rows of one class, half of another: exp of one bit.
    assert inception_score(np.eye(2)[[0, 0, 1, 1]], 1, 0)[0] == pytest.approx(2)
    # Three to one: exp(H(3/4, 1/4)).
    assert inception_score(np.eye(2)[[0, 0, 0, 1]], 1, 0)[0] == pytest.approx(math.exp(entropy([0.75, 0.25])))


def test_inception_score_is_its_formula():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(12, 0.3), 103)
    marginal = [p[:, k].mean() for k in range(12)]
    kl = [sum(row[k] * math.log(row[k] / marginal[k]) for k in range(12) if row[k] > 0) for row in p]
    assert inception_score(p, 1, 5)[0] == pytest.approx(math.exp(np.mean(kl)))
    # Splits: mutual information is the marginal's entropy less the mean of the rows'.
    order = np.random.default_rng(5).permutation(103)
    scores = []
    for part in np.array_split(order, 10):
        rows = p[part]
        scores.append(math.exp(entropy(rows.mean(axis=0)) - np.mean([entropy(row) for row in rows])))
    assert {len(part) for part in np.array_split(order, 10)} == {10, 11}
    assert inception_score(p, 10, 5) == pytest.approx((np.mean(scores), np.std(scores)))


def test_rows_are_shuffled_by_the_seed():
    # Sorted by class, every part in file order would hold one class and score 1.
    sorted_rows = np.repeat(np.eye(10), 30, axis=0)
    mean, deviation = inception_score(sorted_rows, 10, 0)
    assert 6 < mean < 10 and deviation > 0
    assert inception_score(sorted_rows, 10, 0) == (mean, deviation)
    assert inception_score(sorted_rows, 10, 1) != (mean, deviation)
    assert inception_score(sorted_rows, 1, 1)[0] == pytest.approx(10)


def test_probabilities_that_are_none():
    good = np.full((4, 5), 0.2)
    for p, splits, words in (
        (good * 5, 1, "do not sum to 1"),
        (np.array([[1.5, -0.5]]), 1, "negative"),
        (np.array([[np.nan, 1.0]]), 1, "not finite"),
        (np.array([[np.inf, 0.0]]), 1, "do not sum to 1"),
        (good[0], 1, r"shape \[5\]"),
        (good[:0], 1, r"shape \[0, 5\]"),
        (good, 0, "splits is 0"),
        (good, 5, "splits is 5; it must lie between 1 and the number of images, 4"),
    ):
        with pytest.raises(UserError, match=words):
            inception_score(p, splits, 0)
