"""COCO-captions folders: every kind of picture and every kind of fault, and splits that do not leak."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmscale.data.coco import PROBLEMS, CocoSource, read_annotations
from ldmscale.data.images import UnreadableImage, fit_image, open_image
from ldmscale.data.records import read_split, write_split
from ldmscale.data.source import SPLITS
from ldmscale.errors import UserError

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real test data is not at {REAL}")


def make(folder, count=20, images=(), annotations=(), **extra):
    """A sound data set of ``count`` images, plus the given entries; returns the annotations path and the folder."""
    pictures = folder / "images"
    pictures.mkdir(exist_ok=True)
    listed, captions = [], []
    for i in range(count):
        Image.new("RGB", (10 + i % 7, 12), (i * 12, 80, 200)).save(pictures / f"{i}.png")
        listed.append({"id": i, "file_name": f"{i}.png", "group": f"g{i // 3}"})
        captions.append({"id": i, "image_id": i, "caption": f"picture {i}"})
    path = folder / "captions.json"
    path.write_text(
        json.dumps(
            {"images": [*listed, *images], "annotations": [*captions, *annotations], "type": "captions", **extra}
        )
    )
    return path, pictures


def open_source(path, pictures, size=8, fit="crop", heldout=3, tuning=2, **settings):
    return CocoSource(path, pictures, size, fit, heldout, tuning, **settings)


def keys(source):
    return {split: [source.example(split, i).key for i in range(source.size(split))] for split in SPLITS}


# ---------------------------------------------------------------- splits


def test_splits_have_the_asked_sizes_and_cover_everything(tmp_path):
    source = open_source(*make(tmp_path))
    assert {split: source.size(split) for split in SPLITS} == {"train": 15, "tuning": 2, "heldout": 3}
    found = [key for split in keys(source).values() for key in split]
    assert sorted(found, key=int) == [str(i) for i in range(20)]


def test_splits_depend_on_the_seed_and_not_on_the_order_of_the_file(tmp_path):
    path, pictures = make(tmp_path)
    first = keys(open_source(path, pictures))
    data = json.loads(path.read_text())
    data["images"].reverse()
    data["annotations"].reverse()
    path.write_text(json.dumps(data))
    assert keys(open_source(path, pictures)) == first
    assert keys(open_source(path, pictures, seed=1)) != first
    # More tuning images do not move the held-out ones.
    assert keys(open_source(path, pictures, tuning=6))["heldout"] == first["heldout"]


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_never_in_two_splits(tmp_path, seed):
    source = open_source(*make(tmp_path, 40), heldout=7, tuning=5, split_by="group", seed=seed)
    groups = {split: {source.group(split, i) for i in range(source.size(split))} for split in SPLITS}
    assert source.size("heldout") == 7 and source.size("tuning") == 5
    assert not groups["train"] & groups["heldout"]
    assert not groups["train"] & groups["tuning"]
    assert not groups["tuning"] & groups["heldout"]
    # Groups have three images: the surplus of a split's last group is in no split, and no more than that is lost.
    assert 40 - 4 <= sum(source.size(split) for split in SPLITS) <= 40


def test_images_without_a_group_value_stand_alone(tmp_path):
    extra = [{"id": 100 + i, "file_name": f"x{i}.png", "group": None} for i in range(10)]
    notes = [{"image_id": 100 + i, "caption": "x"} for i in range(10)]
    path, pictures = make(tmp_path, 0, extra, notes)
    for i in range(10):
        Image.new("RGB", (4, 4)).save(pictures / f"x{i}.png")
    assert open_source(path, pictures, split_by="group").size("train") == 5


def test_too_few_images(tmp_path):
    path, pictures = make(tmp_path)
    with pytest.raises(UserError, match="20 usable images.*18 held-out and 2 tuning"):
        open_source(path, pictures, heldout=18).size("train")
    with pytest.raises(UserError, match="'group'"):
        open_source(path, pictures, heldout=17, split_by="group").size("train")
    assert open_source(path, pictures, heldout=17).size("train") == 1


def test_bad_settings(tmp_path):
    path, pictures = make(tmp_path)
    for settings, words in (
        ({"split_by": "emoji"}, "'emoji', but image 0"),
        ({"fit": "stretch"}, "crop, pad, squash"),
        ({"on_error": "ignore"}, "refuse or skip"),
    ):
        with pytest.raises(UserError, match=words):
            open_source(path, pictures, **settings)
    with pytest.raises(UserError, match="nowhere does not exist"):
        open_source(path, tmp_path / "nowhere")


# ---------------------------------------------------------------- captions and annotation files


def test_captions_are_cleaned(tmp_path):
    notes = [{"image_id": 0, "caption": "  a\n cat \t on\u00a0a mat. "}, {"image_id": 0, "caption": " \n "}]
    notes += [{"image_id": 1, "caption": "half \ud83d pair"}]
    source = open_source(*make(tmp_path, annotations=notes))
    captions = {e.key: e.captions for s in SPLITS for i in range(source.size(s)) for e in [source.example(s, i)]}
    assert captions["0"] == ("picture 0", "a cat on a mat.")
    assert captions["1"][1].encode() == b"half ? pair"
    report = source.check()
    assert report.blank_captions == 1 and not report.problems
    assert "20 of 20 usable; 1 blank captions ignored" in report.sentence()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "no list 'images'"),
        (b'{"images": []}', "no list 'annotations'"),
        (b'{"images": {"a": 1}, "annotations": []}', "no list 'images'"),
        (b'{"images": [3], "annotations": []}', r"images\[0\] is not an object"),
        (b'{"images": [{"id": 1}], "annotations": []}', r"images\[0\] lacks 'file_name'"),
        (b'{"images": [{"id": true, "file_name": "a"}], "annotations": []}', r"images\[0\] has an unusable 'id'"),
        (b'{"images": [], "annotations": [{"image_id": 1}]}', r"annotations\[0\] lacks 'caption'"),
        (b'{"images": [], "annotations": [{"image_id": 1, "caption": null}]}', "has an unusable 'caption'"),
    ],
)
@pytest.mark.parametrize("on_error", ["refuse", "skip"])
def test_files_of_another_shape_are_refused(tmp_path, content, words, on_error):
    path, pictures = make(tmp_path)
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        open_source(path, pictures, on_error=on_error)
    assert str(path) in str(error.value)


def test_absent_annotations(tmp_path):
    with pytest.raises(UserError, match="absent.json cannot be read"):
        read_annotations(tmp_path / "absent.json")


# ---------------------------------------------------------------- faults


def png(width, height):
    """A PNG file that claims a size and holds next to nothing."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def break_missing(path, pictures):
    return "absent.png"


def break_truncated(path, pictures):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(pictures / "cut.jpg")
    raw = (pictures / "cut.jpg").read_bytes()
    (pictures / "cut.jpg").write_bytes(raw[: len(raw) // 2])
    return "cut.jpg"


def break_garbage(path, pictures):
    (pictures / "garbage.jpg").write_bytes(b"<html>404</html>")
    return "garbage.jpg"


def break_empty(path, pictures):
    (pictures / "empty.png").write_bytes(b"")
    return "empty.png"


def break_bomb(path, pictures):
    (pictures / "bomb.png").write_bytes(png(60_000, 60_000))
    return "bomb.png"


def break_parent(path, pictures):
    Image.new("RGB", (4, 4)).save(pictures.parent / "secret.png")
    return "../secret.png"


def break_absolute(path, pictures):
    Image.new("RGB", (4, 4)).save(pictures.parent / "secret.png")
    return str(pictures.parent / "secret.png")


def break_absolute_inside(path, pictures):
    return str(pictures / "0.png")


def break_link(path, pictures):
    Image.new("RGB", (4, 4)).save(pictures.parent / "secret.png")
    (pictures / "link.png").symlink_to("../secret.png")
    return "link.png"


def break_folder_link(path, pictures):
    (pictures.parent / "elsewhere").mkdir()
    Image.new("RGB", (4, 4)).save(pictures.parent / "elsewhere" / "a.png")
    (pictures / "sub").symlink_to("../elsewhere")
    return "sub/a.png"


def break_sibling(path, pictures):
    # "images-more" begins like "images" and is another folder.
    (pictures.parent / "images-more").mkdir()
    Image.new("RGB", (4, 4)).save(pictures.parent / "images-more" / "a.png")
    return "../images-more/a.png"


def break_nul(path, pictures):
    return "a\0b.png"


def break_surrogate(path, pictures):
    return "\ud83d.png"


def break_folder(path, pictures):
    (pictures / "folder.png").mkdir()
    return "folder.png"


def break_loop(path, pictures):
    (pictures / "loop.png").symlink_to("loop.png")
    return "loop.png"


def break_twice(path, pictures):
    return "3.png"


FILE_FAULTS = {
    break_missing: "missing",
    break_folder: "missing",
    break_loop: "missing",
    break_truncated: "unreadable",
    break_garbage: "unreadable",
    break_empty: "unreadable",
    break_bomb: "unreadable",
    break_parent: "outside",
    break_absolute: "outside",
    break_absolute_inside: "outside",
    break_link: "outside",
    break_folder_link: "outside",
    break_sibling: "outside",
    break_nul: "outside",
    break_surrogate: "outside",
    break_twice: "duplicate file",
}


@pytest.mark.parametrize("fault", FILE_FAULTS, ids=lambda fault: fault.__name__)
def test_a_bad_file_is_named_and_refused_or_skipped(tmp_path, fault):
    path, pictures = make(tmp_path, 20)
    name = fault(path, pictures)
    path, pictures = make(tmp_path, 20, [{"id": 77, "file_name": name}], [{"image_id": 77, "caption": "bad"}])
    kind = FILE_FAULTS[fault]
    with pytest.raises(UserError) as error:
        open_source(path, pictures).size("train")
    assert f"1 {PROBLEMS[kind]} (" in str(error.value) and "\n" not in str(error.value)
    source = open_source(path, pictures, on_error="skip")
    assert source.check().counts == {kind: 1} and source.check().problems[kind] == [name]
    assert source.check().usable == 20
    assert "77" not in [key for split in keys(source).values() for key in split]


@pytest.mark.parametrize(
    "images, annotations, counts, usable",
    [
        ([{"id": 50, "file_name": "50.png"}], [], {"no caption": 1}, 20),
        ([{"id": 50, "file_name": "50.png"}], [{"image_id": 50, "caption": " "}], {"no caption": 1}, 20),
        ([{"id": 4, "file_name": "50.png"}], [], {"duplicate id": 1}, 19),
        ([{"id": "4", "file_name": "50.png"}], [], {"duplicate id": 1}, 19),
        ([], [{"image_id": 99, "caption": "x"}, {"image_id": 98, "caption": "x"}], {"unknown image": 2}, 20),
    ],
)
def test_entries_that_do_not_fit_together(tmp_path, images, annotations, counts, usable):
    path, pictures = make(tmp_path, 20, images, annotations)
    Image.new("RGB", (4, 4)).save(pictures / "50.png")
    with pytest.raises(UserError, match=next(PROBLEMS[kind] for kind in counts)):
        open_source(path, pictures).example("train", 0)
    source = open_source(path, pictures, on_error="skip")
    assert source.check().counts == counts and source.check().usable == usable
    assert sum(source.size(split) for split in SPLITS) == usable


def test_the_report_counts_all_and_names_a_few(tmp_path):
    images = [{"id": 100 + i, "file_name": f"gone{i}.png"} for i in range(9)]
    report = open_source(*make(tmp_path, 20, images)).check()
    assert report.counts == {"missing": 9} and report.usable == 20 and report.listed == 29
    assert "9 images that are not in the folder (gone0.png, gone1.png, gone2.png, ...)" in report.sentence()


def test_a_file_that_breaks_after_the_check(tmp_path):
    path, pictures = make(tmp_path)
    source = open_source(path, pictures)
    name = source.example("train", 0).key + ".png"
    (pictures / name).write_bytes(b"")
    with pytest.raises(UserError, match=name):
        source.example("train", 0)


# ---------------------------------------------------------------- pictures


def halves(left, right, size=(40, 20)):
    image = Image.new("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


RED, BLUE = (230, 20, 20), (20, 20, 230)


def save_mpo(path):
    halves(RED, BLUE).save(path, "MPO", save_all=True, append_images=[halves(BLUE, RED)], quality=95)


def save_cmyk(path):
    halves(RED, BLUE).convert("CMYK").save(path, "JPEG", quality=95)


def save_palette(path):
    halves(RED, BLUE).convert("P", palette=Image.Palette.ADAPTIVE).save(path, "PNG")


def save_transparent_palette(path):
    image = Image.new("P", (40, 20), 0)
    image.putpalette([*RED, *BLUE, 0, 255, 0])
    image.paste(1, (20, 0, 40, 20))
    image.paste(2, (0, 0, 40, 2))
    image.save(path, "PNG", transparency=2)


def save_rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn clockwise by a quarter to see it
    halves(RED, BLUE).transpose(Image.Transpose.ROTATE_90).save(path, "JPEG", exif=exif, quality=95)


def save_gif(path):
    halves(RED, BLUE).save(path, "GIF", save_all=True, append_images=[halves(BLUE, RED)])


def save_webp(path):
    halves(RED, BLUE).save(path, "WEBP", quality=95)


@pytest.mark.parametrize(
    "save", [save_mpo, save_cmyk, save_palette, save_transparent_palette, save_rotated, save_gif, save_webp]
)
def test_colour_modes_and_formats(tmp_path, save):
    save(tmp_path / "picture")
    image = open_image(tmp_path / "picture")
    assert image.mode == "RGB" and image.size == (40, 20)
    pixels = np.asarray(image, np.int32)
    assert np.abs(pixels[12, 5] - RED).max() < 25 and np.abs(pixels[12, 35] - BLUE).max() < 25
    if save is save_transparent_palette:
        assert pixels[0, 5].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode, ink", [("L", 64), ("1", 1), ("I;16", 64 * 257), ("I", 64 * 257), ("F", 64 / 255)])
def test_grey_of_any_depth(tmp_path, mode, ink):
    values = np.full((6, 9), ink, {"I;16": np.uint16, "I": np.int32, "F": np.float32}.get(mode, np.uint8))
    image = Image.fromarray(values * 255, "L").convert("1") if mode == "1" else Image.fromarray(values)
    assert image.mode == mode
    image.save(tmp_path / "grey.tif")
    expected = 255 if mode == "1" else 64
    assert np.array_equal(np.asarray(open_image(tmp_path / "grey.tif")), np.full((6, 9, 3), expected))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(tmp_path, mode):
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    image.convert(mode).save(tmp_path / "a.png")
    pixels = np.asarray(open_image(tmp_path / "a.png"))[0, :, 0].astype(int)
    assert pixels[0] == 255 and pixels[1] == 0 and abs(pixels[2] - 127) <= 1


def test_sixteen_bit_png(tmp_path):
    Image.fromarray(np.linspace(0, 65535, 50).astype(np.uint16)[None]).save(tmp_path / "deep.png")
    pixels = np.asarray(open_image(tmp_path / "deep.png"))[0, :, 0].astype(int)
    assert pixels[0] == 0 and pixels[-1] == 255 and np.abs(pixels - np.linspace(0, 255, 50)).max() <= 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_metadata_does_not_cost_the_picture(tmp_path):
    halves(RED, BLUE).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\x01\x00\x12\x01")
    assert open_image(tmp_path / "a.jpg").size == (40, 20)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_beyond_the_guard_are_unreadable(tmp_path, monkeypatch):
    Image.new("RGB", (12, 12)).save(tmp_path / "a.png")
    for limit, words in ((100, "12x12 is more than 100 pixels"), (50, "DecompressionBombError")):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UnreadableImage, match=words):
            open_image(tmp_path / "a.png")


def test_not_an_image(tmp_path):
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(UnreadableImage, match="UnidentifiedImageError"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize("width, height", [(40, 20), (20, 40), (17, 17), (3, 500), (900, 2), (1, 1), (8, 8)])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_any_shape_fits(width, height, fit):
    pixels = fit_image(Image.new("RGB", (width, height), RED), 8, fit)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    red = (np.abs(pixels.astype(int) - RED).max(axis=-1) <= 1).sum()
    if fit == "pad":
        assert red == 8 * max(1, round(8 * min(width, height) / max(width, height)))
        assert ((pixels == 255).all(axis=-1)).sum() == 64 - red
    else:
        assert red == 64


def test_crop_keeps_the_centre_and_squash_keeps_all():
    image = Image.new("RGB", (60, 20), BLUE)
    image.paste(RED, (20, 0, 40, 20))
    assert np.abs(fit_image(image, 10, "crop").astype(int) - RED).max() < 20  # the filter sees a little beyond the edge
    squashed = fit_image(image, 9, "squash").astype(int)
    assert np.abs(squashed[:, 0] - BLUE).max() < 30 and np.abs(squashed[:, 4] - RED).max() < 30


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(fit_image(Image.fromarray(stripes), 8, "crop").astype(int) - 127).max() < 12


# ---------------------------------------------------------------- real data


@real
def test_emoji_split_by_emoji(tmp_path):
    source = CocoSource(REAL / "emoji/captions.json", REAL / "emoji/images", 32, "crop", 100, 60, split_by="emoji")
    assert source.check().sentence().endswith("2979 of 2979 usable; no problems")
    assert (source.size("heldout"), source.size("tuning")) == (100, 60)
    groups = {split: {source.group(split, i) for i in range(source.size(split))} for split in SPLITS}
    assert not groups["train"] & groups["heldout"] and not groups["train"] & groups["tuning"]
    assert not groups["tuning"] & groups["heldout"] and len(groups["train"]) > 1_200
    write_split(tmp_path, source, "heldout", 100, 64)
    records = read_split(tmp_path, "heldout")
    assert records.images.shape == (100, 32, 32, 3)
    assert all(len(captions) == 3 for captions in records.captions)
    assert records.images[:, 0, 0].mean() > 240  # emoji on white


@real
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_coco_mini(fit):
    source = CocoSource(REAL / "coco_mini/captions.json", REAL / "coco_mini/images", 64, fit, 30, 20)
    assert {split: source.size(split) for split in SPLITS} == {"train": 108, "tuning": 20, "heldout": 30}
    examples = [source.example("heldout", i) for i in range(30)]
    assert all(example.image.shape == (64, 64, 3) and len(example.captions) >= 5 for example in examples)
    assert all(text == " ".join(text.split()) and text for example in examples for text in example.captions)
    assert np.stack([example.image for example in examples]).std() > 30


@real
@pytest.mark.parametrize("name, count", [("captions_val2014_5k", 25_021), ("captions_val2017", 25_014)])
def test_official_annotation_files(name, count, tmp_path):
    path = REAL / "coco_captions" / f"{name}.json"
    images, captions = read_annotations(path)
    assert len(images) == 5_000 and len(captions) == count
    assert not any(entry["caption"] != " ".join(entry["caption"].split()) for entry in captions)
    source = CocoSource(path, tmp_path, 64, "crop", 100, 100)
    with pytest.raises(UserError, match=r"0 of 5000 usable; 5000 images that are not in the folder \("):
        source.size("train")
    with pytest.raises(UserError, match="0 usable images"):
        CocoSource(path, tmp_path, 64, "crop", 100, 100, on_error="skip").size("train")


@real
def test_dreambooth_photos_open():
    photos = sorted((REAL / "dreambooth").rglob("*.jpg"))
    assert len(photos) >= 30
    for photo in photos:
        assert open_image(photo).mode == "RGB"
