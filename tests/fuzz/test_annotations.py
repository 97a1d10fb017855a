"""Annotation files, caption files, tars and record shards of any content: taken, counted or refused in a sentence;
nothing outside their folders is opened."""

import io
import json
import os
import sys
import tarfile
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from helpers import REPO
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from planning import examples
from test_config_fuzz import ODD, at, one_of, places

from ldmscale.data.coco import CocoSource
from ldmscale.data.records import read_split, write_split
from ldmscale.data.source import SPLITS, Unusable
from ldmscale.data.sources import open_source
from ldmscale.errors import UserError

COUNTS = {"train": None, "tuning": 1, "heldout": 1}
COUNT = 8
WATCHED = []  # what is opened while it holds a list


def _watch(event, arguments):
    if WATCHED and event in ("open", "os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link"):
        if isinstance(arguments[0], str | bytes | os.PathLike):
            WATCHED[0].append(os.path.realpath(os.fsdecode(arguments[0])))


sys.addaudithook(_watch)  # for good: it does nothing while WATCHED is empty


@contextmanager
def only_inside(place):
    """What is opened meanwhile must lie in ``place``, in its index, or be Python's own."""
    WATCHED.append([])
    try:
        yield
    finally:
        opened = WATCHED.pop()
    own = [place, place.parent / "index", sys.prefix, sys.base_prefix, REPO / "lib"]
    astray = {path for path in opened if not path.startswith(tuple(map(os.path.realpath, own)))}
    assert not astray


@pytest.fixture
def place(tmp_path):
    """A folder of images to read, beside a folder that nothing is to open."""
    for name in ("data", "outside"):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(COUNT):
            (folder / f"{number}.png").write_bytes(PNG[number])
    (tmp_path / "outside" / "secret.txt").write_text("a secret")
    return tmp_path / "data"


def png(number, size=4):
    file = io.BytesIO()
    Image.new("RGB", (size, size), (number, 0, 0)).save(file, "png")
    return file.getvalue()


PNG = [png(number) for number in range(COUNT)]


def taken(place, make):
    """Every example of the source that ``make()`` opens, by split; or the sentence that refuses it."""
    found = {split: [] for split in SPLITS}
    try:
        with only_inside(place):
            source = make()
            for split in SPLITS:
                for number in range(source.size(split)):
                    with suppress(Unusable):
                        found[split].append(source.example(split, number))
    except UserError as error:
        assert str(error).isprintable(), str(error)
        return str(error)
    for example in sum(found.values(), []):
        assert example.image.shape == (8, 8, 3) and example.captions and all(example.captions)
        "".join(example.captions).encode()
    keys = [example.key for example in sum(found.values(), [])]
    assert len(keys) == len(set(keys))
    return found


# ---------------------------------------------------------------- COCO annotations

SOUND = {
    "images": [{"id": n, "file_name": f"{n}.png", "group": n // 2} for n in range(COUNT)],
    "annotations": [{"id": n, "image_id": n, "caption": f"picture {n}"} for n in range(COUNT)],
}
NAMES = ["../outside/0.png", "/etc/passwd", "1/../../outside/1.png", "out.png", "out/2.png", "loop.png", "zero", "fifo",
         "a\nb.png", "a\x1b[31m.png", "x" * 300, "..\\outside\\0.png", "~/0.png", "~", "", ".", "..", "\0", "\ud800",
         "C:\\0.png", "file:///etc/passwd", "0.png/", "./", "dev.png"]  # fmt: skip
VALUES = [
    *filter(lambda v: type(v) in (type(None), bool, int, float, str, list, dict), ODD),
    *NAMES,
    3,
    "3",
    [[1]] * 50,
]


@st.composite
def annotations(draw):
    """The bytes of an annotations file with one to four changes of its values, then perhaps of its bytes."""
    data = json.loads(json.dumps(SOUND))
    for _ in range(draw(st.integers(1, 4))):
        path = one_of(draw, list(places(data)) or [()])
        if not path:
            break
        parent, key = at(data, path[:-1]), path[-1]
        how = one_of(draw, ["set", "set", "drop", "again", "text"])
        if how == "set":
            parent[key] = one_of(draw, VALUES)
        elif how == "drop":
            del parent[key]
        elif how == "again" and isinstance(parent, list):
            parent.append(json.loads(json.dumps(parent[key])))
        else:
            parent[key] = draw(st.text(st.characters(), max_size=9))
    try:
        content = json.dumps(data).encode()
    except ValueError:  # a number of more digits than Python writes
        content = b'{"images": [{"id": ' + b"9" * 5000 + b"}]}"
    return spoilt(draw, content) if draw(st.booleans()) else content


def spoilt(draw, content):
    """``content`` with a byte changed, cut short, with bytes put in, or in another encoding."""
    where = draw(st.integers(0, len(content) - 1))
    how = one_of(draw, ["flip", "cut", "insert", "bom", "utf-16", "deep"])
    if how == "flip":
        return content[:where] + bytes([content[where] ^ draw(st.integers(1, 255))]) + content[where + 1 :]
    if how == "cut":
        return content[:where]
    if how == "insert":
        return content[:where] + draw(st.binary(min_size=1, max_size=9)) + content[where:]
    if how == "bom":
        return b"\xef\xbb\xbf" + content
    if how == "utf-16":
        return content.decode("latin-1").encode("utf-16")
    return content[:where] + b"[" * 20_000 + content[where:]


@examples(30)
@given(content=annotations(), on_error=st.sampled_from(["refuse", "skip"]), by=st.sampled_from([None, "group", "id"]))
def test_annotations_of_any_content(place, content, on_error, by):
    path = place / "captions.json"
    path.write_bytes(content)
    said = taken(place, lambda: CocoSource(path, place, 8, "crop", 1, 1, split_by=by, on_error=on_error))
    assert isinstance(said, dict) or str(path) in said


def links(place):
    """Files that are none, and links out of the folder."""
    outside = place.parent / "outside"
    (place / "out.png").symlink_to(outside / "0.png")
    (place / "out").symlink_to(outside)
    (place / "loop.png").symlink_to(place / "loop.png")
    (place / "zero").symlink_to("/dev/zero")
    os.mkfifo(place / "fifo")
    (place / "dev.png").mkdir()


def test_names_that_lead_out_of_the_folder_are_counted_and_never_opened(place):
    links(place)
    images = [{"id": f"n{i}", "file_name": name} for i, name in enumerate(NAMES)]
    captions = [{"image_id": entry["id"], "caption": "x"} for entry in images]
    data = {key: [*SOUND[key], *more] for key, more in (("images", images), ("annotations", captions))}
    path = place / "captions.json"
    path.write_text(json.dumps(data))
    source = CocoSource(path, place, 8, "crop", 1, 1, on_error="skip")
    found = taken(place, lambda: source)
    assert sum(map(len, found.values())) == COUNT
    problems = source.check().problems
    assert sum(map(len, problems.values())) == len(NAMES) and set(problems) <= {"outside", "missing", "duplicate file"}
    assert {*NAMES[:5], "zero"} <= set(problems["outside"])
    assert "Mend them" in taken(place, lambda: CocoSource(path, place, 8, "crop", 1, 1))


def test_a_link_inside_the_folder_is_taken_once(place):
    (place / "again.png").symlink_to(place / "0.png")
    data = json.loads(json.dumps(SOUND))
    data["images"][1]["file_name"] = "again.png"
    (place / "captions.json").write_text(json.dumps(data))
    assert "1 files that are listed more than once" in taken(
        place, lambda: CocoSource(place / "captions.json", place, 8, "crop", 1, 1)
    )


# ---------------------------------------------------------------- captions beside images


def folder_of(place, on_error="skip"):
    spec = {"source": "folder", "images": str(place), "fit": "crop", "on_error": on_error}
    return open_source(spec, 8, COUNTS, 0, place.parent / "index")


BESIDE = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40).map(str.encode),
    st.sampled_from(
        [b"[" * 20_000, b'{"caption": ' * 9_000, b'{"text": ["a", 3]}', b'{"caption": "\\ud800"}', b"NaN", b"9" * 5000,
         b'{"caption": [[]]}', b"\xef\xbb\xbfa", b'"a"', b"3", b"\0", b'{"file_name": {"a": 1}, "text": "x"}',
         b'{"file_name": "../outside/0.png", "text": "x"}', b'{"text": null}']
    ),
)  # fmt: skip


@examples(30)
@given(files=st.dictionaries(st.sampled_from(["0.txt", "0.json", "1.txt", "metadata.jsonl"]), BESIDE, min_size=1))
def test_captions_of_any_content(place, files):
    for number in range(COUNT):
        (place / f"{number}.txt").write_text(f"picture {number}")
    for name in ("0.json", "metadata.jsonl"):
        (place / name).unlink(missing_ok=True)
    for name, content in files.items():
        (place / name).write_bytes(content)
    for on_error in ("skip", "refuse"):
        found = taken(place, lambda on_error=on_error: folder_of(place, on_error))
        assert on_error == "refuse" or sum(map(len, found.values())) >= COUNT - 2


def test_captions_that_lie_elsewhere_are_not_read(place):
    links(place)
    for number in range(2, COUNT):
        (place / f"{number}.txt").write_text(f"picture {number}")
    (place / "0.txt").symlink_to(place.parent / "outside" / "secret.txt")
    os.mkfifo(place / "1.txt")
    (place / "metadata.jsonl").symlink_to("/etc/passwd")
    found = taken(place, lambda: folder_of(place))
    assert sum(map(len, found.values())) == COUNT - 2
    assert "secret" not in str([example.captions for example in sum(found.values(), [])])
    said = taken(place, lambda: folder_of(place, "refuse"))
    assert "3 caption files that cannot be read" in said and "0.txt" in said


# ---------------------------------------------------------------- tars


def tar_of(names=(), count=COUNT, **fields):
    """The bytes of a tar of ``count`` samples, and of members called ``names`` with ``fields`` of their headers set."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", errors="surrogateescape", format=tarfile.GNU_FORMAT) as out:

        def add(name, content, **more):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in more.items():
                setattr(info, key, value)
            out.addfile(info, io.BytesIO(content))

        for number in range(count):
            add(f"{number:03}.png", PNG[number])
            add(f"{number:03}.txt", f"picture {number}".encode())
        for number, name in enumerate(names):
            add(f"{name}.png", PNG[number % COUNT], **fields)
            add(f"{name}.txt", b"more", **fields)
    return file.getvalue()


def tars_of(place, on_error="skip"):
    spec = {"source": "webdataset", "images": str(place), "fit": "crop", "on_error": on_error}
    return open_source(spec, 8, COUNTS, 0, place.parent / "index")


def test_names_in_tars_are_names_alone(place):
    names = [
        "../../outside/0",
        "/etc/passwd",
        "a\nb",
        "a\x1b[31mb",
        "x" * 300,
        "C:\\x",
        "~",
        "\udcff\udcfe",
        "a/../../b",
    ]
    (place / "0.tar").write_bytes(tar_of(names))
    found = taken(place, lambda: tars_of(place, "refuse"))
    assert sum(map(len, found.values())) == COUNT + len(names)
    assert sorted(path.name for path in place.parent.iterdir()) == ["data", "index", "outside"]
    written = write_split(place.parent / "out", tars_of(place), "train", COUNT, 100, "d")
    assert read_split(place.parent / "out", "train").images.shape[0] == written.images == COUNT


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_members_that_are_no_files_are_passed_over(place, kind):
    (place / "0.tar").write_bytes(tar_of(["link"], type=kind, linkname="/etc/passwd", size=0))
    assert sum(map(len, taken(place, lambda: tars_of(place)).values())) == COUNT


def header(name, size, kind=b"0"):
    """A header of 512 bytes whose size is as given: octal digits, or any 12 bytes."""
    info = tarfile.TarInfo(name)
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


NEGATIVE = b"\xff" * 10 + b"\xf0\x00"  # base 256: minus 4,096
LYING = {
    "large": header("x.png", 8**11 - 1),
    "negative": header("x.png", NEGATIVE),
    "a name of negative size": header("x", NEGATIVE, b"L"),
    "a name that never ends": header("x", 8**11 - 1, b"L"),
    "names of names": header("x", 0, b"L") * 3000,
    "keys of negative size": header("x", NEGATIVE, b"x"),
    "sparse": header("x.png", 100, b"S"),
    "no number": header("x.png", b"not a number"),
}


@pytest.mark.parametrize("lie", LYING)
def test_sizes_that_lie(place, lie):
    whole = tar_of().rstrip(b"\0")
    whole += b"\0" * (-len(whole) % 512)
    (place / "0.tar").write_bytes(whole + LYING[lie] + tar_of(count=2))
    found = taken(place, lambda: tars_of(place))
    assert isinstance(found, dict) and sum(map(len, found.values())) >= COUNT
    assert "Mend them" in taken(place, lambda: tars_of(place, "refuse")) or lie == "sparse"


@st.composite
def damaged(draw, content):
    where = draw(st.integers(0, len(content) - 1))
    if draw(st.booleans()):
        where -= where % 512  # a header's fields: names first, then sizes, sum and type
        where = min(len(content) - 1, where + draw(st.integers(0, 345)))
    return spoilt(draw, content)[: len(content) + 9] if draw(st.booleans()) else (
        content[:where] + bytes([content[where] ^ draw(st.integers(1, 255))]) + content[where + 1 :]
    )  # fmt: skip


class Here:
    """In place of a pool of processes: each call, when it is asked for."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, *arguments, chunksize):
        return map(function, *arguments)


@examples(30)
@given(content=damaged(tar_of(count=4)))
def test_tars_of_any_content(place, monkeypatch, content):
    monkeypatch.setattr("ldmscale.data.tars.ProcessPoolExecutor", Here)
    (place / "0.tar").write_bytes(content)
    (place / "1.tar").write_bytes(tar_of(count=3))
    found = taken(place, lambda: tars_of(place))
    assert isinstance(found, dict) and sum(map(len, found.values())) >= 3
    taken(place, lambda: tars_of(place, "refuse"))


def test_tars_that_are_no_files(place):
    (place / "0.tar").write_bytes(tar_of())
    (place / "1.tar").symlink_to("gone")
    (place / "2.tar").mkdir()
    os.mkfifo(place / "3.tar")
    assert sum(map(len, taken(place, lambda: tars_of(place)).values())) == COUNT
    assert "3 damaged tar" in taken(place, lambda: tars_of(place, "refuse"))


# ---------------------------------------------------------------- record shards


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """The bytes of a shard, and what it holds."""
    folder = tmp_path_factory.mktemp("shard")
    for number in range(4):
        (folder / f"{number}.png").write_bytes(PNG[number])
        (folder / f"{number}.txt").write_text(f"picture {number}")
    write_split(folder / "out", folder_of(folder), "train", 2, 9, "d")
    return (folder / "out" / "train-00000.npz").read_bytes(), read_split(folder / "out", "train")


@examples(30)
@given(data=st.data())
def test_shards_of_any_content(place, shard, data):
    content, records = shard
    path = place / "train-00000.npz"
    path.write_bytes(data.draw(damaged(content)))
    try:
        with only_inside(place):
            found = read_split(place, "train")
    except UserError as error:
        assert str(path) in str(error) or str(place) in str(error)
    else:
        assert np.array_equal(found.images, records.images)
        assert (found.captions, found.keys) == (records.captions, records.keys)
