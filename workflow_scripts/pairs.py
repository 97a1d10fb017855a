"""Degrade images into low-resolution ones and encode both, to train super-resolution on and to evaluate it with."""

from functools import lru_cache
from pathlib import Path

from ldmscale.data.encoded import save_array
from ldmscale.data.records import read_split
from ldmscale.data.tokenizer import load_tokenizer
from ldmscale.generation.encode import Encoders
from ldmscale.generation.pairs import encode_pairs
from ldmscale.jobs import job
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.clip import TextTower
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.storage import fetch
from ldmscale.training.encoders import load_encoder

with job(snakemake) as say:
    params, inputs = snakemake.params[0], snakemake.params[0]["inputs"]
    ae, text = AutoencoderConfig(**params["ae"]), TextTower(**params["text"])
    folder, tokenizer = Path(snakemake.output[0]).parent, snakemake.input.tokenizer
    scale = params["scale"] or read_manifest(snakemake.input.latents, "latents", inputs["latents"])["scale"]
    bpe = load_tokenizer(read_manifest(tokenizer, "tokenizer", inputs["tokenizer"])["file"])
    encoders = Encoders(ae, text=text)
    tokens = bpe.encode([""], text.context_length)
    save_array(
        folder / "null.npy", encoders.states(load_encoder(snakemake.input.text, inputs["text"], text), tokens)[0]
    )
    if "data" in inputs:
        read_manifest(snakemake.input.data, "data", inputs["data"])

    @lru_cache(maxsize=1)
    def own(split):
        return read_split(Path(snakemake.input.data).parent, split).images

    weights = load_encoder(snakemake.input.autoencoder, inputs["autoencoder"], ae)
    photos = {key: params[key] and fetch(params[key]) for key in ("train", "evaluation", "evaluation_lr")}
    settings = {**params, **photos}
    count = encode_pairs(folder, settings, params["image_size"], params["seed"], own, encoders, weights, scale, say)
    write_manifest(snakemake.output[0], "pairs", params["digest"], patches=count, scale=scale)
