"""Files that lie in a bucket, over a network that fails: what arrives is what was sent, or nothing and a sentence."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from fake_gcs import BUCKET

from ldmscale import bucket, storage
from ldmscale.bucket import StorageError
from ldmscale.data.encoded import load_array, save_array
from ldmscale.errors import UserError
from ldmscale.metrics.score import _require_images
from ldmscale.models.weights import read_tensors
from ldmscale.provenance import file_digest, listing_digest
from ldmscale.training.checkpoint import is_checkpoint, load_tree, save_tree

SMALL, LARGE = np.arange(2_000.0), np.arange(800_000.0)  # sent in one request, and (over 5 MB) in a session


def failed(server):
    return [fault for *_, fault in server.seen if fault]


@pytest.mark.parametrize("array", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("method", "fault"),
    [("POST", "503"), ("POST", "cut"), ("POST", "lose"), ("POST", "flip"), ("GET", "503"), ("GET", "cut"),
     ("DOWNLOAD", "503"), ("DOWNLOAD", "cut"), ("DOWNLOAD", "flip")],
)  # fmt: skip
def test_a_failure_in_passing_is_tried_again(gcs, array, method, fault):
    gcs.faults = [[method, 2, fault]]
    save_array("results/x.npy", array)
    os.unlink("results/x.npy")
    assert np.array_equal(load_array("results/x.npy"), array)
    assert failed(gcs) == [fault] * 2


@pytest.mark.parametrize(
    ("fault", "reason", "array"),
    [
        ("503", "503 Service Unavailable", SMALL),
        ("503", "503 Service Unavailable", LARGE),
        ("cut", "disconnected", SMALL),
        ("cut", "disconnected", LARGE),
        ("lose", "not what was sent", SMALL),  # a session's server says what it lacks, and gets it
        ("flip", "not what was sent", SMALL),
        ("flip", "not what was sent", LARGE),
    ],
)
def test_an_upload_that_never_arrives_is_one_sentence_and_not_taken_for_stored(gcs, fault, reason, array):
    save_array("results/x.npy", array + 1)
    gcs.faults = [["POST", 99, fault]]
    with pytest.raises(StorageError) as caught:
        save_array("results/x.npy", array)
    assert f"gs://{BUCKET}/" in str(caught.value) and "in 4 tries" in str(caught.value)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert not storage.stored("results/x.npy").exists()  # which named what was there before
    assert np.array_equal(load_array("results/x.npy"), array)  # what was written stays


def test_a_download_that_never_arrives_is_one_sentence_and_leaves_no_file(gcs):
    save_array("results/x.npy", LARGE)
    os.unlink("results/x.npy")
    for fault in ("cut", "flip", "503"):
        gcs.faults = [["DOWNLOAD", 99, fault]]
        with pytest.raises(
            UserError, match=rf"^gs://{BUCKET}/\S+/results/x.npy could not be read, in 4 tries: .*$"
        ) as e:
            load_array("results/x.npy")
        assert isinstance(e.value, StorageError) == (fault != "flip")  # another object is no better than none
    assert failed(gcs) == ["cut"] * 4 + ["flip"] * 4 + ["503"] * 4  # no retries within retries
    assert os.listdir("results") == ["x.npy.stored.json"]


def test_a_missing_bucket_is_said_at_once(gcs, monkeypatch):
    monkeypatch.setenv(storage.ROOT, "gs://nowhere/run")
    for array in (SMALL, LARGE):
        with pytest.raises(StorageError, match="there is no bucket 'nowhere'.*`storage` in the config"):
            save_array("results/x.npy", array)
    assert len(gcs.seen) == 2
    with pytest.raises(StorageError, match="gs://nowhere/x does not exist"):
        storage.fetch("gs://nowhere/x")
    assert file_digest("gs://nowhere/x") == "absent"


def test_the_object_that_a_manifest_names_or_none(gcs):
    save_array("results/x.npy", SMALL)
    other = storage.uri("results/x.npy")
    np.save("y.npy", SMALL + 1)
    bucket.upload("y.npy", other)  # somebody else writes to the same place
    assert np.array_equal(load_array("results/x.npy"), SMALL)  # while the file is here nothing is asked
    os.unlink("results/x.npy")
    with pytest.raises(UserError, match="not the object of 16142 bytes that was stored"):
        load_array("results/x.npy")
    bucket.delete(other)
    with pytest.raises(UserError, match="the object is gone: run the rule") as caught:
        load_array("results/x.npy")
    assert not isinstance(caught.value, StorageError)  # so that the rule does make it again
    storage.stored("results/x.npy").unlink()
    with pytest.raises(UserError, match="No such file"):
        load_array("results/x.npy")


def test_a_file_on_disk_is_a_cache(gcs):
    save_array("results/x.npy", SMALL)
    gcs.seen.clear()
    os.utime("results/x.npy")  # a copy of the folder has other times
    assert np.array_equal(load_array("results/x.npy"), SMALL)
    assert gcs.seen == []
    Path("results/x.npy").write_bytes(b"damaged")
    assert np.array_equal(load_array("results/x.npy"), SMALL)
    assert [method for method, *_ in gcs.seen] == ["GET"]
    storage.stored("results/x.npy").write_text("{}")
    with pytest.raises(UserError, match=r"x.npy.stored.json is damaged"):
        load_array("results/x.npy")


def test_a_run_without_a_bucket_is_not_undone_by_what_lies_there(gcs, monkeypatch):
    save_array("results/x.npy", SMALL)
    monkeypatch.setenv(storage.ROOT, "")
    save_array("results/x.npy", SMALL + 1)
    assert np.array_equal(load_array("results/x.npy"), SMALL + 1)
    assert os.listdir("results") == ["x.npy"]


def test_another_host_than_the_first_sends_nothing(gcs, monkeypatch):
    from ldmscale import hosts

    monkeypatch.setattr(hosts, "_place", (1, 2))
    np.save("x.npy", SMALL)
    storage.push("x.npy")
    assert gcs.seen == [] and os.listdir(".") == ["x.npy"]


def test_remove_takes_the_object_along_and_glob_sees_what_is_not_here(gcs):
    for name in ("a-1", "a-2", "b-1"):
        save_array(f"results/{name}.npy", SMALL)
    os.unlink("results/a-1.npy")
    assert storage.glob("results", "a-*.npy") == [Path("results/a-1.npy"), Path("results/a-2.npy")]
    uri = storage.uri("results/a-1.npy")
    storage.remove("results/a-1.npy")
    assert not storage.exists("results/a-1.npy") and bucket.listed(uri) == {}
    assert storage.exists("results/a-2.npy")


def test_trees_and_the_images_of_cells_come_back(gcs):
    tree = {"dense": {"kernel": np.ones((3, 4), np.float32)}}
    save_tree("results/w.safetensors", tree, step=3)
    os.unlink("results/w.safetensors")
    assert is_checkpoint("results/w.safetensors")
    assert load_tree("results/w.safetensors", tree)[1] == {"step": 3}

    folder = Path("results/cell")
    save_array(folder / "gallery.npy", SMALL)
    (folder / "sample.json").write_text("{}")
    os.unlink(folder / "gallery.npy")
    gcs.faults = [["DOWNLOAD", 99, "503"]]
    with pytest.raises(StorageError):  # a bucket out of reach is no reason to draw the images again
        _require_images({folder: ("gallery",)})
    assert (folder / "sample.json").exists()


def test_inputs_from_a_bucket(gcs, tmp_path):
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    save_tree(source / "model.safetensors", {"kernel": np.ones(4, np.float32)})
    (source / "deep" / "note.txt").write_text("hello")
    root = f"gs://{BUCKET}/inputs"
    for path in ("model.safetensors", "deep/note.txt"):
        bucket.upload(source / path, f"{root}/{path}")
    assert list(read_tensors(root)) == list(read_tensors(f"{root}/model.safetensors")) == ["kernel"]
    assert list(read_tensors(Path(root))) == ["kernel"]  # which has lost a slash
    assert storage.fetch(f"{root}/deep").joinpath("note.txt").read_text() == "hello"
    gcs.seen.clear()
    storage.fetch(root)
    assert gcs.seen == []  # asked about once a process, downloaded once

    before = [file_digest(root), listing_digest(f"{root}/deep"), file_digest(f"{root}/model.safetensors")]
    assert len(set(before)) == 3 and "absent" not in before
    assert file_digest(f"{root}/other") == "absent"
    (source / "deep" / "note.txt").write_text("hallo")
    bucket.upload(source / "deep" / "note.txt", f"{root}/deep/note.txt")
    bucket.listed.cache_clear()
    after = [file_digest(root), listing_digest(f"{root}/deep"), file_digest(f"{root}/model.safetensors")]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True]
    assert storage.fetch(f"{root}/deep").joinpath("note.txt").read_text() == "hallo"


def test_a_file_that_needs_its_neighbours_has_them(gcs):
    for name in ("tokenizer.json", "special_tokens_map.json"):
        Path(name).write_text(json.dumps(name))
        bucket.upload(name, f"gs://{BUCKET}/near/{name}")
    file = storage.fetch(f"gs://{BUCKET}/near/tokenizer.json", beside=True)
    assert json.loads(file.read_text()) == "tokenizer.json"
    assert sorted(os.listdir(file.parent)) == ["special_tokens_map.json", "tokenizer.json"]
