"""Patches of folders of photos: fixed by seed and name, from every kind of file, with every fault named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmscale.data.images import open_image
from ldmscale.data.patches import Patch, Patches, crops, image_names, train_crop
from ldmscale.errors import UserError

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "photos_hr" / "HR"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real photos are not at {REAL}")


def coordinates(height, width, shift=0):
    """uint8 [height,width,3] that tells row (red) and column (green)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.full_like(x, shift)], axis=-1).astype(np.uint8)


def make(folder, count=4, height=40, width=60):
    for i in range(count):
        Image.fromarray(coordinates(height + i, width, i)).save(folder / f"{i}.png")
    return folder


def all_of(patches):
    return [patches.read(i) for i in range(len(patches))]


# ---------------------------------------------------------------- which patches


def test_patches_are_crops_where_they_say(tmp_path):
    patches = Patches(make(tmp_path), 16, 5, 0)
    assert len(patches) == 20 and patches.files == ("0.png", "1.png", "2.png", "3.png")
    assert [p.file for p in patches.patches] == [f"{i}.png" for i in range(4) for _ in range(5)]
    for patch, crop in zip(patches.patches, all_of(patches), strict=True):
        assert crop.shape == (16, 16, 3) and crop.dtype == np.uint8
        assert crop[0, 0].tolist() == [patch.top, patch.left, int(patch.file[0])]
        assert crop[-1, -1].tolist() == [patch.top + 15, patch.left + 15, int(patch.file[0])]


def test_patches_follow_from_seed_and_name_alone(tmp_path):
    first = Patches(make(tmp_path), 16, 5, 0).patches
    assert Patches(tmp_path, 16, 5, 0).patches == first
    assert Patches(tmp_path, 16, 5, 1).patches != first
    (tmp_path / "00.png").write_bytes((tmp_path / "0.png").read_bytes())  # another name, another place
    both = Patches(tmp_path, 16, 5, 0).patches
    assert {(p.top, p.left) for p in both[:5]}.isdisjoint((p.top, p.left) for p in both[5:10])
    (tmp_path / "00.png").unlink()
    (tmp_path / "0.png").unlink()
    Image.fromarray(coordinates(50, 50)).save(tmp_path / "aa.png")
    left = [p for p in Patches(tmp_path, 16, 5, 0).patches if p.file != "aa.png"]
    assert left == [p for p in first if p.file != "0.png"]


def test_reading_in_any_order(tmp_path):
    patches = Patches(make(tmp_path), 16, 3, 0)
    forward = all_of(patches)
    backward = [patches.read(i) for i in reversed(range(len(patches)))][::-1]
    np.testing.assert_array_equal(forward, backward)
    patches.read(0)[:] = 0  # the caller's own copy
    np.testing.assert_array_equal(patches.read(0), forward[0])


def test_every_place_occurs_and_as_often(tmp_path):
    make(tmp_path, 1, 19, 18)
    found = [(p.top, p.left) for p in Patches(tmp_path, 16, 3000, 0).patches]
    counts = np.array([found.count((top, left)) for top in range(4) for left in range(3)])
    assert counts.sum() == 3000 and counts.min() > 190 and counts.max() < 320


def test_an_image_of_the_patches_size(tmp_path):
    make(tmp_path, 1, 16, 16)
    patches = Patches(tmp_path, 16, 2, 0)
    assert patches.patches == (Patch("0.png", 0, 0),) * 2
    np.testing.assert_array_equal(patches.read(1), coordinates(16, 16))


def test_other_files_are_not_images(tmp_path):
    make(tmp_path, 2)
    for name in ("CREDITS.tsv", "notes.txt", ".hidden.png", "Thumbs.db"):
        (tmp_path / name).write_text("no")
    (tmp_path / "below.png").mkdir()
    (tmp_path / "below.png" / "c.png").write_text("no")
    Image.fromarray(coordinates(40, 40)).save(tmp_path / "UPPER.JPG", "JPEG")
    assert image_names(tmp_path) == ["0.png", "1.png", "UPPER.JPG"]
    assert Patches(tmp_path, 16, 1, 0).files == ("0.png", "1.png", "UPPER.JPG")


# ---------------------------------------------------------------- every kind of file


def upright(height=40, width=60):
    image = np.full((height, width, 3), (200, 30, 30), np.uint8)
    image[:, width // 2 :] = (30, 30, 200)
    return Image.fromarray(image)


def save_mpo(path):
    upright().save(path, "MPO", save_all=True, append_images=[upright()], quality=95)


def save_rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright().transpose(Image.Transpose.ROTATE_90).save(path, "JPEG", exif=exif, quality=95)


KINDS = {
    "rgb.png": lambda path: upright().save(path),
    "rgba.png": lambda path: upright().convert("RGBA").save(path),
    "palette.png": lambda path: upright().convert("P", palette=Image.Palette.ADAPTIVE).save(path),
    "cmyk.jpg": lambda path: upright().convert("CMYK").save(path, quality=95),
    "stereo.jpg": save_mpo,
    "turned.jpg": save_rotated,
    "photo.webp": lambda path: upright().save(path, quality=95),
    "grey.png": lambda path: upright().convert("L").save(path),
    "deep.png": lambda path: Image.fromarray(np.asarray(upright().convert("L")).astype(np.uint16) * 257).save(path),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file(tmp_path, name):
    KINDS[name](tmp_path / name)
    patches = Patches(tmp_path, 40, 8, 0)
    assert {p.top for p in patches.patches} == {0}  # upright: 40 high, 60 wide
    expected = np.asarray(upright().convert("L").convert("RGB") if name in ("grey.png", "deep.png") else upright())
    for patch, crop in zip(patches.patches, all_of(patches), strict=True):
        wanted = expected[:, patch.left : patch.left + 40].astype(int)
        assert np.median(np.abs(crop.astype(int) - wanted)) <= 6 and crop.shape == (40, 40, 3)


# ---------------------------------------------------------------- faults


def test_faults_are_refused_by_name_or_skipped(tmp_path):
    make(tmp_path, 2)
    Image.fromarray(coordinates(15, 200)).save(tmp_path / "low.png")
    Image.fromarray(coordinates(30, 12)).save(tmp_path / "thin.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(UserError) as error:
        Patches(tmp_path, 16, 3, 0)
    message = str(error.value)
    assert "4 images that cannot be read (broken.png: " in message and "\n" not in message
    assert "2 images that are too small (low.png: 200 x 15 pixels, a patch needs 16 of both, thin.png" in message
    assert "set on_error to skip" in message
    patches = Patches(tmp_path, 16, 3, 0, on_error="skip")
    assert patches.files == ("0.png", "1.png") and len(patches) == 6
    assert {kind: len(names) for kind, names in patches.problems.items()} == {"unreadable": 4, "small": 2}
    for name in ("low.png", "thin.png", "broken.png", "page.jpg", "empty.png", "gone.png"):
        (tmp_path / name).unlink()
    assert Patches(tmp_path, 16, 3, 0).patches == patches.patches
    assert Patches(tmp_path, 16, 3, 0).sentence().endswith("no problems")


def test_folders_without_anything_to_use(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        Patches(tmp_path / "nowhere", 16, 1, 0)
    with pytest.raises(UserError, match="it holds no images"):
        Patches(tmp_path, 16, 1, 0)
    make(tmp_path, 5)
    with pytest.raises(UserError, match="none of its 5 images is usable: .* 5 images that are too small .*, [.][.][.]"):
        Patches(tmp_path, 64, 1, 0, on_error="skip")


def test_bad_settings(tmp_path):
    make(tmp_path)
    for settings, words in (
        ((16, 1, 0, "ignore"), "refuse or skip"),
        ((0, 1, 0), "must be at least 1"),
        ((16, 0, 0), "0 patches per image"),
    ):
        with pytest.raises(UserError, match=words):
            Patches(tmp_path, *settings)


def test_files_that_change_after_the_check(tmp_path):
    patches = Patches(make(tmp_path, 2), 16, 20, 0)
    Image.fromarray(coordinates(16, 16)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match="0.png was larger a moment ago"):
        all_of(patches)
    with pytest.raises(UserError, match="1.png could be read a moment ago and cannot any more"):
        patches.read(20)


# ---------------------------------------------------------------- training crops


def test_training_crops_are_pieces_of_the_image_mirrored_half_the_time():
    image = coordinates(40, 60, 7)
    mirrored, places = 0, set()
    for index in range(400):
        crop = train_crop(image, 16, 3, index)
        assert crop.shape == (16, 16, 3) and crop.dtype == np.uint8 and crop.flags.c_contiguous
        flip = crop[0, 0, 1] > crop[0, 1, 1]
        straight = crop[:, ::-1] if flip else crop
        top, left = straight[0, 0, :2].tolist()
        np.testing.assert_array_equal(straight, image[top : top + 16, left : left + 16])
        mirrored += flip
        places.add((top, left))
    assert 160 < mirrored < 240
    assert len(places) > 300 and {0, 24} <= {top for top, _ in places} and {0, 44} <= {left for _, left in places}


def test_training_crops_depend_on_seed_and_index_alone():
    image = coordinates(60, 60)
    crops = [train_crop(image, 16, 0, i) for i in range(30)]
    np.testing.assert_array_equal([train_crop(image, 16, 0, i) for i in reversed(range(30))][::-1], crops)
    assert len({crop.tobytes() for crop in crops}) > 25
    assert not np.array_equal([train_crop(image, 16, 1, i) for i in range(30)], crops)


@pytest.mark.parametrize("name", ["turned.jpg", "deep.png", "rgb.png"])
def test_training_crops_of_a_files_bytes(tmp_path, name):
    KINDS[name](tmp_path / name)
    pixels = np.asarray(open_image(tmp_path / name))
    for index in range(5):
        crop = train_crop((tmp_path / name).read_bytes(), 24, 0, index)
        np.testing.assert_array_equal(crop, train_crop(pixels, 24, 0, index))


def test_training_images_that_cannot_be_used():
    with pytest.raises(UserError, match="training image 4 has 60 x 15 pixels; a crop needs at least 16"):
        train_crop(coordinates(15, 60), 16, 0, 4)
    with pytest.raises(UserError, match="training image 4 cannot be read: UnidentifiedImageError"):
        train_crop(b"<html>404</html>", 16, 0, 4)


# ---------------------------------------------------------------- real photos


@real
def test_real_photos():
    patches = Patches(REAL, 512, 30, 0)
    assert not patches.problems and len(patches.files) == 28 and len(patches) == 840
    assert len(set(patches.patches)) > 830
    for index in (0, 29, 30, 839):
        patch = patches.patches[index]
        box = (patch.left, patch.top, patch.left + 512, patch.top + 512)
        crop = patches.read(index)
        np.testing.assert_array_equal(crop, np.asarray(Image.open(REAL / patch.file).convert("RGB").crop(box)))
        assert crop.std() > 10


def test_crops_are_so_many_and_about_as_many_of_each_photo(tmp_path):
    found = crops(make(tmp_path), 16, 10, seed=3)
    assert found.shape == (10, 16, 16, 3) and found.dtype == np.uint8
    assert np.unique(found[:, 0, 0, 2], return_counts=True)[1].tolist() == [3, 2, 3, 2]
    assert len(np.unique(found.reshape(10, -1), axis=0)) == 10
    assert np.array_equal(found, crops(tmp_path, 16, 10, seed=3)) and (found != crops(tmp_path, 16, 10, seed=4)).any()
    with pytest.raises(UserError, match="3.png: 60 x 43 pixels, a patch needs 42 of both|0.png: 60 x 40"):
        crops(tmp_path, 42, 4, 0)
    with pytest.raises(UserError, match="does not exist"):
        crops(tmp_path / "none", 16, 4, 0)
