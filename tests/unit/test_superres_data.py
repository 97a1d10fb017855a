"""Pairs for super-resolution: crops and their degradations by seed and number, given pairs, files of every kind."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmscale.data.degradation.pipeline import degrade
from ldmscale.data.degradation.settings import PRESETS, REAL_ESRGAN
from ldmscale.data.patches import Patches, train_crop
from ldmscale.data.superres import (
    evaluation_patches,
    given_pairs,
    low_resolution,
    same_content,
    upsample,
    usable_photos,
    write_pngs,
)
from ldmscale.data.superres import training_crops as crops_of_files
from ldmscale.errors import UserError
from ldmscale.metrics.image_quality import psnr_y

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "photos_hr" / "HR"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real photos are not at {REAL}")


def picture(seed, height=48, width=64):
    """Blobs of colour, uint8 [height,width,3]: another picture for every seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def training_crops(folder, size, items, seed, on_error="refuse"):
    return crops_of_files(folder, usable_photos(folder, size, seed, on_error), size, items, seed)


def photos(folder, count=3):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.fromarray(picture(i)).save(folder / f"{i}.png")
    return folder


# ---------------------------------------------------------------- high resolution


def test_evaluation_patches_are_the_fixed_ones(tmp_path):
    patches = Patches(photos(tmp_path), 32, 4, 5)
    found = evaluation_patches(tmp_path, 32, 4, 5)
    assert found.shape == (12, 32, 32, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, [patches.read(i) for i in range(12)])


def test_training_item_i_is_a_crop_of_photo_i_mod_n(tmp_path):
    photos(tmp_path)
    found = training_crops(tmp_path, 32, range(10), 5)
    for item, crop in enumerate(found):
        np.testing.assert_array_equal(crop, train_crop(picture(item % 3), 32, 5, item))
    assert len({crop.tobytes() for crop in found}) == 10
    # In parts, in another order, or a single one.
    np.testing.assert_array_equal(training_crops(tmp_path, 32, range(4, 10), 5), found[4:])
    np.testing.assert_array_equal(training_crops(tmp_path, 32, range(9, -1, -2), 5), found[9::-2])
    assert not np.array_equal(training_crops(tmp_path, 32, range(10), 6), found)


def test_training_leaves_out_what_the_photos_checks_leave_out(tmp_path):
    photos(tmp_path)
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 images that cannot be read .1.png"):
        training_crops(tmp_path, 32, range(4), 0)
    found = training_crops(tmp_path, 32, range(4), 0, on_error="skip")
    for item, crop in enumerate(found):
        np.testing.assert_array_equal(crop, train_crop(picture((0, 2)[item % 2]), 32, 0, item))


@pytest.mark.parametrize("size, right", [(30, "as 32"), (2, "as 4"), (0, "as 4"), (33, "as 32")])
def test_a_size_without_a_low_resolution_is_refused(tmp_path, size, right):
    photos(tmp_path)
    for refuse in (
        lambda: evaluation_patches(tmp_path, size, 1, 0),
        lambda: training_crops(tmp_path, size, range(2), 0),
        lambda: given_pairs(tmp_path, tmp_path, size),
    ):
        with pytest.raises(UserError, match=f"images of {size} pixels .* multiple of 4, {right}$"):
            refuse()


def test_photos_too_small_to_crop_are_refused_in_a_sentence(tmp_path):
    photos(tmp_path)
    for refuse in (lambda: evaluation_patches(tmp_path, 52, 1, 0), lambda: training_crops(tmp_path, 52, range(2), 0)):
        with pytest.raises(
            UserError, match="3 images that are too small .0.png: 64 x 48 pixels, a patch needs 52"
        ) as e:
            refuse()
        assert "\n" not in str(e.value)


# ---------------------------------------------------------------- low resolution


def test_low_resolution_is_drawn_by_item_and_split():
    hr = np.stack([picture(i, 32, 32) for i in range(5)])
    found = low_resolution(hr, REAL_ESRGAN, 7, "evaluation")
    assert found.shape == (5, 8, 8, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(low_resolution(hr[3:], REAL_ESRGAN, 7, "evaluation", first=3), found[3:])
    np.testing.assert_array_equal(found, [degrade(image, REAL_ESRGAN, 7, i) for i, image in enumerate(hr)])
    others = [
        low_resolution(hr, REAL_ESRGAN, 7, "training"),
        low_resolution(hr, REAL_ESRGAN, 8, "evaluation"),
        low_resolution(hr, PRESETS["stablesr"], 7, "evaluation"),
    ]
    for other in others:
        assert all(not np.array_equal(a, b) for a, b in zip(found, other, strict=True))


def test_the_splits_share_no_degradation():
    """The same image as item 0..99 of each: no two alike, within a split or between them."""
    image = picture(0, 32, 32)
    sets = [low_resolution([image] * 100, REAL_ESRGAN, 0, split) for split in ("training", "evaluation")]
    assert len({lr.tobytes() for lrs in sets for lr in lrs}) == 200


def test_images_without_a_low_resolution_are_refused():
    with pytest.raises(UserError, match="30 pixels high and 30 wide; both must be multiples of 4"):
        low_resolution(np.zeros((1, 30, 30, 3), np.uint8), REAL_ESRGAN, 0, "training")
    with pytest.raises(UserError, match="must be uint8"):
        low_resolution(np.zeros((1, 32, 32, 3)), REAL_ESRGAN, 0, "training")


def test_upsampling_is_pytorchs_bicubic():
    import torch

    lr = np.random.default_rng(0).integers(0, 256, (2, 7, 9, 3)).astype(np.uint8)
    found = upsample(lr)
    assert found.shape == (2, 28, 36, 3) and found.dtype == np.uint8
    x = torch.from_numpy(lr.transpose(0, 3, 1, 2).copy()).double() / 255
    wanted = torch.nn.functional.interpolate(x, scale_factor=4, mode="bicubic", align_corners=False)
    wanted = (wanted.clamp(0, 1) * 255).numpy().transpose(0, 2, 3, 1)
    assert np.abs(found - wanted).max() <= 0.5 + 1e-3


def test_upsampling_a_mean_is_close_to_what_was_averaged():
    hr = np.stack([picture(i, 64, 64) for i in range(4)])
    lr = hr.reshape(4, 16, 4, 16, 4, 3).mean((2, 4)).round().astype(np.uint8)
    flat = np.repeat(np.repeat(lr, 4, axis=1), 4, axis=2)
    assert (psnr_y(upsample(lr), hr) > psnr_y(flat, hr) + 3).all()


# ---------------------------------------------------------------- given pairs


def given(folder, count=4, size=128):
    """Folders of HR and LR of ``count`` pictures -> their paths and arrays."""
    hr = np.stack([picture(i, size, size) for i in range(count)])
    lr = low_resolution(hr, PRESETS["stablesr"], 0, "evaluation")
    for name, images in (("hr", hr), ("lr", lr)):
        write_pngs(folder / name, images)
    return folder / "hr", folder / "lr", hr, lr


def test_given_pairs_are_read_by_name(tmp_path):
    hr_folder, lr_folder, hr, lr = given(tmp_path)
    (hr_folder / "notes.txt").write_text("no image")
    found = given_pairs(hr_folder, lr_folder, 128)
    np.testing.assert_array_equal(found[0], hr)
    np.testing.assert_array_equal(found[1], lr)


def refused(tmp_path, words):
    with pytest.raises(UserError, match=words) as error:
        given_pairs(tmp_path / "hr", tmp_path / "lr", 128)
    assert "\n" not in str(error.value)


def test_pairs_that_are_none_are_named(tmp_path):
    hr_folder, lr_folder, hr, lr = given(tmp_path)
    (lr_folder / "00002.png").unlink()
    (lr_folder / "00003.png").unlink()
    refused(tmp_path, "lr has no file 00002.png, which .*hr has: .* [(]2 lack their partner")
    Image.fromarray(lr[2]).save(lr_folder / "00002.png")
    (hr_folder / "00003.png").unlink()
    Image.fromarray(lr[2]).save(lr_folder / "a.png")
    refused(tmp_path, "hr has no file a.png, which .*lr has")
    (lr_folder / "a.png").unlink()
    given_pairs(hr_folder, lr_folder, 128)
    Image.fromarray(lr[2][:, :31]).save(lr_folder / "00002.png")
    refused(tmp_path, "lr/00002.png has 31 x 32 pixels; pairs of 128 pixels need 32 x 32 of it")
    Image.fromarray(picture(2, 132, 132)).save(hr_folder / "00001.png")
    refused(tmp_path, "hr/00001.png has 132 x 132 pixels; pairs of 128 pixels need 128 x 128 of it")
    (hr_folder / "00001.png").write_bytes(b"cut short")
    refused(tmp_path, "hr/00001.png cannot be read as an image: UnidentifiedImageError")
    for path in hr_folder.iterdir():
        path.unlink()
    refused(tmp_path, "hr holds no images")
    hr_folder.rmdir()
    refused(tmp_path, "hr does not exist")


def test_pairs_of_different_content_are_named(tmp_path):
    hr_folder, lr_folder, hr, lr = given(tmp_path)
    Image.fromarray(lr[2]).save(lr_folder / "00001.png")
    refused(tmp_path, re.escape("lr/00001.png does not show what "))
    Image.fromarray(lr[1][::-1]).save(lr_folder / "00001.png")
    refused(tmp_path, "hr/00001.png shows: the files of a name .* must be one picture")


@pytest.mark.parametrize("preset", PRESETS)
def test_content_is_recognised_through_degradation_and_not_otherwise(preset):
    hr = np.stack([picture(i, 128, 128) for i in range(30)])
    lr = low_resolution(hr, PRESETS[preset], 1, "evaluation")
    assert all(same_content(a, b) for a, b in zip(hr, lr, strict=True))
    taken = [same_content(a, b) for i, a in enumerate(hr) for j, b in enumerate(lr) if i != j]
    assert np.mean(taken) < 0.1


def test_where_nothing_can_be_told_the_pair_is_taken():
    flat, noise = np.full((128, 128, 3), 90, np.uint8), np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    assert same_content(flat, noise.astype(np.uint8))
    assert same_content(picture(0, 124, 124), picture(1, 31, 31))
    # But a flat small image is none of a picture, and one of another picture none either.
    assert not same_content(picture(0, 128, 128), flat[:32, :32])
    assert not same_content(picture(0, 128, 128), picture(1, 32, 32))


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "MPO"])
def test_given_pairs_of_any_kind_of_file(tmp_path, mode):
    grey = np.asarray(Image.fromarray(picture(0, 32, 32)).convert("L"))
    for folder, image in (("hr", grey), ("lr", grey.reshape(8, 4, 8, 4).mean((1, 3)).astype(np.uint8))):
        path = tmp_path / folder / "x.png"
        path.parent.mkdir()
        if mode == "I;16":
            Image.fromarray(image.astype(np.uint16) * 257).save(path)
        elif mode == "MPO":
            one = Image.fromarray(image).convert("RGB")
            one.save(path.with_suffix(".jpg"), "MPO", save_all=True, append_images=[one], quality=98)
        else:
            Image.fromarray(image).convert(mode).save(path)
    hr, lr = given_pairs(tmp_path / "hr", tmp_path / "lr", 32)
    assert hr.shape == (1, 32, 32, 3) and lr.shape == (1, 8, 8, 3)
    assert np.abs(hr[0].astype(int) - grey[..., None]).max() <= (12 if mode == "MPO" else 0)
    # Photos to be cropped come through the same door.
    np.testing.assert_array_equal(evaluation_patches(tmp_path / "hr", 32, 1, 0), hr)
    crops = training_crops(tmp_path / "hr", 32, range(6), 0)
    assert all((crop == hr[0]).all() or (crop == hr[0, :, ::-1]).all() for crop in crops)


# ---------------------------------------------------------------- files


def test_pngs_are_numbered_whole_and_no_more_than_there_are(tmp_path):
    images = np.stack([picture(i, 8, 12) for i in range(5)])
    write_pngs(tmp_path / "new" / "hr", images)
    folder = tmp_path / "new" / "hr"
    assert sorted(path.name for path in folder.iterdir()) == [f"{i:05d}.png" for i in range(5)]
    for name in (".00001-abc.png", "notes.txt", "photo.png", "123456.png"):
        (folder / name).write_text("left")
    write_pngs(folder, images[::-1][:3])
    assert sorted(p.name for p in folder.iterdir()) == ["00000.png", "00001.png", "00002.png", "notes.txt", "photo.png"]
    for i in range(3):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"{i:05d}.png")), images[4 - i])


# ---------------------------------------------------------------- real photos


@real
def test_real_photos_make_recognisable_pairs():
    hr = evaluation_patches(REAL, 256, 1, 0)[:12]
    lr = low_resolution(hr, REAL_ESRGAN, 0, "evaluation")
    assert lr.shape == (12, 64, 64, 3)
    assert all(same_content(a, b) for a, b in zip(hr, lr, strict=True))
    mixed = [same_content(a, b) for a, b in zip(hr, np.roll(lr, 1, axis=0), strict=True)]
    assert sum(mixed) <= 4
    quality = psnr_y(upsample(lr), hr)
    assert 12 < quality.min() and quality.max() < 40
