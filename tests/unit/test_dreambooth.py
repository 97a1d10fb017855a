"""DreamBooth's dataset as google/dreambooth lays it out: the prompt file that is not Python, and folders of photos."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmscale.data.dreambooth import PROMPT_FILE, name_prompt, prompts, read_prompt_file, subjects
from ldmscale.errors import UserError

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "dreambooth"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real subjects are not at {REAL}")

RED, BLUE = (230, 20, 20), (20, 20, 230)
FORMAT = ".format(unique_token, class_token)"


def prompt_file(classes=("bear_plushie,stuffed animal", "cat2,cat", "clock,clock"), object_lines=None, live_lines=None):
    """A prompt file in the real one's layout."""
    object_lines = object_lines or [f"'a {{0}} {{1}} in the jungle'{FORMAT},", f"'a cube shaped {{0}} {{1}}'{FORMAT}"]
    live_lines = live_lines or [f"'a {{0}} {{1}} in the jungle'{FORMAT},", f"'a {{0}} {{1}} wearing a red hat'{FORMAT}"]
    return "\n".join(
        [
            *("Classes", "", "subject_name,class", *classes, "", "Prompts", ""),
            *("Object Prompts", "", "prompt_list = [", *object_lines, "]", ""),
            *("Live Subject Prompts", "", "prompt_list = [", *live_lines, "]", ""),
        ]
    )


@pytest.fixture
def dataset(tmp_path):
    """A clone's root with two of the three listed subjects, two and three images each."""
    root = tmp_path / "dataset"
    for name, count in (("cat2", 3), ("clock", 2)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (12, 9), (40 * i, 100, 200)).save(root / name / f"{i:02}.jpg", quality=95)
    (root / PROMPT_FILE).write_text(prompt_file())
    (root / "references_and_licenses.txt").write_text("...")
    return tmp_path


# ---------------------------------------------------------------- subjects and prompts


@pytest.mark.parametrize("place", ["", "dataset"])
def test_the_folders_there_are_are_the_subjects(dataset, place):
    (dataset / "dataset" / ".git").mkdir()
    found = subjects(dataset / place, 8)
    assert [(s.name, s.class_name, s.live, s.images.shape) for s in found] == [
        ("cat2", "cat", True, (3, 8, 8, 3)),
        ("clock", "clock", False, (2, 8, 8, 3)),
    ]
    assert all(s.images.dtype == np.uint8 for s in found)
    # In the order of file names.
    assert np.abs(found[0].images[:, 4, 4, 0].astype(int) - [0, 40, 80]).max() < 6
    assert [s.name for s in subjects(dataset / place, 8, names=["clock"])] == ["clock"]


def test_prompts_with_and_without_the_identifier(dataset):
    cat, clock = subjects(dataset, 8)
    assert prompts(cat) == ["a sks cat in the jungle", "a sks cat wearing a red hat"]
    assert prompts(cat, None) == ["a cat in the jungle", "a cat wearing a red hat"]
    assert prompts(clock, "olis") == ["a olis clock in the jungle", "a cube shaped olis clock"]
    assert (name_prompt(clock), name_prompt(clock, None)) == ("a sks clock", "a clock")
    assert prompts(cat, "x{1}")[0] == "a x{1} cat in the jungle"
    for blank in ("", "  "):
        with pytest.raises(UserError, match="identifier is blank"):
            prompts(cat, blank)


def test_a_subject_that_is_left_out_is_not_read(dataset):
    (dataset / "dataset/cat2/00.jpg").write_bytes(b"no")
    assert len(subjects(dataset, 8, names=["clock"])[0].images) == 2


# ---------------------------------------------------------------- the prompt file


@pytest.mark.parametrize(
    "line, template",
    [
        (f"'a {{0}} {{1}} on a rug'{FORMAT},", "a {0} {1} on a rug"),
        (f'  "a {{0}} {{1}} on a rug"{FORMAT}', "a {0} {1} on a rug"),
        ("'a {0} {1} on a rug'.format( unique_token,class_token ),", "a {0} {1} on a rug"),
        ("'a {1} {0} on a rug'.format(class_token, unique_token),", "a {0} {1} on a rug"),
        (f"'a {{0}} {{1}} in Paul\\'s hat'{FORMAT},", "a {0} {1} in Paul's hat"),
        (f'"a {{0}} {{1}} in Paul\'s hat"{FORMAT},', "a {0} {1} in Paul's hat"),
    ],
)
def test_ways_to_write_a_prompt(tmp_path, line, template):
    for newline in ("\n", "\r\n"):
        text = prompt_file(object_lines=[line]).replace("\n", newline)
        (tmp_path / "p").write_bytes(b"\xef\xbb\xbf" + text.encode())
        classes, templates = read_prompt_file(tmp_path / "p")
        assert classes == {"bear_plushie": "stuffed animal", "cat2": "cat", "clock": "clock"}
        assert templates["object"] == (template,) and len(templates["live"]) == 2


@pytest.mark.parametrize(
    "line",
    [
        "'a {0} {1} in the jungle',",  # nothing to fill it with
        f"'a {{0}} in the jungle'{FORMAT}",
        f"'a {{0}} {{1}} {{1}}'{FORMAT}",
        f"'a {{0}} {{1}} {{2}}'{FORMAT}",
        f"'a {{}} {{}}'{FORMAT}",
        "'a {0} {1}'.format(unique_token, exit())",
        "'a {0} {1}'.format(unique_token, colour)",
        f"'a {{0}} {{1}}{FORMAT}",
        "import os",
        "'" + "\\\\" * 5000,  # must not take forever
    ],
)
def test_lines_that_are_no_prompt_are_named(tmp_path, line):
    (tmp_path / "p").write_text(prompt_file(object_lines=[line]))
    number = prompt_file(object_lines=[line]).splitlines().index(line) + 1
    with pytest.raises(UserError, match=f"line {number} ") as error:
        read_prompt_file(tmp_path / "p")
    assert str(tmp_path / "p") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "no table under the heading 'Classes'"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
        (b"prompt_list = [\n]", "line 1 is under none of its headings"),
        (b'{"classes": []}', "line 1 is under none of its headings"),
        (b"Classes\nsubject_name,class\n", "no table under the heading 'Classes'"),
        (b"Classes\ncat2\n", "line 2 is not 'subject,class'"),
        (b"Classes\ncat2,\n", "line 2 is not 'subject,class'"),
        (b"Classes\ncat2,cat\ncat2,dog\n", "line 3 gives 'cat2' a second class"),
        (b"Classes\ncat2,cat\n", "no prompts under the heading 'Object Prompts'"),
        (prompt_file().split("Live")[0].encode(), "no prompts under the heading 'Live Subject Prompts'"),
    ],
)
def test_files_of_another_kind_are_refused(dataset, content, words):
    (dataset / "dataset" / PROMPT_FILE).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(words)) as error:
        subjects(dataset, 8)
    assert PROMPT_FILE in str(error.value) and "\n" not in str(error.value)


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("count, words", [(0, r"holds no image \(\.jpg"), (1, r"holds one image \(00\.jpg\)")])
def test_a_subject_with_too_few_images(dataset, count, words):
    folder = dataset / "dataset" / "clock"
    for path in sorted(folder.iterdir())[count:]:
        path.unlink()
    (folder / "notes.txt").write_text("not an image")
    (folder / "._01.jpg").write_bytes(b"what macOS leaves behind")
    with pytest.raises(UserError, match=words + ".*at least 2") as error:
        subjects(dataset, 8)
    assert str(folder) in str(error.value)
    assert len(subjects(dataset, 8, names=["cat2"])) == 1


def test_a_subject_that_the_prompt_file_lacks(dataset):
    (dataset / "dataset" / "clock").rename(dataset / "dataset" / "watch")
    with pytest.raises(UserError, match="subject 'watch' .* is not in the Classes table of .*" + PROMPT_FILE):
        subjects(dataset, 8)


def test_subjects_and_folders_that_do_not_exist(dataset, tmp_path):
    with pytest.raises(UserError, match="no subject 'bear_plushie' in .*; it holds cat2, clock"):
        subjects(dataset, 8, names=["bear_plushie"])  # listed, but its folder is not there
    with pytest.raises(UserError, match="nowhere does not exist"):
        subjects(tmp_path / "nowhere", 8)
    with pytest.raises(UserError, match="crop, pad, squash"):
        subjects(dataset, 8, fit="stretch")
    (dataset / "dataset" / PROMPT_FILE).unlink()
    with pytest.raises(UserError, match=PROMPT_FILE + " cannot be read"):
        subjects(dataset, 8)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / PROMPT_FILE).write_text(prompt_file())
    with pytest.raises(UserError, match="empty holds no subject"):
        subjects(tmp_path / "empty", 8)


def test_unreadable_images_are_named(dataset):
    folder = dataset / "dataset" / "cat2"
    whole = (folder / "00.jpg").read_bytes()
    (folder / "00.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "02.jpg").write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match=r"2 of 3 images in .*cat2 cannot be read: 00\.jpg \(.*\), 02\.jpg \(") as error:
        subjects(dataset, 8)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- pictures of every kind


def halves():
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (20, 0, 40, 20))
    return image


def save_mpo(path):
    halves().save(path, "MPO", save_all=True, append_images=[halves()], quality=95)


def save_rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    halves().transpose(Image.Transpose.ROTATE_90).save(path, "JPEG", exif=exif, quality=95)


def save_transparent(path):
    image = halves().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 40, 4))
    image.save(path, "PNG")


def save_grey(path):
    halves().convert("L").save(path, "PNG")


def save_sixteen_bit(path):
    Image.fromarray(np.repeat(np.array([[100, 200]], np.uint16) * 257, 10, 1).repeat(10, 0)).save(path, "PNG")


@pytest.mark.parametrize("save", [save_mpo, save_rotated, save_transparent, save_grey, save_sixteen_bit])
def test_pictures_of_every_kind_become_square_colour_images(dataset, save):
    """Whatever the name says: 42 of the original .jpg files are MPO."""
    save(dataset / "dataset" / "clock" / "00.JPG")
    image = subjects(dataset, 10, fit="squash", names=["clock"])[0].images[0].astype(int)
    left, right = (image[5, x] for x in (1, 8))
    wanted = {save_grey: (83, 43), save_sixteen_bit: (100, 200)}.get(save, (RED, BLUE))
    assert np.abs(left - wanted[0]).max() < 25 and np.abs(right - wanted[1]).max() < 25
    if save is save_transparent:
        assert image[0].min() > 200


# ---------------------------------------------------------------- the real subjects


@real
def test_the_real_prompt_file():
    classes, templates = read_prompt_file(REAL / "dataset" / PROMPT_FILE)
    assert len(classes) == 30 and len(set(classes.values())) == 15
    assert classes["wolf_plushie"] == "stuffed animal" and classes["dog8"] == "dog" and "dog4" not in classes
    assert sum(name in ("cat", "dog") for name in classes.values()) == 9  # live subjects
    assert {kind: len(set(found)) for kind, found in templates.items()} == {"object": 25, "live": 25}
    assert templates["object"][:10] == templates["live"][:10] and templates["object"][20:] == templates["live"][20:]
    assert templates["object"][12] == "a {0} {1} with the Eiffel Tower in the background"
    assert templates["live"][13] == "a {0} {1} wearing a black top hat and a monocle"


@real
def test_the_real_subjects():
    found = subjects(REAL, 64)
    assert {s.name: (s.class_name, s.live, len(s.images)) for s in found} == {
        "backpack_dog": ("backpack", False, 5),
        "berry_bowl": ("bowl", False, 6),
        "cat2": ("cat", True, 5),
        "dog6": ("dog", True, 5),
        "duck_toy": ("toy", False, 4),
        "teapot": ("teapot", False, 5),
    }
    for subject in found:
        assert subject.images.shape[1:] == (64, 64, 3) and subject.images.std() > 20
        with_token, without = prompts(subject), prompts(subject, None)
        assert len(set(with_token)) == len(set(without)) == 25
        assert all(
            "sks " in one and one.replace("sks ", "") == two for one, two in zip(with_token, without, strict=True)
        )
        assert all(subject.class_name in text and "{" not in text for text in without)
    assert "wearing a santa hat" in prompts(found[2])[11] and "water" in prompts(found[0])[13]
