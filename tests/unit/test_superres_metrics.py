"""Scores of super-resolved images: the row, its order of quality, its replicates, and what stands in for what."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmscale.errors import UserError
from ldmscale.metrics import superres
from ldmscale.metrics.bootstrap import mean_replicates, resample_counts
from ldmscale.metrics.frechet import frechet_distance, gaussian
from ldmscale.metrics.image_quality import inception_score, psnr_y, ssim_y
from ldmscale.metrics.perceptual import lpips_distance
from ldmscale.metrics.superres import PSNR_CEILING, SuperresScorer, image_classes, inception_replicates
from ldmscale.models.lpips import LPIPS
from ldmscale.models.lpips_weights import load_lpips
from ldmscale.models.weights import from_tree

COLUMNS = {
    "split", "n", "n_reference", "fid", "fid_features", "fid_reps", "psnr", "psnr_reps", "ssim", "ssim_reps",
    "perceptual", "perceptual_reps", "perceptual_features", "lpips_alex", "lpips_vgg", "is1", "is10", "is10_std",
    "is_features", "is_reps",
}  # fmt: skip
RNG = np.random.default_rng(0)
POOLED, EMBEDDED = RNG.normal(size=(48, 6)), RNG.normal(size=(48, 5))
CAPTIONS = np.linalg.qr(RNG.normal(size=(5, 5)))[0]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def features(images):
    """Features of a made network: of the means of 4 x 4 parts and three colours."""
    n, s = len(images), images.shape[1] // 4
    parts = (images.astype(float) / 127.5 - 1).reshape(n, 4, s, 4, s, 3).mean((2, 4)).reshape(n, -1)
    return parts @ POOLED + 0.1, unit(parts @ EMBEDDED)


def pictures(n=40, size=16, seed=1):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    waves = rng.uniform(1, 6, (n, 1, 1, 3, 2))
    return np.clip(128 + 90 * np.sin(waves[..., 0] * x[..., None] + waves[..., 1] * y[..., None]), 0, 255).astype(
        np.uint8
    )


def noisy(images, sigma, seed=2):
    noise = np.random.default_rng(seed).normal(0, sigma, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def scorer(hr, **changes):
    classes, label = image_classes(None, math.log(10), CAPTIONS, "made CLIP")
    settings = {"features": features, "label": "made features", "hr": hr, "reference": features(hr)[0],
                "classes": classes, "class_label": label, "lpips": {}, "replicates": 30, "seed": 4}  # fmt: skip
    return SuperresScorer(**(settings | changes))


# ---------------------------------------------------------------- the row


def test_the_row_by_its_parts():
    hr, images = pictures(), noisy(pictures(), 20)
    row = scorer(hr).row(images)
    assert set(row) == COLUMNS
    (made, embedded), (real, _) = features(images), features(hr)
    assert (row["split"], row["n"], row["n_reference"]) == ("superres", 40, 40)
    assert row["fid"] == pytest.approx(frechet_distance(*gaussian(made), *gaussian(real)), rel=1e-6)
    psnr, ssim = psnr_y(images, hr), ssim_y(images, hr)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(made, real, strict=True)]
    for name, values in (("psnr", psnr), ("ssim", ssim), ("perceptual", 1 - np.array(cosines))):
        assert row[name] == pytest.approx(values.mean(), rel=1e-9)
        np.testing.assert_allclose(row[f"{name}_reps"], mean_replicates(values, 30, 4), rtol=1e-9)
    logits = 10 * embedded @ CAPTIONS.T
    classes = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert row["is1"] == pytest.approx(inception_score(classes, 1, 0)[0], rel=1e-9)
    assert (row["is10"], row["is10_std"]) == pytest.approx(inception_score(classes, 10, 4), rel=1e-9)
    assert row["lpips_alex"] is row["lpips_vgg"] is None
    assert row["fid_features"] == "made features" and row["perceptual_features"] == "made features, 1 - cosine"
    assert row["is_features"] == "made CLIP, zero-shot over 5 captions"
    # It is written as JSON, and every list has a value a replicate.
    assert json.loads(json.dumps(row)) == row
    assert all(len(value) == 30 for name, value in row.items() if name.endswith("_reps"))


def test_poorer_images_score_worse():
    hr = pictures()
    rows = [scorer(hr).row(noisy(hr, sigma)) for sigma in (3, 25, 80)]
    for name, better in (("psnr", 1), ("ssim", 1), ("fid", -1), ("perceptual", -1)):
        values = [better * row[name] for row in rows]
        assert values[0] > values[1] > values[2], name
    # Everyone's replicates are of the same images: the difference is surer than either.
    first, second = (np.array(row["psnr_reps"]) for row in rows[:2])
    assert (first > second).all() and np.std(first - second) < np.std(first) + np.std(second)


def test_which_image_belongs_to_which_original_matters_to_pairs_alone():
    hr = pictures()
    right, turned = (scorer(hr).row(images) for images in (noisy(hr, 5), np.roll(noisy(hr, 5), 1, axis=0)))
    assert turned["fid"] == pytest.approx(right["fid"], rel=1e-6) and turned["is1"] == pytest.approx(right["is1"])
    assert turned["psnr"] < right["psnr"] - 8 and turned["ssim"] < right["ssim"] - 0.2
    assert turned["perceptual"] > 10 * right["perceptual"]


def test_perfect_images_have_a_finite_score():
    hr = pictures()
    row = scorer(hr).row(hr.copy())
    assert row["psnr"] == pytest.approx(PSNR_CEILING) == pytest.approx(10 * math.log10(255**2 / (1 / 12)))
    assert row["ssim"] == pytest.approx(1) and row["perceptual"] == pytest.approx(0, abs=1e-9)
    assert row["fid"] == pytest.approx(0, abs=1e-4)
    # One perfect image of many counts for what it can be told to be, not for infinitely much or nothing.
    images = noisy(hr, 20)
    images[7] = hr[7]
    psnr = psnr_y(images, hr)
    assert np.isinf(psnr[7]) and np.isfinite(np.delete(psnr, 7)).all()
    found = scorer(hr).row(images)
    assert found["psnr"] == pytest.approx((np.delete(psnr, 7).sum() + PSNR_CEILING) / 40)
    assert np.isfinite(found["psnr_reps"]).all()
    spot = hr.copy()  # closer than rounding is not better than equal
    spot[:, 0, 0] ^= 1
    assert psnr_y(spot, hr).min() > PSNR_CEILING and scorer(hr).row(spot)["psnr"] == row["psnr"]


def test_what_cannot_be_measured_is_none():
    hr = pictures(size=8)
    row = scorer(hr).row(noisy(hr, 5))
    assert row["ssim"] is None and row["ssim_reps"] is None and set(row) == COLUMNS
    assert np.isfinite(row["psnr"]) and np.isfinite(row["fid"])
    few = pictures(9)
    row = scorer(few).row(noisy(few, 5))
    assert row["is10"] is row["is10_std"] is None and row["is1"] > 1 and row["ssim"] > 0


def test_images_that_do_not_fit_are_refused():
    hr = pictures()
    with pytest.raises(UserError, match="pairs of one size"):
        scorer(hr).row(hr[:20])
    with pytest.raises(UserError, match="need uint8"):
        scorer(hr).row(hr.astype(np.float32))
    with pytest.raises(UserError, match="39 images have features, of 40 originals"):
        scorer(hr, reference=features(hr[1:])[0])


# ---------------------------------------------------------------- Inception score


def test_replicates_of_the_inception_score_are_scores_of_resamples():
    logits = np.random.default_rng(3).normal(0, 3, (25, 7))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p[4] = np.eye(7)[2]  # 0 log 0 is 0
    found = inception_replicates(p, 20, 11)
    counts = resample_counts(25, 20, 11)
    wanted = [inception_score(np.repeat(p, row, axis=0), 1, 0)[0] for row in counts]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_inceptions_classes_are_of_the_same_features_and_without_bias(monkeypatch):
    kernel = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    read = []
    monkeypatch.setattr(
        superres, "load_inception",
        lambda path: read.append(path) or {"fc": {"kernel": kernel, "bias": np.full(9, 5.0)}, "Mixed_5b": {}},
    )  # fmt: skip
    classes, label = image_classes("inception.pt", 0.0, CAPTIONS, "made CLIP")
    assert read == ["inception.pt"] and label == "Inception-v3 classes"
    pooled = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    wanted = np.exp(pooled @ kernel)
    np.testing.assert_allclose(classes(pooled, None), wanted / wanted.sum(1, keepdims=True), rtol=1e-4)
    hr = pictures()
    row = scorer(hr, classes=classes, class_label=label).row(noisy(hr, 10))
    assert row["is_features"] == label and 1 < row["is1"] < 9


def test_captions_as_classes():
    classes, _ = image_classes(None, math.log(1e6), CAPTIONS, "CLIP")
    embeddings = unit(CAPTIONS[[0, 0, 3]] + 0.1 * CAPTIONS[[1, 2, 1]])
    # CLIP clips its scale at 100: the cosines 1 and 0.1 differ by a factor of e^90.
    np.testing.assert_allclose(np.log(classes(None, embeddings)[0, 1]), -90 / math.sqrt(1.01), rtol=1e-6)
    assert classes(None, embeddings).argmax(1).tolist() == [0, 0, 3]
    with pytest.raises(UserError, match="1 captions for classes; it needs at least 2"):
        image_classes(None, 0.0, CAPTIONS[:1], "CLIP")


# ---------------------------------------------------------------- LPIPS


@pytest.fixture(scope="module")
def alex(tmp_path_factory):
    """Files of AlexNet and its linear weights, with made numbers in them, and the distance that they make."""
    import torch

    folder, image = tmp_path_factory.mktemp("lpips"), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(LPIPS("alex").init, jax.random.key(0), image, image)["params"]
    rng = np.random.default_rng(5)
    tree = jax.tree.map(lambda s: (rng.normal(size=s.shape) / math.sqrt(math.prod(s.shape[:-1]))).astype("f4"), shapes)
    tree |= {name: jax.tree.map(np.abs, part) for name, part in tree.items() if name.startswith("lin")}

    def named(dotted):
        module, leaf = dotted.split(".")
        module = module.replace("_", ".") if module.startswith("features") else f"{module}.model.1"
        return f"{module}.{'weight' if leaf == 'kernel' else 'bias'}"

    for file, start in (("backbone", "features"), ("linear", "lin")):
        part = {name: leaves for name, leaves in tree.items() if name.startswith(start)}
        state = {name: torch.from_numpy(array.copy()) for name, array in from_tree(part, named).items()}
        torch.save(state, folder / f"{file}.pth")
    return folder, lpips_distance("alex", folder / "backbone.pth", folder / "linear.pth", batch=16)


def test_lpips_of_images_on_disk(alex):
    folder, distance = alex
    hr = pictures(20, 32)
    images = noisy(hr, 30)
    found = distance(images, hr)
    assert found.shape == (20,) and found.dtype == np.float64 and found.min() > 0
    params = load_lpips(folder / "backbone.pth", folder / "linear.pth", "alex")
    a, b = (x[:16].astype(np.float32) / 127.5 - 1 for x in (images, hr))
    np.testing.assert_allclose(found[:16], LPIPS("alex").apply({"params": params}, a, b), rtol=1e-4)
    np.testing.assert_allclose(distance(hr, hr), 0, atol=1e-9)
    np.testing.assert_allclose(distance(hr, images), found, rtol=1e-4)
    with pytest.raises(UserError, match="too small for LPIPS-alex"):
        distance(pictures(2, 16), pictures(2, 16))
    with pytest.raises(UserError, match="nowhere.pth does not exist"):
        lpips_distance("alex", folder / "nowhere.pth", folder / "linear.pth")


def test_lpips_is_the_perceptual_distance_where_it_is_given(alex):
    hr = pictures(20, 32)
    images = noisy(hr, 30)
    distance = alex[1]
    row = scorer(hr, lpips={"vgg": lambda a, b: 3 * distance(a, b), "alex": distance}).row(images)
    values = distance(images, hr)
    assert row["perceptual_features"] == "LPIPS AlexNet"
    assert row["perceptual"] == row["lpips_alex"] == pytest.approx(values.mean())
    assert row["lpips_vgg"] == pytest.approx(3 * values.mean())
    np.testing.assert_allclose(row["perceptual_reps"], mean_replicates(values, 30, 4), rtol=1e-6)
    row = scorer(hr, lpips={"vgg": distance}).row(images)
    assert row["perceptual_features"] == "LPIPS VGG" and row["lpips_alex"] is None
