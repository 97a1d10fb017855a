"""Pairs through the autoencoder: where their images come from, and the same arrays whatever the chunks."""

import json

import numpy as np
import pytest
from helpers import SCHEMA, merged
from PIL import Image
from small_study import random_weights

from ldmscale.config.study import Study
from ldmscale.data.degradation.settings import PRESETS
from ldmscale.data.superres import (
    evaluation_patches,
    low_resolution,
    training_crops,
    upsample,
    usable_photos,
    write_pngs,
)
from ldmscale.errors import UserError
from ldmscale.generation import pairs
from ldmscale.generation.encode import Encoders
from ldmscale.generation.pairs import encode_pairs, evaluation_pairs, training_pairs
from ldmscale.models.autoencoder import AutoencoderConfig

SIZE, SEED, SCALE = 16, 7, 0.5
SETTINGS = {"degradation": "stablesr", "train": None, "evaluation": None, "evaluation_lr": None, "patches": 2,
            "items": 11, "on_error": "refuse"}  # fmt: skip
OWN = {split: np.random.default_rng(n).integers(0, 256, (n, SIZE, SIZE, 3), np.uint8)
       for split, n in {"train": 5, "heldout": 4}.items()}  # fmt: skip
AE = AutoencoderConfig(**Study(merged("smoke.yaml")).autoencoder_params())


def picture(seed, height, width):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def photos(tmp_path):
    """Photos of several sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(picture(i, 20 + i, 30)).save(folder / f"{i}.png")
    return str(folder)


def nothing(split):
    raise AssertionError(f"the study's own {split} images are not asked for")


def all_of(made):
    hr, lr = zip(*made, strict=True)
    return np.concatenate(hr), np.concatenate(lr)


# ---------------------------------------------------------------- where images come from


def test_the_studys_own_images_are_degraded_by_their_numbers():
    hr, lr = evaluation_pairs(SETTINGS, SIZE, SEED, OWN.get)
    np.testing.assert_array_equal(hr, OWN["heldout"])
    np.testing.assert_array_equal(lr, low_resolution(hr, PRESETS["stablesr"], SEED, "evaluation"))

    hr, lr = all_of(training_pairs(SETTINGS, SIZE, SEED, OWN.get))
    np.testing.assert_array_equal(hr, OWN["train"][np.arange(11) % 5])
    np.testing.assert_array_equal(lr, low_resolution(hr, PRESETS["stablesr"], SEED, "training"))
    # An image seen twice is degraded anew.
    assert not np.array_equal(lr[0], lr[5]) and not np.array_equal(lr[5], lr[10])


# The names that the schema allows.
DEGRADATIONS = json.loads(SCHEMA.read_text())["properties"]["superres"]["anyOf"][1]["properties"]["degradation"]["enum"]


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_the_degradation_is_the_configs(degradation):
    settings = {**SETTINGS, "degradation": degradation}
    hr, lr = evaluation_pairs(settings, SIZE, SEED, OWN.get)
    np.testing.assert_array_equal(lr, low_resolution(hr, PRESETS[degradation], SEED, "evaluation"))
    assert sorted(DEGRADATIONS) == sorted(PRESETS)


def test_photos_are_cropped_and_the_studys_images_left_alone(photos):
    settings = {**SETTINGS, "train": photos, "evaluation": photos}
    hr, lr = evaluation_pairs(settings, SIZE, SEED, nothing)
    np.testing.assert_array_equal(hr, evaluation_patches(photos, SIZE, 2, SEED))
    assert hr.shape == (3 * 2, SIZE, SIZE, 3) and lr.shape == (6, 4, 4, 3)
    hr, lr = all_of(training_pairs(settings, SIZE, SEED, nothing))
    np.testing.assert_array_equal(hr, training_crops(photos, ("0.png", "1.png", "2.png"), SIZE, range(11), SEED))
    np.testing.assert_array_equal(lr, low_resolution(hr, PRESETS["stablesr"], SEED, "training"))


def test_photos_are_checked_once_however_many_the_chunks(photos, monkeypatch):
    checked = []
    monkeypatch.setattr(pairs, "CHUNK", 3)
    monkeypatch.setattr(pairs, "usable_photos", lambda *args: checked.append(args) or usable_photos(*args))
    hr, _ = all_of(training_pairs({**SETTINGS, "train": photos}, SIZE, SEED, nothing))
    assert len(hr) == 11 and len(checked) == 1


def test_given_pairs_are_taken_as_they_are(tmp_path):
    hr = np.stack([picture(i, SIZE, SIZE) for i in range(3)])
    lr = low_resolution(hr, PRESETS["stablesr"], 99, "evaluation")
    write_pngs(tmp_path / "hr", hr)
    write_pngs(tmp_path / "lr", lr)
    settings = {**SETTINGS, "evaluation": str(tmp_path / "hr"), "evaluation_lr": str(tmp_path / "lr")}
    found = evaluation_pairs(settings, SIZE, SEED, nothing)
    np.testing.assert_array_equal(found[0], hr)
    np.testing.assert_array_equal(found[1], lr)


def test_photos_that_cannot_be_used_are_refused_or_skipped_as_the_config_says(photos):
    Image.fromarray(picture(9, 10, 40)).save(f"{photos}/9.png")
    for source in ("train", "evaluation"):
        settings = {**SETTINGS, source: photos}
        draw = evaluation_pairs if source == "evaluation" else lambda *args: all_of(training_pairs(*args))
        with pytest.raises(UserError, match="9.png: 40 x 10 pixels, a patch needs 16"):
            draw(settings, SIZE, SEED, nothing)
        draw({**settings, "on_error": "skip"}, SIZE, SEED, nothing)


def test_images_without_a_low_resolution_are_refused_before_anything_is_read():
    for refuse in (
        lambda: evaluation_pairs(SETTINGS, 18, SEED, nothing),
        lambda: next(training_pairs(SETTINGS, 18, SEED, nothing)),
    ):
        with pytest.raises(UserError, match="images of 18 pixels have no low resolution"):
            refuse()


# ---------------------------------------------------------------- arrays


@pytest.fixture(scope="module")
def encoders():
    return Encoders(AE, batch=8), random_weights(AE, 3)


def encoded(folder, encoders, settings=SETTINGS):
    said = []
    count = encode_pairs(folder, settings, SIZE, SEED, OWN.get, *encoders, SCALE, said.append)
    return count, {path.stem: np.load(path) for path in folder.glob("*.npy")}, said


@pytest.fixture(scope="module")
def whole(tmp_path_factory, encoders):
    folder = tmp_path_factory.mktemp("pairs")
    return folder, *encoded(folder, encoders)


def test_the_arrays_are_what_super_resolution_reads(whole, encoders):
    folder, count, arrays, said = whole
    encoder, weights = encoders
    assert count == 4 and said[-1] == "11/11 training pairs"
    hr, lr = evaluation_pairs(SETTINGS, SIZE, SEED, OWN.get)
    np.testing.assert_array_equal(arrays["hr"], hr)
    np.testing.assert_array_equal(arrays["lr"], lr)
    np.testing.assert_array_equal(arrays["bicubic"], upsample(lr))
    mean, _ = encoder.moments(weights, hr)
    np.testing.assert_array_equal(arrays["reconstruction"], encoder.decode(weights, mean))
    # The condition is scaled as the latents of a U-Net are; the moments that it trains on are not, their task does it.
    np.testing.assert_allclose(arrays["condition"], SCALE * encoder.moments(weights, upsample(lr))[0], rtol=1e-6)
    hr, lr = all_of(training_pairs(SETTINGS, SIZE, SEED, OWN.get))
    mean, std = encoder.moments(weights, hr)
    np.testing.assert_allclose(arrays["train-mean"], mean, atol=1e-5)
    np.testing.assert_allclose(arrays["train-std"], std, rtol=1e-5)
    condition = SCALE * encoder.moments(weights, upsample(lr))[0]
    np.testing.assert_allclose(arrays["train-condition"], condition, atol=1e-5)
    assert arrays["train-mean"].dtype == arrays["train-condition"].dtype == arrays["condition"].dtype == np.float32
    for name in ("hr", "lr"):
        files = sorted((folder / name).iterdir())
        assert [path.name for path in files] == [f"{i:05d}.png" for i in range(4)]
        np.testing.assert_array_equal([np.asarray(Image.open(path)) for path in files], arrays[name])


@pytest.mark.parametrize("chunk", [1, 4, 11])
def test_chunks_make_what_one_go_makes(whole, encoders, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(pairs, "CHUNK", chunk)
    chunks = [hr for hr, _ in training_pairs(SETTINGS, SIZE, SEED, OWN.get)]
    assert [len(hr) for hr in chunks] == [chunk] * (11 // chunk) + [11 % chunk] * bool(11 % chunk)
    _, arrays, _ = encoded(tmp_path, encoders)
    assert arrays.keys() == whole[2].keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, whole[2][name], err_msg=name)


def test_more_items_begin_with_the_fewer(whole, encoders, tmp_path):
    _, arrays, _ = encoded(tmp_path, encoders, {**SETTINGS, "items": 13})
    for name in ("train-mean", "train-std", "train-condition"):
        assert len(arrays[name]) == 13
        np.testing.assert_array_equal(arrays[name][:11], whole[2][name])


def test_a_run_that_ends_early_leaves_no_half_of_an_array(encoders, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "CHUNK", 4)

    def gone(split):
        if split == "train":
            raise UserError("the disk is gone")
        return OWN[split]

    with pytest.raises(UserError, match="the disk is gone"):
        encode_pairs(tmp_path, SETTINGS, SIZE, SEED, gone, *encoders, SCALE, lambda line: None)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        f"{name}.npy" for name in ("hr", "lr", "bicubic", "reconstruction", "condition")
    }
