"""Record shards: what is written is what is read, and a damaged shard is named."""

import json

import numpy as np
import pytest

from ldmscale.data.records import Shards, read_split, write_split
from ldmscale.data.scenes import SceneSource
from ldmscale.errors import UserError

SOURCE = SceneSource(32, train=50, tuning=10, heldout=10)


def test_round_trip(tmp_path):
    paths = write_split(tmp_path, SOURCE, "train", 25, 10).paths
    assert [path.name for path in paths] == ["train-00000.npz", "train-00001.npz", "train-00002.npz"]
    write_split(tmp_path, SOURCE, "tuning", 10, 10)
    records = read_split(tmp_path, "train")
    assert records.images.shape == (25, 32, 32, 3) and records.images.dtype == np.uint8
    assert len(records.captions) == len(records.keys) == 25
    for i in (0, 9, 10, 24):
        example = SOURCE.example("train", i)
        assert np.array_equal(records.images[i], example.image)
        assert (records.captions[i], records.keys[i]) == (example.captions, example.key)
    assert [len(shard.images) for shard in Shards(tmp_path, "train")] == [10, 10, 5]
    assert read_split(tmp_path, "tuning").keys[0] == SOURCE.example("tuning", 0).key
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([p.name for p in paths] + ["tuning-00000.npz"])


def test_unicode_captions_survive(tmp_path):
    class Odd:
        image_size = 4

        def size(self, split):
            return 1

        def example(self, split, index):
            from ldmscale.data.source import Example

            return Example(np.zeros((4, 4, 3), np.uint8), ("ein Häuschen 🏠", 'quoted "x"\\'), "ключ")

    write_split(tmp_path, Odd(), "train", 1, 8)
    records = read_split(tmp_path, "train")
    assert records.captions == [("ein Häuschen 🏠", 'quoted "x"\\')] and records.keys == ["ключ"]


def test_same_data_same_bytes(tmp_path):
    one, other = (write_split(tmp_path / name, SOURCE, "heldout", 5, 5).paths[0] for name in ("a", "b"))
    assert one.read_bytes() == other.read_bytes()


def test_a_shorter_run_leaves_no_stale_shards(tmp_path):
    write_split(tmp_path, SOURCE, "train", 30, 10)
    write_split(tmp_path, SOURCE, "train", 10, 10)
    assert len(read_split(tmp_path, "train").images) == 10


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:-10],
        lambda raw: b"",
        lambda raw: b"not a zip archive",
        # A flipped bit in the middle of the pixels.
        lambda raw: raw[:5_000] + bytes([raw[5_000] ^ 1]) + raw[5_001:],
    ],
)
def test_a_damaged_shard_is_named(tmp_path, damage):
    path = write_split(tmp_path, SOURCE, "train", 20, 10).paths[1]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="train-00001.npz"):
        read_split(tmp_path, "train")


@pytest.mark.parametrize(
    "content",
    [
        {"images": np.zeros((2, 4, 4, 3), np.uint8)},
        {"images": np.zeros((2, 4, 4, 3), np.float32), "captions": [["a"], ["b"]]},
        {"images": np.zeros((2, 4, 4, 3), np.uint8), "captions": [["a"]]},
        {"images": np.zeros((2, 4, 4), np.uint8), "captions": [["a"], ["b"]]},
        {"images": np.array([{"a": 1}, None], object), "captions": [["a"], ["b"]]},
    ],
)
def test_a_foreign_npz_is_named(tmp_path, content):
    path = tmp_path / "train-00000.npz"
    if "captions" in content:
        index = {"shard": 0, "shards": 1, "count": 2, "keys": ["a", "b"], "captions": content["captions"]}
        content = {**content, "index": np.frombuffer(json.dumps(index).encode(), np.uint8)}
    np.savez(path, **{name: value for name, value in content.items() if name != "captions"})
    with pytest.raises(UserError, match="train-00000.npz"):
        read_split(tmp_path, "train")


def test_missing_and_mixed_shards(tmp_path):
    with pytest.raises(UserError, match="no train records"):
        read_split(tmp_path, "train")
    for number in (0, 1, 2):
        paths = write_split(tmp_path, SOURCE, "train", 30, 10).paths
        paths[number].unlink()
        with pytest.raises(UserError, match=f"train-0000{number}.npz is missing"):
            read_split(tmp_path, "train")
    write_split(tmp_path, SOURCE, "train", 30, 10)
    other = write_split(tmp_path / "other", SOURCE, "train", 29, 10).paths
    other[2].rename(tmp_path / "train-00002.npz")
    with pytest.raises(UserError, match="train-00002.npz belongs to another run"):
        read_split(tmp_path, "train")


def test_asking_for_too_many(tmp_path):
    with pytest.raises(UserError, match="51 train examples were asked for, the data has 50"):
        write_split(tmp_path, SOURCE, "train", 51, 10)


def test_an_interrupted_write_leaves_nothing(tmp_path):
    class Failing(SceneSource):
        def example(self, split, index):
            if index == 15:
                raise KeyboardInterrupt
            return super().example(split, index)

    with pytest.raises(KeyboardInterrupt):
        write_split(tmp_path, Failing(32, 50, 0, 0), "train", 20, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["train-00000.npz"]
    with pytest.raises(UserError, match="train-00001.npz is missing"):
        read_split(tmp_path, "train")
