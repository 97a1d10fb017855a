"""Encode the training images and captions once."""

from pathlib import Path

import numpy as np

from ldmscale.data.encoded import Latents
from ldmscale.data.records import read_split
from ldmscale.data.tokenizer import load_tokenizer
from ldmscale.generation.encode import Encoders
from ldmscale.jobs import EVERY, Progress, job
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.clip import TextTower
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.tasks.clip import caption_rows
from ldmscale.training.encoders import load_encoder

with job(snakemake) as say:
    params, inputs = snakemake.params[0], snakemake.params[0]["inputs"]
    ae, text = AutoencoderConfig(**params["ae"]), TextTower(**params["text"])
    data, tokenizer = Path(snakemake.input.data), Path(snakemake.input.tokenizer)
    read_manifest(data, "data", inputs["data"])
    file = read_manifest(tokenizer, "tokenizer", inputs["tokenizer"])["file"]
    records = read_split(data.parent, "train")
    texts, first = caption_rows(records.captions)
    tokens = load_tokenizer(file).encode(["", *texts], text.context_length)

    encoders = Encoders(ae, text=text)
    images = Progress(say, len(records.images), EVERY).counted("images encoded")
    weights = load_encoder(snakemake.input.autoencoder, inputs["autoencoder"], ae)
    mean, std = encoders.moments(weights, records.images, images)
    captions = Progress(say, len(tokens), EVERY).counted("captions encoded")
    states = encoders.states(load_encoder(snakemake.input.text, inputs["text"], text), tokens, captions)
    scale = params["scale"] or float(1.0 / np.sqrt(mean.var() + (std**2).mean()))
    Latents(mean, std, states[1:], first, states[0], scale).save(Path(snakemake.output[0]).parent)
    write_manifest(snakemake.output[0], "latents", params["digest"], scale=scale, shape=list(mean.shape))
