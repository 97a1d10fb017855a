"""Latents in shards: any rows of them, wherever they lie, and none of a shard that is not whole."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ldmscale.data import encoded
from ldmscale.data.encoded import Latents, has_shard, save_array, save_index, save_shard
from ldmscale.errors import UserError

COUNTS = (5, 0, 7, 3)  # of the second no image could be used


def write(folder, digest="d", dtype=np.float32, counts=COUNTS):
    """Shards of ``counts`` images -> all of them as plain arrays."""
    draw, whole = np.random.default_rng(0), {"mean": [], "std": [], "states": [], "captions": []}
    for number, count in enumerate(counts):
        captions = draw.integers(1, 4, count)
        shapes = {"mean": (count, 4, 4, 2), "std": (count, 4, 4, 2), "states": (captions.sum(), 3, 6)}
        arrays = {name: draw.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
        save_shard(folder, number, digest, **arrays, captions=captions)
        for name, array in {**arrays, "captions": captions}.items():
            whole[name].append(array)
    save_array(folder / "null.npy", np.zeros((3, 6), dtype))
    save_index(folder, len(counts), digest)
    return {name: np.concatenate(arrays) for name, arrays in whole.items()}


@pytest.fixture(params=["mapped", "read"])
def many(request, monkeypatch):
    """Few files stay mapped; of many, rows are read at their places."""
    if request.param == "read":
        monkeypatch.setattr(encoded, "MAPPED", 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_are_those_of_the_whole(tmp_path, many, dtype):
    whole, latents = write(tmp_path, dtype=dtype), Latents.load(tmp_path, 0.5)
    rows = np.random.default_rng(1).integers(15, size=40)
    for name in ("mean", "std", "states"):
        array = getattr(latents, name)
        assert (len(array), array.shape, array.dtype) == (len(whole[name]), whole[name].shape, dtype)
        for index in (slice(None), slice(3, 13, 4), slice(0, 1), slice(4, 4), rows, rows[:0], np.array([14, 0, 14])):
            np.testing.assert_array_equal(array[index], whole[name][index])
    np.testing.assert_array_equal(np.diff(latents.first), whole["captions"])
    with pytest.raises(IndexError):
        latents.mean[np.array([15])]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: latents.mean[rows], range(20)):
            np.testing.assert_array_equal(found, whole["mean"][rows])


def test_a_shard_that_is_not_whole_is_made_again_or_named(tmp_path, many):
    write(tmp_path)
    assert all(has_shard(tmp_path, n, "d") for n in range(4))
    assert not has_shard(tmp_path, 0, "other") and not has_shard(tmp_path, 4, "d")
    victim = tmp_path / "00002" / "mean.npy"
    content = victim.read_bytes()
    for damage in (content[:-8], content[:100], b""):
        victim.write_bytes(damage)
        assert not has_shard(tmp_path, 2, "d")
        with pytest.raises(UserError, match="00002/mean.npy is missing, cut short .* --forcerun latents"):
            Latents.load(tmp_path, 1.0).mean[np.arange(15)]
    victim.unlink()
    assert not has_shard(tmp_path, 2, "d")
    save_array(victim, np.zeros((6, 4, 4, 2), np.float32))
    assert not has_shard(tmp_path, 2, "d")
    save_array(victim, np.zeros((7, 2, 2, 2), np.float32))
    with pytest.raises(UserError, match="of another shape than its neighbours"):
        Latents.load(tmp_path, 1.0).mean[np.arange(15)]


def test_a_file_cut_short_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(encoded, "MAPPED", 1)
    write(tmp_path)
    latents = Latents.load(tmp_path, 1.0)
    assert latents.mean[:].any()
    victim = tmp_path / "00002" / "mean.npy"
    victim.write_bytes(victim.read_bytes()[:-40])
    with pytest.raises(UserError, match="00002/mean.npy is missing, cut short"):
        latents.mean[:]


def test_an_index_is_of_whole_shards_of_one_run_alone(tmp_path):
    write(tmp_path, counts=(4, 4, 4))
    write(tmp_path, counts=(3, 2))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["00000", "00001"]
    assert len(Latents.load(tmp_path, 1.0).mean) == 5
    (tmp_path / "00001" / "shard.json").write_text(json.dumps({"stage": "latents", "digest": "other"}))
    with pytest.raises(UserError, match="00001/shard.json was made from a different config"):
        save_index(tmp_path, 2, "d")
