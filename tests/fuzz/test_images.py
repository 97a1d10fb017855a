"""Image files that are odd, damaged or hostile: taken with the right colours, or left out with name and reason."""

import contextlib
import io
import json
import os
import resource
import struct
import sys
import tarfile
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from ldmscale.data.coco import CocoSource
from ldmscale.data.dreambooth import PROMPT_FILE, subjects
from ldmscale.data.folder import FolderSource
from ldmscale.data.images import FITS, UnreadableImage, fit_image, open_image
from ldmscale.data.patches import Patches, train_crop
from ldmscale.data.source import Unusable
from ldmscale.data.superres import given_pairs
from ldmscale.data.tars import TarSource
from ldmscale.errors import UserError
from ldmscale.metrics.folders import file_features, image_files

EXAMPLES = int(os.environ.get("LDMSCALE_FUZZ", 80))
FUZZ = settings(max_examples=EXAMPLES, derandomize=EXAMPLES == 80, database=None)
Image.init()
RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(0, 256, (4, 5, 3), np.uint8)).resize((24, 20), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module", autouse=True)
def little_memory():
    """What a bomb asks for is refused by the system: this process's address space may grow by 3 GB at most."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (3 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def saved(image, kind, **how):
    """The bytes of ``image`` in a format, or None where PIL cannot write it so."""
    file = io.BytesIO()
    try:
        image.save(file, kind, **how)
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return file.getvalue()


def modes():
    """PHOTO in every mode, by name; those with transparency are seen through on the left."""
    veil = Image.fromarray(np.tile(np.linspace(0, 255, 24).astype(np.uint8), (20, 1)))
    grey = np.asarray(PHOTO.convert("L"))
    clear = PHOTO.convert("RGBA")
    clear.putalpha(veil)
    found = {mode: PHOTO.convert(mode) for mode in ("1", "L", "RGB", "CMYK", "YCbCr", "HSV", "LAB", "RGBX")
             if mode != "LAB"}  # fmt: skip
    found |= {"P": PHOTO.convert("P", palette=Image.Palette.ADAPTIVE), "RGBA": clear, "LA": clear.convert("LA")}
    found |= {"PA": clear.convert("PA"), "RGBa": clear.convert("RGBa")}
    found |= {"I;16": Image.fromarray(grey.astype(np.uint16) * 257), "I": Image.fromarray(grey.astype(np.int32) * 257)}
    return found | {"F": Image.fromarray(grey.astype(np.float32))}


def on_white(image):
    """What PIL's own conversion shows of an image on a white page, RGB."""
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image.convert("RGBA"))
    return page.convert("RGB")


def test_every_format_in_every_mode_has_the_colours_that_pil_gives_it():
    taken = set()
    for kind in sorted(set(Image.SAVE) - {"EPS", "PDF", "SPIDER", "ICNS", "ICO", "AVIF"}):  # the last: sizes, time
        for mode, image in modes().items():
            if not (raw := saved(image, kind)):
                continue
            with contextlib.suppress(OSError), Image.open(io.BytesIO(raw)) as file:
                file.load()
                if file.mode[0] in "IF":
                    want = (PHOTO if mode[0] in "IF" else image).convert("L").convert("RGB")
                else:
                    want = on_white(file) if "A" in file.mode.upper() else file.convert("RGB")
                got = np.asarray(open_image(io.BytesIO(raw)), int)
                off = np.abs(got - np.asarray(want, int)).max()
                assert off <= 1, f"{kind} {mode} as {file.mode}: {off}"
                taken.add((kind, file.mode))
    assert len(taken) > 45 and {mode for _, mode in taken} >= {"1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "F", "I;16"}


def test_colours_survive_where_the_format_can_hold_them():
    for kind in ("PNG", "TIFF", "BMP", "GIF", "PPM", "TGA", "SGI", "PCX", "DDS", "QOI", "IM"):
        off = np.asarray(open_image(io.BytesIO(saved(PHOTO, kind))), int) - np.asarray(PHOTO, int)
        assert np.abs(off).mean() < 4, kind
    cmyk = np.asarray(open_image(io.BytesIO(saved(PHOTO.convert("CMYK"), "JPEG", quality=95))), int)
    assert np.abs(cmyk - np.asarray(PHOTO, int)).mean() < 12  # not the negative


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_colour_that_stands_for_nothing_is_white(mode):
    image = Image.new("RGB", (4, 4), (10, 20, 30))
    image.paste((200, 100, 50), (0, 0, 2, 4))
    image = image.convert(mode, palette=Image.Palette.ADAPTIVE) if mode == "P" else image.convert(mode)
    pixels = np.asarray(open_image(io.BytesIO(saved(image, "PNG", transparency=image.getpixel((0, 0))))))
    assert (pixels[:, :2] == 255).all() and (pixels[:, 2:] < 60).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
def test_of_an_animation_the_first_frame_counts(kind):
    if kind not in Image.SAVE_ALL:
        pytest.skip(f"this PIL writes no {kind}")
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "blue")]
    raw = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(open_image(io.BytesIO(raw)), int) - (255, 0, 0)).max() < 12


def test_every_orientation_and_an_icc_profile():
    turned = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the tag's value -> the transposition that it undoes
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        for value, method in turned.items():
            exif = Image.Exif()
            exif[0x0112] = value
            image = PHOTO if method is None else PHOTO.transpose(method)
            back = open_image(io.BytesIO(saved(image, kind, exif=exif)))
            assert back.size == PHOTO.size and np.abs(np.asarray(back, int) - np.asarray(PHOTO)).mean() < 12
    for profile in (b"", b"nonsense" * 40, b"\0" * 4000):
        raw = saved(PHOTO, "PNG", icc_profile=profile)
        assert np.array_equal(open_image(io.BytesIO(raw)), PHOTO)


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (3, 70_000)])
def test_odd_shapes_fit(size):
    image = open_image(io.BytesIO(saved(Image.new("RGB", size, (9, 99, 199)), "PNG")))
    for fit in FITS:
        pixels = fit_image(image, 8, fit)
        assert pixels.shape == (8, 8, 3) and (pixels[3:5, 3:5] == (9, 99, 199)).all(axis=-1).any()


def peak(work):
    """Bytes by which ``work()`` raised the highest memory use of this process."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")

    def value(key):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

    before = value("VmRSS")
    work()
    return value("VmHWM") - before


def test_a_long_thin_image_takes_no_more_memory_than_a_square_one():
    image = Image.new("RGB", (1, 1_000_000), "red")  # widened first it would be 256 MB
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000_000)
        assert peak(lambda: fit_image(image, 64, "squash")) < 120e6


def test_a_deep_image_takes_no_more_memory_than_a_shallow_one():
    raw = saved(Image.fromarray(np.zeros((3000, 3000), np.uint16)), "TIFF")
    assert peak(lambda: open_image(io.BytesIO(raw))) < 9e6 * 12  # 2 + 1 + 4 + 4 bytes a pixel


# ---------------------------------------------------------------- damage


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, *chunks, depth=8, colour=2):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + body + chunk(b"IEND", b"")


def gif(width, height):
    """A screen of 1 x 1 with a frame that is as large as it says."""
    raw = bytearray(saved(Image.new("L", (1, 1)), "GIF"))
    at = raw.index(b",")
    raw[at + 5 : at + 9] = struct.pack("<HH", width, height)
    return bytes(raw)


ZEROS = zlib.compress(bytes(1 << 27), 9)  # 128 MB in 130 KB
BOMBS = {
    "header.png": png(50_000, 50_000),
    "below.png": png(9_000, 9_000),  # under PIL's guard: allocated, and then there are no pixels
    "text.png": png(4, 4, *[chunk(b"zTXt", b"k\0\0" + ZEROS)] * 40),
    "itxt.png": png(4, 4, chunk(b"iTXt", b"k\0\1\0\0\0" + ZEROS)),
    "profile.png": png(4, 4, chunk(b"iCCP", b"k\0\0" + ZEROS)),
    "frame.gif": gif(60_000, 60_000),
    "lines.ppm": b"P6 60000 60000 255\n",
    "number.ppm": b"P6 " + b"9" * 100_000 + b" 1 255\n",
    "grey.tga": struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, 60_000, 60_000, 24, 0),
    "wide.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
    "layers.psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 60_000, 60_000, 8, 3) + bytes(12),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_bounded_memory_and_time(tmp_path, name):
    (tmp_path / name).write_bytes(BOMBS[name])

    def opened():
        with warnings.catch_warnings(), pytest.raises(UnreadableImage):
            warnings.simplefilter("ignore")
            open_image(tmp_path / name)

    assert peak(opened) < 700e6  # of which PIL takes 4 bytes a pixel where 81 million are within its guard


SHORT = {kind: raw for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "ICO", "PPM", "TGA",
                                "PCX", "QOI", "SGI", "DDS")
         if kind in Image.SAVE and (raw := saved(PHOTO, kind))}  # fmt: skip


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "QOI"])
def test_a_file_that_is_cut_is_whole_or_unreadable(kind):
    raw = SHORT[kind]
    whole = np.asarray(open_image(io.BytesIO(raw)))
    for end in range(0, len(raw), 10):
        try:
            assert np.array_equal(open_image(io.BytesIO(raw[:end])), whole)  # what is lost is no pixel
        except UnreadableImage as error:
            assert "\n" not in str(error)


@FUZZ
@given(kind=st.sampled_from(sorted(SHORT)), edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1,
       max_size=8), cut=st.floats(0, 1.5))  # fmt: skip
def test_flipped_bytes_give_an_image_or_a_reason(kind, edits, cut):
    raw = bytearray(SHORT[kind])
    for place, value in edits:
        raw[int(place**3 * (len(raw) - 1))] = value  # most in the header
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = open_image(io.BytesIO(bytes(raw[: int(cut * len(raw)) + 1])))
        except UnreadableImage as error:
            assert "\n" not in str(error) and str(error)
        else:
            assert image.mode == "RGB" and fit_image(image, 8, "pad").shape == (8, 8, 3)


@FUZZ
@given(head=st.sampled_from([raw[:n] for raw in SHORT.values() for n in (4, 16, 40)]), tail=st.binary(max_size=300))
def test_any_bytes_after_a_sound_beginning(head, tail):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(UnreadableImage):
            assert open_image(io.BytesIO(head + tail)).mode == "RGB"


# ---------------------------------------------------------------- what is no image, in every kind of folder

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/x) (w) file\n%%EOF\n"
GOOD = 12
seen: list[tuple] = []


def _watch(event, arguments):
    if watching and event in ("open", "subprocess.Popen", "os.system", "os.posix_spawn", "os.exec"):
        seen.append((event, arguments[0]))


watching = False
sys.addaudithook(_watch)


@contextlib.contextmanager
def watched(allowed):
    """Asserts that meanwhile no program was started and ``allowed`` says no to none of the files opened."""
    global watching
    seen.clear()
    watching = True
    try:
        yield
    finally:
        watching = False
    for event, name in seen:
        assert event == "open", f"{event} {name}"
        if isinstance(name, (str, bytes, os.PathLike)):
            assert allowed(os.path.realpath(os.fsdecode(name))), name


def hostile(folder):
    """Good images and everything else in a folder -> the names of the bad ones; what must not be read lies beside."""
    folder.mkdir()
    secret = folder.parent / "secret.png"
    PHOTO.save(secret)
    for number in range(GOOD):
        PHOTO.save(folder / f"good{number}.png")
    bad = {"svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "page.png": b"<html>404</html>", "empty.png": b"",
           "cut.png": SHORT["PNG"][:-40], "eps.png": EPS, "pickle.png": b"\x80\x04cos\nsystem\n(S'x'\ntR.",
           "bomb.png": BOMBS["header.png"], "tar.png": bytes(2000)}  # fmt: skip
    for name, raw in bad.items():
        (folder / name).write_bytes(raw)
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "out.png").symlink_to("../secret.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    return [*bad, "pipe.png", "zero.png", "out.png", "gone.png", "loop.png"]


@pytest.fixture
def odd(tmp_path):
    return tmp_path / "images", hostile(tmp_path / "images")


def reading(folder, linked=False):
    """Only what lies in ``folder`` is read, what Python itself loads and, if ``linked``, the image beside it that a
    link leads to."""
    root, secret = os.path.realpath(folder), os.path.realpath(folder.parent / "secret.png")

    def allowed(path):
        if path == secret:
            return linked
        return "/dev/" not in path and (path.startswith(root) or "/lib/" in path)

    return allowed


def refused(make, *said):
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value) and all(text in str(error.value) for text in said), str(error.value)


@pytest.mark.parametrize("kind", ["coco", "folder"])
def test_sources_take_what_is_good_and_name_the_rest(odd, tmp_path, kind):
    folder, bad = odd
    names = [f"good{i}.png" for i in range(GOOD)] + bad
    for name in names:
        (folder / name).with_suffix(".txt").write_text("a photo")
    (folder / "pipe.txt").unlink()
    os.mkfifo(folder / "pipe.txt")
    (tmp_path / "secret.txt").write_text("a secret")
    for name, target in (("good0.txt", "/dev/zero"), ("good1.txt", "../secret.txt")):
        (folder / name).unlink()
        (folder / name).symlink_to(target)
    entries = {"images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
               "annotations": [{"image_id": i, "caption": "a photo"} for i in range(len(names))]}  # fmt: skip
    (folder / "captions.json").write_text(json.dumps(entries))

    def source(on_error):
        if kind == "coco":
            return CocoSource(folder / "captions.json", folder, 8, "crop", 2, 2, on_error=on_error)
        return FolderSource(folder, 8, "crop", 2, 2, on_error, 0)

    with watched(reading(folder)):
        refused(lambda: source("refuse").size("train"), "8 images that cannot be read", "Mend")
        made = source("skip")
        report = made.check()
        pixels = made.example("train", 0).image
    assert np.array_equal(pixels, fit_image(PHOTO, 8, "crop"))
    assert set(bad) <= {name for names in report.problems.values() for name in names}
    lost = 2 if kind == "folder" else 0  # whose captions lead out of the folder
    assert report.usable == GOOD - lost and "a secret" not in str(made._captions)
    assert "EPS files are programs" in report.reasons["eps.png"]


def test_tars_take_what_is_good_and_name_the_rest(tmp_path):
    (tmp_path / "tars").mkdir()
    hostile(tmp_path / "files")
    with tarfile.open(tmp_path / "tars" / "0.tar", "w") as out:
        for path in sorted((tmp_path / "files").iterdir()):
            if path.is_file() and path.name != "out.png":
                for suffix, content in ((".png", path.read_bytes()), (".txt", b"a photo")):
                    info = tarfile.TarInfo(path.stem + suffix)
                    info.size = len(content)
                    out.addfile(info, io.BytesIO(content))
    source = TarSource(tmp_path / "tars", 8, "crop", 2, 2, "skip", 0, tmp_path / "index")
    good, left_out = 0, {}
    with watched(reading(tmp_path / "tars")):
        for number in range(source.size("train")):
            try:
                assert np.array_equal(source.example("train", number).image, fit_image(PHOTO, 8, "crop"))
                good += 1
            except Unusable as found:
                left_out[found.name] = found.why
    assert good == GOOD - 4 and len(left_out) == 8 and "programs" in left_out["0.tar/eps"]


def test_photos_and_pairs_take_what_is_good_and_name_the_rest(odd):
    folder, bad = odd
    bad.remove("out.png")  # photos may be links: a user's own choice of them often is
    with watched(reading(folder, linked=True)):
        patches = Patches(folder, 8, 1, 0, on_error="skip")
        refused(lambda: Patches(folder, 8, 1, 0), f"{len(bad)} images", "cut.png", "Mend")
        refused(lambda: given_pairs(folder, folder, 8), str(folder))
    assert patches.files == tuple(sorted(["out.png", *(f"good{i}.png" for i in range(GOOD))]))
    left_out = [name.split(":")[0] for names in patches.problems.values() for name in names]
    assert sorted(left_out) == sorted(bad)
    for name in set(bad) - {"pipe.png", "zero.png", "gone.png", "loop.png"}:
        refused(lambda name=name: train_crop((folder / name).read_bytes(), 8, 0, 0), "training image 0 cannot be read")


def test_dreambooth_names_what_is_bad(tmp_path):
    (tmp_path / PROMPT_FILE).write_text(
        "Classes\nsubject_name,class\ndog,dog\n\nObject Prompts\n'a {0} {1}'.format(unique_token, class_token)\n"
        "Live Subject Prompts\n'a {0} {1}'.format(unique_token, class_token)\n"
    )
    bad = hostile(tmp_path / "dog")
    bad.remove("out.png")
    with watched(reading(tmp_path, linked=True)):
        refused(lambda: subjects(tmp_path, 8), f"{len(bad)} of {len(bad) + GOOD + 1} images", *bad)
    for name in bad:
        (tmp_path / "dog" / name).unlink()
    assert len(subjects(tmp_path, 8)[0].images) == GOOD + 1


class _Network:
    """In place of clean-fid's: the mean colour, 2,048 times."""

    def __call__(self, batch):
        return batch.mean(dim=(1, 2, 3))[:, None].repeat(1, 2048)


def test_score_names_what_is_bad(odd, monkeypatch):
    torch = pytest.importorskip("torch")
    from ldmscale.metrics.torch_guard import guard_torchvision

    guard_torchvision()
    monkeypatch.setattr("ldmscale.metrics.folders.inception_network", lambda path: (_Network(), torch.device("cpu")))
    folder, bad = odd
    for name in ("gone.png", "loop.png", "pipe.png", "zero.png"):
        refused(lambda: image_files(folder), "no regular file")
        (folder / name).unlink()
    arrays = {"object.npy": np.array([{}], object), "flat.npy": np.zeros((4, 4)), "words.npy": np.full((4, 4, 3), "a"),
              "nan.npy": np.full((4, 4, 3), np.nan), "complex.npy": np.ones((4, 4, 3), complex)}  # fmt: skip
    for name, array in arrays.items():
        np.save(folder / name, array, allow_pickle=True)
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000, 3), }\n"
    (folder / "lying.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + b"x")
    bad = [name for name in bad if (folder / name).exists() and name != "out.png"] + [*arrays, "lying.npy"]
    files = image_files(folder)
    assert len(files) == GOOD + len(bad) + 1  # and the link, which clean-fid follows
    file_features([path for path in files if os.path.basename(path) not in bad], "weights")
    with watched(lambda path: True):
        for name in bad:
            refused(
                lambda name=name: file_features([str(folder / name)], "weights"), name, "cannot be read as an image"
            )
    (folder / "again").symlink_to(folder)
    refused(lambda: image_files(folder), "again", "would count again")


def test_long_texts_in_an_image_are_no_trouble(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "x" * 100_000, zip=True)
    PHOTO.save(tmp_path / "a.png", pnginfo=info)
    assert np.array_equal(open_image(tmp_path / "a.png"), PHOTO)
