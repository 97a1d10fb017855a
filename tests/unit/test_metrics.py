"""Fréchet distance, CLIP score, bootstrap and Inception features, against clean-fid and brute force."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from ldmscale.errors import UserError
from ldmscale.metrics import bootstrap
from ldmscale.metrics.bootstrap import fid_replicates, interval, mean_replicates, paired_difference, resample_counts
from ldmscale.metrics.clip_score import clip_scores
from ldmscale.metrics.frechet import Reference, frechet_distance, gaussian, half_root


def features(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated Gaussian features [n,d] with a spectrum that falls tenfold, as real ones do."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((d, d)) / np.sqrt(d) * np.geomspace(1, 0.1, d)
    return rng.standard_normal((n, d)) @ mix.T + shift


# ---- torchvision guard ----------------------------------------------------------------------------------------------

GUARD = """
import sys
from ldmscale.metrics.torch_guard import guard_torchvision
assert "torch" not in sys.modules
acted = guard_torchvision()
import torchvision, cleanfid.fid, torch
from torchvision.extension import _has_ops
assert acted != _has_ops(), (acted, _has_ops())  # only where torchvision's own operators did not load
assert not guard_torchvision()
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError:
    assert acted
"""


def test_guard_lets_cleanfid_be_imported():
    done = subprocess.run([sys.executable, "-c", GUARD], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_guard_leaves_loading_operators_alone(monkeypatch):
    import torch

    from ldmscale.metrics import torch_guard

    tried = []
    monkeypatch.setattr(torch.ops, "load_library", tried.append)
    monkeypatch.setattr(torch.library, "Library", lambda *a: pytest.fail("defined operators that load by themselves"))
    monkeypatch.setattr(torch_guard, "_library", None)
    monkeypatch.setattr(sys, "modules", {k: v for k, v in sys.modules.items() if k.split(".")[0] != "torchvision"})
    assert not torch_guard.guard_torchvision()
    assert len(tried) == 1 and "_C" in tried[0]


def test_metrics_do_not_import_torch_by_themselves():
    names = ("frechet", "clip_score", "bootstrap", "inception", "torch_guard")
    names += ("kernels", "neighbours", "extrapolation", "real")
    code = "import sys\n" + "".join(f"import ldmscale.metrics.{name}\n" for name in names)
    code += "assert not {'torch', 'jax', 'cleanfid', 'scipy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- Fréchet distance -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cleanfid():
    from ldmscale.metrics.torch_guard import guard_torchvision

    guard_torchvision()
    from cleanfid import fid

    return fid


cleanfids = pytest.mark.filterwarnings(
    "ignore:The `disp` argument:DeprecationWarning", "ignore:Matrix is singular", "ignore:invalid value"
)


@cleanfids
@pytest.mark.parametrize(
    ("n", "m", "d"),
    [(2000, 1500, 16), (256, 300, 64), (40, 400, 64), (400, 40, 64), (20, 30, 64), (2, 2, 8), (30, 500, 300)],
)
def test_frechet_distance_is_cleanfids(cleanfid, n, m, d):
    mine, real = features(n, d, 0), features(m, d, 1, shift=0.1)
    a, b = gaussian(mine), gaussian(real)
    want = cleanfid.frechet_distance(*a, *b)
    for found in (frechet_distance(*a, *b), frechet_distance(*b, *a), Reference(real).distance(mine)):
        assert isinstance(found, float)
        assert found == pytest.approx(want, rel=1e-6)


@cleanfids
@pytest.mark.parametrize("low", [0, 3])
def test_singular_covariances(cleanfid, low):
    """Features of rank ``low`` (0: one constant vector), a collapsed generator."""
    rng = np.random.default_rng(0)
    constant = rng.standard_normal((50, low)) @ rng.standard_normal((low, 12)) + np.ones(12)
    flat, full = gaussian(constant), gaussian(features(100, 12, 1))
    for other, real in ((full, features(100, 12, 1)), (flat, constant)):
        want = cleanfid.frechet_distance(*flat, *other)
        assert frechet_distance(*flat, *other) == pytest.approx(want, rel=1e-6, abs=1e-6)
        assert Reference(real).distance(constant) == pytest.approx(want, rel=1e-6, abs=1e-6)
    if low == 0:
        difference = flat[0] - full[0]
        assert frechet_distance(*flat, *full) == pytest.approx(difference @ difference + np.trace(full[1]), rel=1e-9)


def sum_of_singular_values(a: np.ndarray, b: np.ndarray) -> float:
    """tr((sigma_a sigma_b)^(1/2)) of features [N,D] and [M,D] without squaring anything."""
    halves = [(x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    return np.linalg.svd(halves[0] @ halves[1].T, compute_uv=False).sum()


@pytest.mark.parametrize(
    ("n", "m", "rank"), [(700, 600, None), (300, 299, None), (40, 700, None), (700, 40, None), (700, 600, 3)]
)
def test_frechet_distance_beyond_the_rank(n, m, rank):
    """Every way through, in 256 dimensions of a spectrum that falls a thousandfold, against singular values."""
    rng, spectrum = np.random.default_rng(0), np.geomspace(1, 1e-3, 256)
    mine, real = rng.standard_normal((n, 256)) * spectrum, rng.standard_normal((m, 256)) * spectrum + 0.01
    if rank:
        mine = mine[rng.integers(rank, size=n)]  # a generator that knows three images
    a, b = gaussian(mine), gaussian(real)
    difference = a[0] - b[0]
    overlap = sum_of_singular_values(mine, real)
    want = difference @ difference + np.trace(a[1]) + np.trace(b[1]) - 2 * overlap
    found = [frechet_distance(*a, *b), frechet_distance(*b, *a), Reference(real).distance(mine)]
    np.testing.assert_allclose(found, want, rtol=1e-7)
    half = half_root(a[1])
    np.testing.assert_allclose(half @ half.T, a[1], atol=1e-12)
    assert half.shape[1] == min(n - 1, 256, (rank or 257) - 1)


def test_frechet_distance_of_known_gaussians():
    """Commuting covariances: sum of (mu1 - mu2)^2 + (sd1 - sd2)^2 over dimensions."""
    mu1, mu2, sd1, sd2 = np.array([0.0, 1.0]), np.array([2.0, 1.0]), np.array([1.0, 3.0]), np.array([2.0, 0.5])
    result = frechet_distance(mu1, np.diag(sd1**2), mu2, np.diag(sd2**2))
    assert result == pytest.approx(4 + 1 + 6.25, rel=1e-12)


@cleanfids
def test_whole_path_is_cleanfids_fid_from_feats(cleanfid):
    a, b = features(300, 32, 2).astype(np.float32), features(200, 32, 3, 0.2).astype(np.float32)
    assert Reference(b).distance(a) == pytest.approx(cleanfid.fid_from_feats(a, b), rel=1e-6)


def test_frechet_refuses():
    a, b = gaussian(features(10, 3, 0)), gaussian(features(10, 4, 0))
    with pytest.raises(UserError, match=r"\[3\], \[3, 3\], \[4\], \[4, 4\].*one extractor"):
        frechet_distance(*a, *b)
    spoilt = a[1].copy()
    spoilt[2, 0] = spoilt[0, 2] = np.nan
    with pytest.raises(UserError, match="not finite"):
        frechet_distance(a[0], spoilt, *a)
    with pytest.raises(UserError, match="3 dimensions and the reference 4"):
        Reference(features(10, 4, 0)).distance(features(10, 3, 0))
    with pytest.raises(UserError, match=r"\[1, 4\].*at least 2"):
        gaussian(np.zeros((1, 4)))
    with pytest.raises(UserError, match="row 2"):
        gaussian(np.where(np.arange(5)[:, None] == 2, np.nan, features(5, 3, 0)))


# ---- bootstrap ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "d"), [(100, 80, 8), (12, 50, 20), (20, 20, 13), (6, 40, 5)])
@pytest.mark.parametrize(("threads", "block"), [(1, bootstrap.BLOCK), (2, 1), (3, 3 * 63 * 8)])
def test_fid_replicates_are_the_distances_of_the_resamples(n, m, d, threads, block, monkeypatch):
    """Both routes, K x K and Gram, all at once, one by one and a few at a time, against resampled features through
    np.cov."""
    monkeypatch.setenv("NPROC", str(threads))
    monkeypatch.setattr(bootstrap, "BLOCK", block)
    x, reference = features(n, d, 0).astype(np.float32), features(m, d, 1, 0.3)
    got = fid_replicates(x, Reference(reference), replicates=8, seed=5)
    assert got.shape == (8,) and got.dtype == np.float64
    for value, counts in zip(got, resample_counts(n, 8, 5), strict=True):
        assert counts.sum() == n
        resample = np.repeat(x, counts, axis=0)
        assert value == pytest.approx(frechet_distance(*gaussian(resample), *gaussian(reference)), rel=1e-6)


def test_replicates_pair_across_cells():
    """A cell shifted by a constant in every score: replicates differ by just that; another seed's do not."""
    values = np.random.default_rng(0).standard_normal(50)
    a, b = mean_replicates(values, 30, seed=1), mean_replicates(values + 0.25, 30, seed=1)
    np.testing.assert_allclose(b - a, 0.25, rtol=1e-12)
    assert np.std(mean_replicates(values + 0.25, 30, seed=2) - a) > 0.05
    x, reference = features(60, 6, 0), Reference(features(60, 6, 1))
    pair = [fid_replicates(cell, reference, 30, seed=1) for cell in (x, 1.02 * x)]
    assert np.std(pair[1] - pair[0]) < 0.2 * np.std(pair[0])


def test_mean_replicates_have_the_standard_error():
    values = np.random.default_rng(3).standard_normal(400)
    replicates = mean_replicates(values, 4000, seed=0)
    assert replicates.mean() == pytest.approx(values.mean(), abs=0.005)
    assert replicates.std() == pytest.approx(values.std() / 20, rel=0.05)


def test_interval_is_centred_on_the_point_despite_the_bias():
    x, reference = features(64, 128, 0), Reference(features(64, 128, 1))
    point = reference.distance(x)
    replicates = fid_replicates(x, reference, 200, seed=0)
    assert replicates.min() > point  # why plain percentiles would not do
    low, high = interval(point, replicates)
    assert low < point < high
    assert high - low == pytest.approx(3.92 * replicates.std(), rel=0.25)
    narrow = interval(point, replicates, level=0.5)
    assert low < narrow[0] < point < narrow[1] < high


def test_interval_covers_means():
    """Nominal 95 % over 300 draws of 40 values; 0.90 to 0.98 allows for chance and few values."""
    rng = np.random.default_rng(11)
    hits = 0
    for seed in range(300):
        values = rng.standard_normal(40)
        low, high = interval(values.mean(), mean_replicates(values, 200, seed))
        hits += low <= 0 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_paired_difference_sees_what_separate_intervals_cannot():
    x, reference = features(256, 16, 0), Reference(features(256, 16, 1))
    cells = [x + 0.05, x + 0.06]
    points = [reference.distance(cell) for cell in cells]
    replicates = [fid_replicates(cell, reference, 200, seed=0) for cell in cells]
    (low_a, high_a), (low_b, high_b) = (interval(p, r) for p, r in zip(points, replicates, strict=True))
    assert low_a < high_b and low_b < high_a  # the two overlap
    difference, low, high = paired_difference(points[0], replicates[0], points[1], replicates[1])
    assert difference == points[0] - points[1]
    assert low < difference < high
    assert high - low < 0.5 * (high_a - low_a)


def test_bootstrap_refuses():
    x = features(10, 4, 0)
    with pytest.raises(UserError, match="4 dimensions and the reference 5"):
        fid_replicates(x, Reference(features(10, 5, 0)), 3, 0)
    with pytest.raises(UserError, match="0 replicates over 10"):
        fid_replicates(x, Reference(x), 0, 0)
    with pytest.raises(UserError, match=r"\[10, 4\]"):
        mean_replicates(x, 3, 0)
    with pytest.raises(UserError, match="at least 2"):
        interval(1.0, np.ones(1))
    with pytest.raises(UserError, match="level is 95"):
        interval(1.0, np.ones(9), level=95)
    with pytest.raises(UserError, match="9 replicates against 8"):
        paired_difference(1.0, np.ones(9), 1.0, np.ones(8))


FAST = """
import time
import numpy as np
from ldmscale.metrics.bootstrap import fid_replicates
from ldmscale.metrics.frechet import Reference
features, reference = np.random.default_rng(0).standard_normal((2, 256, 64))
start = time.process_time()
fid_replicates(features, Reference(reference), 200, seed=0)
print(time.process_time() - start)
"""


def test_bootstrap_is_fast():
    """200 replicates at N = 256, D = 64 take some 0.03 s of one core (0.2 s as 200 distances)."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # a second thread only slows matrices this small
    done = subprocess.run([sys.executable, "-c", FAST], capture_output=True, text=True, env=environment, check=True)
    assert float(done.stdout) < 0.5


# ---- CLIP score -----------------------------------------------------------------------------------------------------


def test_clip_scores_are_plain_cosines():
    image = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]], np.float32)
    text = np.array([[5.0, 0.0], [0.0, -1.0], [1.0, 0.0]], np.float32)
    scores = clip_scores(image, text)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, [1.0, -1.0, 0.6], rtol=1e-12)


def test_clip_scores_refuse():
    with pytest.raises(UserError, match=r"\[3, 2\].*\[4, 2\]"):
        clip_scores(np.ones((3, 2)), np.ones((4, 2)))
    for bad in (0.0, np.nan):
        with pytest.raises(UserError, match="row 1"):
            clip_scores(np.array([[1.0, 1], [bad, bad]]), np.ones((2, 2)))


# ---- Inception features ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny random network with the interface of clean-fid's file: ``layers`` on [-1,1] images of 299 x 299."""
    import torch

    class Tiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.AvgPool2d(59, 60), torch.nn.Flatten(), torch.nn.Linear(75, 2048), torch.nn.Tanh()
            )

        def forward(self, x, return_features: bool = True):
            return self.layers((x - 128) / 128)

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception-2015-12-05.pt"
    torch.jit.script(Tiny()).save(str(path))
    return path


def test_inception_features_are_cleanfids(weights, tmp_path, monkeypatch):
    """Arrays through ours, the same images as PNG files through clean-fid's own folder route."""
    from ldmscale.metrics.inception import inception_features

    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("tried to download"))
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    got = inception_features(images, weights, batch=2)
    assert got.shape == (5, 2048) and got.dtype == np.float32

    import torch
    from cleanfid.fid import get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W
    from PIL import Image

    for j, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{j}.png")
    network = InceptionV3W(str(weights.parent), download=False)
    settings = {"num_workers": 0, "device": torch.device("cpu"), "mode": "clean", "verbose": False}
    want = get_folder_features(str(tmp_path), network, **settings)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert np.ptp(got, axis=0).max() > 0.01  # the images do differ in these features
    np.testing.assert_allclose(inception_features(images, str(weights)), got, rtol=1e-5, atol=1e-6)


def test_inception_refuses_images_it_cannot_mean(weights):
    from ldmscale.metrics.inception import inception_features

    bad = [np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8, 4), np.uint8)]
    for images in [*bad, np.zeros((0, 8, 8, 3), np.uint8)]:
        with pytest.raises(UserError, match="uint8"):
            inception_features(images, weights)


def test_inception_refuses_weights(tmp_path):
    import torch

    from ldmscale.metrics.inception import inception_features

    images = np.zeros((1, 8, 8, 3), np.uint8)
    path = tmp_path / "inception-2015-12-05.pt"
    with pytest.raises(UserError, match="do not exist"):
        inception_features(images, path)
    with pytest.raises(UserError, match="do not exist"):
        inception_features(images, tmp_path)
    renamed = tmp_path / "other.pt"
    renamed.write_bytes(b"")
    with pytest.raises(UserError, match="other.pt.*inception-2015-12-05.pt"):
        inception_features(images, renamed)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="not the TorchScript network"):
        inception_features(images, path)
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="not the TorchScript network"):
        inception_features(images, path)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(UserError, match="not the TorchScript network"):
        inception_features(images, path)
