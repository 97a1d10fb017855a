"""Folders and tar shards as sources: what they hold, what is bad about it, and record shards made of them."""

import io
import json
import os
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from ldmscale.data.records import Shards, read_split, write_split
from ldmscale.data.source import SPLITS
from ldmscale.data.sources import open_source
from ldmscale.errors import UserError

COUNTS = {"train": None, "tuning": 3, "heldout": 4}


def png(number, size=12):
    """An image that tells its number: its red value."""
    file = io.BytesIO()
    Image.new("RGB", (size, size + 4), (number, 0, 0)).save(file, "png")
    return file.getvalue()


def tar(path, files):
    with tarfile.open(path, "w") as out:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path):
    """Three tars of ten samples, whose captions are their numbers."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for shard in range(3):
        files = []
        for number in range(10 * shard, 10 * shard + 10):
            files.append((f"{number:06d}.png", png(number)))
            if number % 2:
                files.append((f"{number:06d}.txt", f"  the  number {number}\nanother of {number}\n".encode()))
            else:
                files.append((f"{number:06d}.json", json.dumps({"caption": f"the number {number}"}).encode()))
        tar(folder / f"{shard:05d}.tar", files)
    return folder


def source_of(folder, kind="webdataset", on_error="skip", counts=COUNTS, seed=0, **more):
    spec = {"source": kind, "images": str(folder), "fit": "crop", "on_error": on_error}
    return open_source(spec, 8, counts, seed, folder.parent / "index", **more)


def numbers(source, split):
    found = []
    for i in range(source.size(split)):
        example = source.example(split, i)
        number = int(example.image[0, 0, 0])
        assert example.captions[0] == f"the number {number}" and example.image.shape == (8, 8, 3)
        found.append(number)
    return found


def test_tars_are_read_where_they_lie(tars):
    source = source_of(tars, on_error="refuse")
    found = {split: numbers(source, split) for split in SPLITS}
    assert {split: len(found[split]) for split in SPLITS} == {"train": 23, "tuning": 3, "heldout": 4}
    assert sorted(sum(found.values(), [])) == list(range(30))
    assert found["train"] == sorted(found["train"])  # in the order of the tars
    assert source.example("train", 0).key == f"00000.tar/{found['train'][0]:06d}"
    assert source.check().sentence() == f"{tars}: 30 samples in 3 tars; no problems"
    odd = next(i for i, number in enumerate(found["train"]) if number % 2)
    assert source.example("train", odd).captions[1] == f"another of {found['train'][odd]}"
    # The same again, by more workers; with another seed another split.
    again = source_of(tars, workers=2)
    assert {split: numbers(again, split) for split in SPLITS} == found
    assert numbers(source_of(tars, seed=1), "heldout") != found["heldout"]


def test_tars_are_looked_through_once_and_again_when_they_change(tars, monkeypatch):
    source_of(tars)
    read = []
    members = __import__("ldmscale.data.tars", fromlist=["_members"])._members
    monkeypatch.setattr("ldmscale.data.tars._members", lambda path: (read.append(path.name), members(path))[1])
    tar(tars / "00001.tar", [("1.png", png(1)), ("1.txt", b"the number 1")])
    os.utime(tars / "00001.tar", (time.time() + 5,) * 2)
    # In this process, so that it can be seen.
    monkeypatch.setattr("ldmscale.data.tars.ProcessPoolExecutor", Here)
    source = source_of(tars)
    assert read == ["00001.tar"] and sum(source.size(split) for split in SPLITS) == 21


class Here:
    """A pool of no processes."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, *arguments, chunksize):
        return map(function, *arguments)


def spoil(tars):
    """Something of every kind of problem -> numbers of the samples that stay whole."""
    tar(tars / "00000.tar", [
        ("a/1.png", png(1)), ("a/1.txt", b"the number 1"), ("a/1.txt", b"twice"), ("2.png", png(2)), ("3.txt", b"no 3"),
        ("4.png", png(4)[:40]), ("4.txt", b"the number 4"), ("5.png", png(5)), ("5.txt", b" \n "), ("6.png", png(6)),
        ("6.json", b"{"), ("7.png", png(7)), ("7.json", b'{"url": "x"}'), ("8.png", png(8)), ("8.txt", b"\xff\xfe"),
        ("9.cls", b"1"),
    ])  # fmt: skip
    content = (tars / "00001.tar").read_bytes()
    (tars / "00001.tar").write_bytes(content[: 2048 * 2 + 530])  # cut in its third image
    return [1, 10, 11, *range(20, 30)]


def test_bad_samples_are_counted_and_left_out(tars, tmp_path):
    whole = spoil(tars)
    with pytest.raises(UserError, match="1 listed twice.*Mend them, or set on_error to skip"):
        source_of(tars, on_error="refuse")
    source = source_of(tars, counts={**COUNTS, "heldout": 2, "tuning": 2})
    said = source.check().sentence()
    assert "1 listed twice (00000.tar/a/1.txt)" in said and "1 image without captions (00000.tar/2)" in said
    assert "1 captions without image (00000.tar/3)" in said and "1 damaged tar (00001.tar (unexpected end" in said
    made = write_split(tmp_path / "out", source, "train", source.size("train"), 6, "d")
    records = read_split(tmp_path / "out", "train")
    held = numbers(source, "tuning") + numbers(source, "heldout")
    assert sorted([*records.images[:, 0, 0, 0].tolist(), *held]) == whole and made.images == len(whole) - 4
    assert sum(made.skipped.counts.values()) == source.size("train") - made.images == 5
    assert made.skipped.counts == {"unreadable image": 1, "unreadable or blank captions": 4}
    assert "00000.tar/4 (" in made.skipped.sentence()


def test_too_few_samples_or_no_tars(tars, tmp_path):
    with pytest.raises(UserError, match="30 samples in 3 tars; no problems: too few for 4 held-out and 26 tuning"):
        source_of(tars, counts={**COUNTS, "tuning": 26})
    with pytest.raises(UserError, match="holds no .tar files"):
        source_of(tmp_path)


def test_a_bad_image_is_refused_when_it_is_met(tars):
    tar(tars / "00000.tar", [(f"{i}.{kind}", content) for i in range(9)
                             for kind, content in (("png", png(i)[:40]), ("txt", b"x"))])  # fmt: skip
    source = source_of(tars, on_error="refuse")
    with pytest.raises(UserError, match="00000.tar/0 in .*tars: unreadable image"):
        for i in range(source.size("train")):
            source.example("train", i)


# ---------------------------------------------------------------- a folder


def test_a_folder_of_images_with_captions_beside_them(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = []
    for number in range(12):
        (folder / f"{number}.PNG").write_bytes(png(number))
        caption = f"the number {number}"
        if number % 3 == 0:
            (folder / f"{number}.txt").write_text(f"{caption}\n\nanother\n")
        elif number % 3 == 1:
            (folder / f"{number}.json").write_text(json.dumps({"captions": [caption]}))
        else:
            lines.append(json.dumps({"file_name": f"{number}.PNG", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    source = source_of(folder, "folder", "refuse")
    assert sorted(sum((numbers(source, split) for split in SPLITS), [])) == list(range(12))

    (folder / "1.json").write_text("{")
    (folder / "0.txt").unlink()
    (folder / "2.PNG").write_bytes(b"no image")
    (folder / "metadata.jsonl").write_text("\n".join([*lines, "{", '{"file_name": "gone.png", "text": "x"}']))
    with pytest.raises(UserError, match="Mend them") as refused:
        source_of(folder, "folder", "refuse").size("train")
    for part in ("9 of 12 usable", "2 images without a caption (0.PNG, 1.PNG)", "gone.png", "metadata.jsonl line 5",
                 "2 caption files that cannot be read (", "1.json", "1 images that cannot be read (2.PNG"):  # fmt: skip
        assert part in str(refused.value)
    source = source_of(folder, "folder", "skip")
    assert sorted(sum((numbers(source, split) for split in SPLITS), [])) == list(range(3, 12))


# ---------------------------------------------------------------- record shards: parallel, in parts, restarted


def test_workers_and_parts_write_the_same_bytes(tars, tmp_path):
    spoil(tars)
    source = source_of(tars, counts={**COUNTS, "heldout": 2, "tuning": 2})
    count, told = source.size("train"), []

    def write(name, **how):
        return write_split(tmp_path / name, source, "train", count, 3, "d", **how)

    alone = write("alone", tell=lambda *progress: told.append(progress))
    assert told == [(n, 5) for n in range(1, 6)]
    assert write("pool", workers=2)[1:] == alone[1:]
    for part in (0, 1, 2):
        assert write("parts", part=(part, 3), workers=part) is None
        if part == 0:
            assert sorted(path.name[6:11] for path in (tmp_path / "parts").iterdir()) == ["00000", "00003"]
    names = [path.name for path in alone.paths]
    when = [(tmp_path / "parts" / name).stat().st_mtime_ns for name in names]
    assert write("parts")[1:] == alone[1:]  # nothing is left to do, and all is counted
    assert when == [(tmp_path / "parts" / name).stat().st_mtime_ns for name in names]
    for name in names:
        whole = (tmp_path / "alone" / name).read_bytes()
        assert whole == (tmp_path / "pool" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert any(len(shard.images) < 3 for shard in Shards(tmp_path / "alone", "train"))


def test_a_run_that_was_cut_off_goes_on_where_it_was(tars, tmp_path):
    source = source_of(tars)
    paths = write_split(tmp_path, source, "train", 23, 6, "d").paths
    whole = [path.read_bytes() for path in paths]
    paths[1].unlink()
    paths[2].write_bytes(whole[2][:-30])
    seen = []
    source.example = lambda split, i, example=source.example: (seen.append(i), example(split, i))[1]
    write_split(tmp_path, source, "train", 23, 6, "d")
    assert seen == list(range(6, 18)) and [path.read_bytes() for path in paths] == whole
    write_split(tmp_path, source, "train", 23, 6, "another")  # of another config nothing is kept
    assert len(seen) == 12 + 23
    with pytest.raises(UserError, match="belongs to another run"):
        paths[0].write_bytes(whole[0])
        list(Shards(tmp_path, "train"))


def test_a_killed_worker_is_a_sentence(tars, tmp_path):
    source = source_of(tars)
    source.example = lambda split, i: os._exit(9)
    with pytest.raises(UserError, match="was killed, most likely for want of memory: lower data.shard"):
        write_split(tmp_path, source, "train", 23, 6, "d", workers=2)


def test_a_split_of_which_nothing_can_be_used(tars, tmp_path):
    source = source_of(tars)
    tar(tars / "00000.tar", [])
    for path in sorted(tars.glob("*.tar")):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(
        UserError, match="none of the 23 train examples can be used: 14 unreadable or blank captions .*; 9 unreadable"
    ):
        write_split(tmp_path, source, "train", 23, 6)
    assert np.all([len(shard.images) == 0 for shard in Shards(tmp_path, "train")])
