"""Encode the prompts that cells draw: the gallery, and the first caption of each tuning and held-out image."""

from pathlib import Path

import numpy as np

from ldmscale.data.encoded import PROMPT_SPLITS, Prompts
from ldmscale.data.records import read_split
from ldmscale.data.tokenizer import load_tokenizer
from ldmscale.generation.encode import Encoders
from ldmscale.jobs import job
from ldmscale.models.clip import CLIPConfig, TextTower
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.training.encoders import load_encoder

with job(snakemake):
    params, inputs = snakemake.params[0], snakemake.params[0]["inputs"]
    clip, text = CLIPConfig(**params["clip"]), TextTower(**params["text"])
    data, tokenizer = Path(snakemake.input.data), Path(snakemake.input.tokenizer)
    read_manifest(data, "data", inputs["data"])
    bpe = load_tokenizer(read_manifest(tokenizer, "tokenizer", inputs["tokenizer"])["file"])
    texts = {"gallery": params["gallery"]}
    for split in PROMPT_SPLITS[1:]:
        texts[split] = [captions[0] for captions in read_split(data.parent, split).captions]

    encoders = Encoders(clip=clip, text=text)
    clip_weights = load_encoder(snakemake.input.clip, inputs["clip"], clip)
    text_weights = load_encoder(snakemake.input.text, inputs["text"], text)
    tokens = {split: bpe.encode(texts[split], text.context_length) for split in PROMPT_SPLITS}
    states = {split: encoders.states(text_weights, rows) for split, rows in tokens.items()}
    embeddings = {split: encoders.text_embeddings(clip_weights, rows) for split, rows in tokens.items()}
    null = encoders.states(text_weights, bpe.encode([""], text.context_length))[0]

    pairs = params["interpolation"].get("pairs", [])
    ends = bpe.encode([prompt for pair in pairs for prompt in pair], text.context_length)
    between, targets = np.zeros((0, 0, *null.shape), np.float32), np.zeros((0, 2, 0), np.float32)
    if pairs:
        ways = encoders.states(text_weights, ends).reshape(len(pairs), 2, 1, *null.shape)
        share = np.float32(params["interpolation"]["alphas"])[:, None, None]
        between = share * ways[:, 0] + (1 - share) * ways[:, 1]
        targets = encoders.text_embeddings(clip_weights, ends).reshape(len(pairs), 2, -1)

    Prompts(states, embeddings, null, between, targets).save(Path(snakemake.output[0]).parent)
    write_manifest(snakemake.output[0], "prompts", params["digest"], texts=texts)
