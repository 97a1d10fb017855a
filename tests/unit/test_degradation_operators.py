"""Kernels, filters, resizing, noise, JPEG and sharpening: each against its definition, worked out another way."""

import io
import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from ldmscale.data.degradation.kernels import Kernel, draw_final_sinc, draw_kernel
from ldmscale.data.degradation.operators import (
    filter2d,
    gaussian_noise,
    jpeg,
    poisson_noise,
    resize,
    sharpen,
    to_uint8,
    usm_kernel,
)
from ldmscale.data.degradation.settings import KERNEL_KINDS, KERNEL_SIZES, PRESETS, REAL_ESRGAN, STABLESR


def rng(seed=0):
    return np.random.default_rng(seed)


def picture(height, width, seed=0):
    """Smooth colours with some noise, float32 [height,width,3] in [0,1]."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 3 + y / 5), np.cos(x / 7), np.sin(y / 4 - x / 6)]
    noise = rng(seed).normal(scale=0.1, size=(height, width, 3))
    return np.clip(0.5 + 0.3 * np.stack(waves, axis=-1) + noise, 0, 1).astype(np.float32)


# ---------------------------------------------------------------- kernels


def bell(kind, size, sigma_x, sigma_y, rotation, beta):
    """The formula, pixel by pixel, through the inverse of the covariance matrix."""
    turn = np.array([[math.cos(rotation), -math.sin(rotation)], [math.sin(rotation), math.cos(rotation)]])
    inverse = np.linalg.inv(turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T)
    values = np.empty((size, size))
    for row in range(size):
        for column in range(size):
            v = np.array([column - size // 2, row - size // 2])
            q = v @ inverse @ v
            values[row, column] = {
                "iso": math.exp(-q / 2),
                "aniso": math.exp(-q / 2),
                "generalized_iso": math.exp(-(q**beta) / 2),
                "generalized_aniso": math.exp(-(q**beta) / 2),
                "plateau_iso": 1 / (1 + q**beta),
                "plateau_aniso": 1 / (1 + q**beta),
            }[kind]
    return values / values.sum()


@pytest.mark.parametrize("size", [7, 21])
@pytest.mark.parametrize("kind", KERNEL_KINDS)
def test_bells_follow_their_formulas(kind, size):
    for sigma_x, sigma_y, rotation, beta in ((1.3, 2.7, 0.7, 1.0), (0.2, 3.0, -2.5, 0.5), (2.9, 0.4, 3.1, 3.6)):
        if kind.endswith("_iso") or kind == "iso":
            sigma_y, rotation = sigma_x, 0.0
        beta = 1.0 if kind in ("iso", "aniso") else beta
        kernel = Kernel(kind, size, sigma_x, sigma_y, rotation, beta).weights()
        np.testing.assert_allclose(kernel, bell(kind, size, sigma_x, sigma_y, rotation, beta), atol=1e-12)
        assert kernel.sum() == pytest.approx(1, abs=1e-12)
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-15)
        if sigma_x == sigma_y:
            np.testing.assert_allclose(kernel, kernel.T, atol=1e-15)


def test_an_anisotropic_kernel_has_the_covariance_that_was_asked_for():
    kernel = Kernel("aniso", 21, 2.5, 1.0, math.pi / 6).weights()
    y, x = np.mgrid[-10:11, -10:11]
    cos, sin = math.cos(math.pi / 6), math.sin(math.pi / 6)
    along = cos * x + sin * y  # rows go downwards, as in the official code
    across = cos * y - sin * x
    assert (kernel * along**2).sum() == pytest.approx(2.5**2, rel=0.01)
    assert (kernel * across**2).sum() == pytest.approx(1.0, rel=0.01)
    assert (kernel * along * across).sum() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("size, cutoff", [(7, math.pi / 3), (13, math.pi / 5), (21, 2.9), (9, math.pi)])
def test_sinc_passes_a_disk_of_frequencies(size, cutoff):
    # The inverse Fourier transform of the disk |w| < cutoff, by quadrature in polar coordinates.
    nodes, weights = np.polynomial.legendre.leggauss(60)
    radius, angle = (nodes + 1) * cutoff / 2, np.arange(180) * 2 * math.pi / 180
    area = radius * weights
    wx, wy = np.outer(np.cos(angle), radius), np.outer(np.sin(angle), radius)
    half = size // 2
    expected = np.array(
        [[(np.cos(wx * x + wy * y) * area).sum() for x in range(-half, half + 1)] for y in range(-half, half + 1)]
    )
    kernel = Kernel("sinc", size, cutoff=cutoff).weights()
    np.testing.assert_allclose(kernel, expected / expected.sum(), atol=1e-9)
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    assert (kernel < 0).any()  # it rings: that is what it is for


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("number", ["first", "second"])
def test_drawn_kernels_are_as_often_and_as_wide_as_the_settings_say(preset, number):
    stage = getattr(PRESETS[preset], number)
    generator = rng(1)
    drawn = [draw_kernel(stage, generator) for _ in range(4000)]
    sizes = [sum(k.size == size for k in drawn) for size in KERNEL_SIZES]
    assert stats.chisquare(sizes).pvalue > 1e-3
    kinds = ("sinc", *KERNEL_KINDS)
    expected = np.array([0.1, *(0.9 * np.array([0.45, 0.25, 0.12, 0.03, 0.12, 0.03]))]) * len(drawn)
    assert stats.chisquare([sum(k.kind == kind for k in drawn) for kind in kinds], expected).pvalue > 1e-3
    bells = [k for k in drawn if k.kind != "sinc"]
    low, high = stage.blur_sigma
    assert stats.kstest([k.sigma_x for k in bells], stats.uniform(low, high - low).cdf).pvalue > 1e-3
    turned = [k for k in bells if k.kind.endswith("aniso")]
    assert stats.kstest([k.sigma_y for k in turned], stats.uniform(low, high - low).cdf).pvalue > 1e-3
    assert stats.kstest([k.rotation for k in turned], stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3
    assert all(k.sigma_x == k.sigma_y and k.rotation == 0 for k in bells if not k.kind.endswith("aniso"))
    for name, (low, high) in (("generalized", stage.betag_range), ("plateau", stage.betap_range)):
        betas = np.array([k.beta for k in bells if k.kind.startswith(name)])
        assert low <= betas.min() and betas.max() <= high
        below = (betas <= 1).sum()
        assert stats.binomtest(int(below), len(betas), 0.5).pvalue > 1e-3
        assert stats.kstest(betas[betas > 1], stats.uniform(1, high - 1).cdf).pvalue > 1e-3
        if name == "generalized":
            assert stats.kstest(betas[betas < 1], stats.uniform(low, 1 - low).cdf).pvalue > 1e-3
        else:
            assert (betas[betas <= 1] == 1).all()
    for small in (True, False):
        cutoffs = [k.cutoff for k in drawn if k.kind == "sinc" and (k.size < 13) == small]
        low = math.pi / 3 if small else math.pi / 5
        assert min(cutoffs) >= low and max(cutoffs) <= math.pi
        assert stats.kstest(cutoffs, stats.uniform(low, math.pi - low).cdf).pvalue > 1e-3


def test_the_final_sinc_has_one_range_for_all_sizes():
    generator = rng(2)
    drawn = [draw_final_sinc(generator) for _ in range(2000)]
    assert {k.kind for k in drawn} == {"sinc"}
    assert stats.chisquare([sum(k.size == size for k in drawn) for size in KERNEL_SIZES]).pvalue > 1e-3
    low = math.pi / 3
    assert stats.kstest([k.cutoff for k in drawn], stats.uniform(low, math.pi - low).cdf).pvalue > 1e-3


# ---------------------------------------------------------------- filter


@pytest.mark.parametrize("height, width, size", [(9, 7, 5), (8, 11, 7), (5, 6, 9)])
def test_filter_is_a_sum_over_the_reflected_neighbourhood(height, width, size):
    image = rng().random((height, width, 3), np.float32)
    kernel = rng(1).normal(size=(size, size))  # not symmetric: flips would show

    def reflected(i, n):
        i = -i if i < 0 else i
        return 2 * (n - 1) - i if i >= n else i

    expected = np.zeros(image.shape)
    half = size // 2
    for row in range(height):
        for column in range(width):
            for a in range(-half, half + 1):
                for b in range(-half, half + 1):
                    pixel = image[reflected(row + a, height), reflected(column + b, width)]
                    expected[row, column] += kernel[a + half, b + half] * pixel
    out = filter2d(image, kernel)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_filter_is_torchs_padded_convolution():
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")
    image, kernel = picture(64, 47), Kernel("generalized_aniso", 21, 2.0, 0.7, 1.0, 0.6).weights()
    tensor = torch.nn.functional.pad(torch.from_numpy(image).permute(2, 0, 1)[:, None], (10,) * 4, mode="reflect")
    expected = torch.nn.functional.conv2d(tensor, torch.from_numpy(kernel).float()[None, None])[:, 0].permute(1, 2, 0)
    np.testing.assert_allclose(filter2d(image, kernel), expected.numpy(), atol=1e-5)
    # The official code pads all kernels to 21: it is the same filter.
    small = Kernel("plateau_iso", 7).weights()
    np.testing.assert_allclose(filter2d(image, small), filter2d(image, np.pad(small, 7)), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 8), (8, 8)])
def test_images_smaller_than_the_kernel(shape):
    out = filter2d(np.full((*shape, 3), 0.25, np.float32), Kernel("iso", 21, 3.0, 3.0).weights())
    np.testing.assert_allclose(out, np.full((*shape, 3), 0.25), atol=1e-6)


# ---------------------------------------------------------------- resize

SIZES = [((16, 20), (8, 10)), ((16, 20), (33, 41)), ((13, 9), (5, 4)), ((13, 9), (14, 31)), ((7, 30), (7, 30)),
         ((40, 40), (6, 39)), ((5, 6), (1, 1)), ((1, 1), (4, 3)), ((2, 3), (9, 2))]  # fmt: skip


@pytest.mark.parametrize("old, new", SIZES)
@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_resize_to_a_size_is_torchs(mode, old, new):
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")
    image = picture(*old)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(tensor, size=new, mode=mode)[0].permute(1, 2, 0)
    out = resize(image, new, mode)
    assert out.dtype == np.float32 and out.flags.c_contiguous
    np.testing.assert_allclose(out, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("scale", [0.15, 0.337, 0.5, 0.99, 1.0, 1.21, 1.5])
@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_resize_by_a_factor_is_torchs(mode, scale):
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")
    image = picture(37, 50)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(tensor, scale_factor=scale, mode=mode)[0].permute(1, 2, 0)
    out = resize(image, (int(37 * scale), int(50 * scale)), mode, scale)
    np.testing.assert_allclose(out, expected.numpy(), atol=1e-5)
    if mode != "area" and scale in (0.337, 1.21):  # sizes were rounded: the factor matters
        assert np.abs(out - resize(image, out.shape[:2], mode)).max() > 1e-3


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_same_size_changes_nothing(mode):
    image = picture(11, 12)
    np.testing.assert_array_equal(resize(image, (11, 12), mode, 1.0), image)


# ---------------------------------------------------------------- noise


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise(gray):
    noise = gaussian_noise(picture(300, 300), 12.0, gray, rng(3))
    assert noise.shape == (300, 300, 3) and noise.dtype == np.float32
    same = (noise[..., 0] == noise[..., 1]).all() and (noise[..., 0] == noise[..., 2]).all()
    assert same == gray
    for values in (noise[..., 0], noise[..., 2]):
        assert stats.kstest(values.ravel(), stats.norm(scale=12 / 255).cdf).pvalue > 1e-3
    if not gray:
        assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("scale", [0.05, 2.0])
@pytest.mark.parametrize("levels, v", [(1, 1), (2, 2), (5, 8), (64, 64), (65, 128), (256, 256)])
def test_poisson_noise_has_the_variance_of_counts(levels, v, scale):
    values = np.linspace(0, 255, levels).round() if levels > 1 else np.array([100.0])
    image = np.broadcast_to((values / 255).astype(np.float32)[None, :, None], (40_000 // levels, levels, 3))
    noise = poisson_noise(image, scale, False, rng(4))
    assert noise.shape == image.shape and noise.dtype == np.float32
    for column in {0, levels // 2, levels - 1}:
        x, sample = values[column] / 255, noise[:, column].ravel()
        deviation = scale * math.sqrt(x / v)
        assert abs(sample.mean()) <= 5 * deviation / math.sqrt(len(sample)) + 1e-7
        assert sample.std() == pytest.approx(deviation, rel=6 / math.sqrt(len(sample)), abs=1e-7)
        # Whole counts, less their mean.
        counts = (sample / scale + x) * v
        np.testing.assert_allclose(counts, counts.round(), atol=2e-3)


def test_poisson_noise_by_channel_or_shared():
    image = np.broadcast_to(np.array([0.8, 0.4, 0.2], np.float32), (200, 200, 3))
    noise = poisson_noise(image, 1.0, False, rng(5))  # three levels: v = 4
    np.testing.assert_allclose(noise.var(axis=(0, 1)), np.array([0.8, 0.4, 0.2]) / 4, rtol=0.05)
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02
    shared = poisson_noise(image, 1.0, True, rng(5))  # one luma: v = 1
    assert (shared[..., 0] == shared[..., 1]).all() and (shared[..., 0] == shared[..., 2]).all()
    luma = round((0.2989 * 0.8 + 0.587 * 0.4 + 0.114 * 0.2) * 255) / 255
    assert shared.var() == pytest.approx(luma, rel=0.05) and abs(shared.mean()) < 0.02


def test_poisson_noise_survives_values_beyond_the_range():
    image = np.array([[[-0.1, 1.2, 0.5]]], np.float32)
    noise = poisson_noise(image, 1.0, False, rng(6))
    assert np.isfinite(noise).all() and noise[0, 0, 0] == 0  # clipped to 0, where there are no counts


# ---------------------------------------------------------------- JPEG, rounding


@pytest.mark.parametrize("quality", [30, 61, 94])
@pytest.mark.parametrize("shape", [(32, 32), (17, 9), (1, 1)])
def test_jpeg_is_pils_round_trip(shape, quality):
    image = picture(*shape)
    buffer = io.BytesIO()
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    expected = np.asarray(Image.open(buffer))
    out = jpeg(image, quality)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(np.round(out * 255), expected)


def test_lower_quality_is_worse():
    image = np.repeat(picture(64, 64)[..., :1], 3, axis=-1)  # in colour, halved chroma costs more than quality does
    errors = [np.abs(jpeg(image, quality) - image).mean() for quality in (95, 75, 50, 30)]
    assert errors == sorted(errors) and errors[-1] > 2 * errors[0]


def test_values_beyond_the_range_are_clipped_before_rounding():
    values = np.array([[[-0.2, 1.7, 0.5]]], np.float32)
    assert to_uint8(values).tolist() == [[[0, 255, 128]]]
    assert jpeg(np.full((8, 8, 3), 1.4, np.float32), 90).min() == 1


# ---------------------------------------------------------------- sharpening


def test_the_sharpening_kernel_is_opencvs_gaussian():
    kernel = usm_kernel()
    assert kernel.shape == (51, 51) and kernel.sum() == pytest.approx(1)
    # sigma 8 between neighbours in the middle row
    assert kernel[25, 26] / kernel[25, 25] == pytest.approx(math.exp(-1 / 128))
    np.testing.assert_allclose(kernel, kernel.T)


def test_sharpening_is_its_formula():
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")

    def blur(image):
        line = torch.exp(-((torch.arange(51.0) - 25) ** 2) / 128)
        line = line / line.sum()
        tensor = torch.nn.functional.pad(torch.from_numpy(image).permute(2, 0, 1)[:, None], (25,) * 4, mode="reflect")
        tensor = torch.nn.functional.conv2d(tensor, line.view(1, 1, 51, 1))
        return torch.nn.functional.conv2d(tensor, line.view(1, 1, 1, 51))[:, 0].permute(1, 2, 0).numpy()

    image = picture(60, 44)
    residual = image - blur(image)
    mask = (np.abs(residual) * 255 > 10).astype(np.float32)
    assert 0.1 < mask.mean() < 0.9  # both sides of the threshold occur
    soft = blur(mask)
    sharp = np.clip(image + 0.5 * residual, 0, 1)
    np.testing.assert_allclose(sharpen(image), soft * sharp + (1 - soft) * image, atol=1e-5)


def test_sharpening_leaves_flat_images_alone_and_steepens_edges():
    flat = np.full((32, 32, 3), 0.3, np.float32)
    np.testing.assert_allclose(sharpen(flat), flat, atol=1e-6)
    edge = np.full((64, 64, 3), 0.3, np.float32)
    edge[:, 32:] = 0.7
    out = sharpen(edge)
    assert out[32, 32, 0] - out[32, 31, 0] > 0.5 and out.min() >= 0 and out.max() <= 1


# ---------------------------------------------------------------- presets


def test_the_presets_are_the_published_ones():
    for settings, published in (
        (REAL_ESRGAN, {"sigma": ((0.2, 3), (0.2, 1.5)), "betag": (0.5, 4), "betap": (1, 2), "blur2": 0.8,
                       "resize": ((0.15, 1.5), (0.3, 1.2)), "noise": ((1, 30), (1, 25)),
                       "poisson": ((0.05, 3), (0.05, 2.5)), "jpeg": ((30, 95), (30, 95)), "intact": 0}),
        (STABLESR, {"sigma": ((0.2, 1.5), (0.2, 1.0)), "betag": (0.5, 2), "betap": (1, 1.5), "blur2": 0.5,
                    "resize": ((0.3, 1.5), (0.6, 1.2)), "noise": ((1, 15), (1, 12)),
                    "poisson": ((0.05, 2), (0.05, 1)), "jpeg": ((60, 95), (60, 100)), "intact": 0.01}),
    ):  # fmt: skip
        stages = (settings.first, settings.second)
        assert tuple(s.blur_sigma for s in stages) == published["sigma"]
        assert tuple(s.resize_range for s in stages) == published["resize"]
        assert tuple(s.noise_range for s in stages) == published["noise"]
        assert tuple(s.poisson_scale_range for s in stages) == published["poisson"]
        assert tuple(s.jpeg_range for s in stages) == published["jpeg"]
        assert tuple(s.blur_prob for s in stages) == (1, published["blur2"])
        assert tuple(s.resize_prob for s in stages) == ((0.2, 0.7, 0.1), (0.3, 0.4, 0.3))
        assert settings.no_degradation_prob == published["intact"] and settings.final_sinc_prob == 0.8
        for stage in stages:
            assert (stage.betag_range, stage.betap_range) == (published["betag"], published["betap"])
            assert (stage.sinc_prob, stage.gaussian_noise_prob, stage.gray_noise_prob) == (0.1, 0.5, 0.4)
