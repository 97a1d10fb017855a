"""Digests, manifests, and files that are whole or not there."""

import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldmscale.errors import UserError
from ldmscale.provenance import (
    atomic_path,
    digest,
    file_digest,
    is_current,
    listing_digest,
    read_json,
    read_manifest,
    write_json,
    write_manifest,
)

# ---------------------------------------------------------------- digests


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_a_digest_does_not_depend_on_the_order_of_keys_or_on_a_trip_through_yaml(value):
    def turned(v):
        if isinstance(v, dict):
            return {k: turned(v[k]) for k in reversed(v)}
        return [turned(x) for x in v] if isinstance(v, list) else v

    assert digest("data", value) == digest("data", turned(value)) == digest("data", json.loads(json.dumps(value)))


def test_a_digest_tells_apart_what_differs():
    values = [1, "1", 1.5, True, None, [], {}, [1], {"a": 1}, {"a": [1]}, {"b": 1}, "a", ["a", 1]]
    assert len({digest("data", value) for value in values}) == len(values)
    assert digest("data", 1) != digest("clip", 1)
    assert digest("data", 1, 2) != digest("data", 2, 1) != digest("data", [1, 2])
    assert len(digest("data")) == 16 and int(digest("data"), 16) >= 0


def test_a_digest_is_the_same_in_another_process():
    script = "from ldmscale.provenance import digest; print(digest('data', {'b': {'c': 0.1, 'a': None}}))"
    found = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True
    )
    assert found.stdout.strip() == digest("data", {"b": {"a": None, "c": 0.1}})


def test_the_digest_of_a_file_is_of_its_bytes(tmp_path):
    path = tmp_path / "weights"
    assert file_digest(path) == "absent"
    assert file_digest(tmp_path) == file_digest(tmp_path) != "absent"  # a folder, here an empty one
    path.write_bytes(b"one")
    one = file_digest(path)
    path.write_bytes(b"two")
    assert len({one, file_digest(path), "absent"}) == 3
    path.write_bytes(b"one")
    assert file_digest(path) == one


# ---------------------------------------------------------------- whole or not there


def test_a_file_appears_under_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "folder" / "array.npy"
    with atomic_path(path) as temporary:
        np.save(temporary, np.arange(3))
        assert not path.exists()
        assert temporary.parent == path.parent  # the rename must not cross file systems
        assert temporary.suffix == ".npy"  # numpy appends it to a name without
    assert np.load(path).tolist() == [0, 1, 2]
    assert os.listdir(path.parent) == ["array.npy"]


def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError, match="halfway"), atomic_path(path) as temporary:
        temporary.write_text('{"new":')
        raise RuntimeError("halfway")
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["value.json"]


def test_a_file_gets_the_permissions_that_an_ordinary_one_gets(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "ours.json", {})
        (tmp_path / "plain").write_text("")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours.json", "plain")]
    assert modes == [0o640, 0o640]


# ---------------------------------------------------------------- folders of many images


def _photos(folder):
    folder.mkdir()
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (90, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png", compress_level=0)
    return folder


def test_a_listing_follows_names_and_contents_and_not_times(tmp_path):
    folder = _photos(tmp_path / "photos")
    before = listing_digest(folder)
    os.utime(folder / "0.png", (1, 1))
    assert listing_digest(folder) == before == listing_digest(_photos(tmp_path / "again"))
    (folder / "0.png").rename(folder / "9.png")
    assert listing_digest(folder) != before
    assert listing_digest(tmp_path / "nowhere") == "absent"


def test_a_listing_notices_one_pixel_in_the_middle_of_a_photo_of_the_same_size(tmp_path):
    folder = _photos(tmp_path / "photos")
    before, size = listing_digest(folder), (folder / "1.png").stat().st_size
    pixels = np.array(Image.open(folder / "1.png"))
    pixels[45, 40] ^= 1
    Image.fromarray(pixels).save(folder / "1.png", compress_level=0)
    assert (folder / "1.png").stat().st_size == size > 4 * 4096
    assert listing_digest(folder) != before


# ---------------------------------------------------------------- manifests


def test_a_manifest_is_read_back_by_who_asks_for_what_it_was_made_from(tmp_path):
    path = tmp_path / "clip.json"
    write_manifest(path, "clip", "0123456789abcdef", weights="w.safetensors")
    assert read_manifest(path, "clip", "0123456789abcdef")["weights"] == "w.safetensors"
    assert is_current(path, "clip", "0123456789abcdef")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is missing"),
        ("", "is not readable JSON"),
        ('{"stage": "clip", "dig', "is not readable JSON"),
        ("\xff\xfe", "is not readable JSON"),
        ("[1, 2]", "does not hold a JSON object"),
        ("{}", "was made from a different config"),
        ('{"stage": "clip", "digest": "another"}', "was made from a different config"),
        ('{"stage": "latents", "digest": "wanted"}', "was made from a different config"),
    ],
)
def test_a_manifest_that_is_not_the_one_is_refused_with_a_sentence_that_says_what_to_do(tmp_path, text, said):
    path = tmp_path / "clip.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read_manifest(path, "clip", "wanted")
    sentence = str(caught.value)
    assert str(path) in sentence and said in sentence
    assert "--forcerun" in sentence or "delete it and run snakemake again" in sentence
    assert "\n" not in sentence
    assert not is_current(path, "clip", "wanted")
