"""Encoding shard by shard: the numbers of one pass over everything, and no shard encoded twice."""

from types import SimpleNamespace

import numpy as np
import pytest
import small_study

from ldmscale.data.encoded import Latents
from ldmscale.data.records import read_split, write_split
from ldmscale.data.scenes import SceneSource
from ldmscale.data.tokenizer import load_tokenizer
from ldmscale.errors import UserError
from ldmscale.generation import latents as encoding
from ldmscale.generation.encode import Encoders
from ldmscale.generation.latents import encode_shards, finish
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.clip import TextTower
from ldmscale.provenance import write_manifest
from ldmscale.tasks.clip import caption_rows
from ldmscale.training.encoders import load_encoder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A stage's params, the manifests that it reads, and its records in three shards."""
    folder = tmp_path_factory.mktemp("study")
    chain, results = small_study.make(folder), folder / "results" / "small"
    source = SceneSource(16, 25, 1, 1)
    write_split(results / "data", source, "train", 25, 10, "d")
    write_manifest(results / "data" / "data.json", "data", chain["data"]["digest"])
    paths = {name: results / "encoders" / f"{name}.json" for name in ("tokenizer", "autoencoder")}
    inputs = SimpleNamespace(data=results / "data" / "data.json", text=results / "encoders" / "clip.json", **paths)
    return chain["latents"], inputs, results


@pytest.fixture
def study(made, monkeypatch):
    monkeypatch.chdir(made[2].parents[1])  # paths in manifests are relative
    return made


def test_shards_are_encoded_once_and_hold_what_one_pass_gives(study, tmp_path):
    params, inputs, results = study
    folder, said = tmp_path / "latents", []
    for numbers in (range(1, 10**5, 2), None):  # a part of the job, then all that is left
        assert encode_shards(folder, params, inputs, numbers, said.append) == 3
    assert "1 of 3 shards are there already" in said
    scale, shape = finish(folder, 3, params)

    records = read_split(results / "data", "train")
    texts, first = caption_rows(records.captions)
    ae, text = AutoencoderConfig(**params["ae"]), TextTower(**params["text"])
    encoders, of = Encoders(ae, text=text), params["inputs"]
    mean, std = encoders.moments(load_encoder(inputs.autoencoder, of["autoencoder"], ae), records.images)
    tokens = load_tokenizer(results / "encoders" / "bpe.json").encode(["", *texts], text.context_length)
    states = encoders.states(load_encoder(inputs.text, of["text"], text), tokens)
    found = Latents.load(folder, scale)
    for name, array in {"mean": mean, "std": std, "states": states[1:], "first": first}.items():
        np.testing.assert_array_equal(getattr(found, name)[:], array)
    np.testing.assert_array_equal(found.null, states[0])
    assert shape == list(mean.shape) and scale == float(1 / np.sqrt(mean.var() + (std**2).mean()))

    # What is not whole is made again, and that alone.
    victim = folder / "00001" / "std.npy"
    whole, victims = victim.read_bytes(), {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}
    victim.write_bytes(whole[:-1])
    encode_shards(folder, params, inputs, None, said.append)
    assert victim.read_bytes() == whole
    changed = {str(path.relative_to(folder)) for path, when in victims.items() if path.stat().st_mtime_ns != when}
    assert changed == {"null.npy", *(f"00001/{name}.npy" for name in ("mean", "std", "states", "captions"))}


def test_half_the_bytes_and_a_scale_of_the_first_images(study, tmp_path, monkeypatch):
    params, inputs, _ = study
    monkeypatch.setattr(encoding, "MEASURED", 8)
    monkeypatch.setattr(encoding, "READ_AHEAD", 0)
    folder = tmp_path / "half"
    encode_shards(folder, {**params, "dtype": "float16"}, inputs, None, lambda line: None)
    scale, _ = finish(folder, 3, params)
    half = Latents.load(folder, scale)
    assert {getattr(half, name).dtype for name in ("mean", "std", "states", "null")} == {np.dtype(np.float16)}
    mean, std = half.mean[:8].astype(np.float32), half.std[:8].astype(np.float32)
    assert scale == float(1 / np.sqrt(mean.var() + (std**2).mean()))


def test_inputs_of_another_config_are_refused(study, tmp_path):
    params, inputs, _ = study
    other = {**params, "inputs": {**params["inputs"], "data": "another"}}
    with pytest.raises(UserError, match="data.json was made from a different config"):
        encode_shards(tmp_path / "latents", other, inputs, None, lambda line: None)
