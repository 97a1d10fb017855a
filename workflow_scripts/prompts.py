"""Encode the prompts that cells draw: the gallery, and the first caption of each tuning and held-out image."""

from pathlib import Path

from ldmscale.data.encoded import PROMPT_SPLITS, Prompts
from ldmscale.data.records import read_split
from ldmscale.data.tokenizer import load_tokenizer
from ldmscale.generation.encode import Encoders
from ldmscale.jobs import job
from ldmscale.models.clip import CLIPConfig
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.training.encoders import load_encoder

with job(snakemake.log[0], snakemake.threads):
    params, inputs = snakemake.params[0], snakemake.params[0]["inputs"]
    clip = CLIPConfig(**params["clip"])
    data, tokenizer = Path(snakemake.input.data), Path(snakemake.input.tokenizer)
    read_manifest(data, "data", inputs["data"])
    read_manifest(tokenizer, "tokenizer", inputs["tokenizer"])
    bpe = load_tokenizer(tokenizer.with_name("bpe.json"))
    weights = load_encoder(snakemake.input.clip, inputs["clip"], clip)
    encoders = Encoders(clip=clip)
    texts = {"gallery": params["gallery"]}
    for split in PROMPT_SPLITS[1:]:
        texts[split] = [captions[0] for captions in read_split(data.parent, split).captions]
    encoded = {s: encoders.text(weights, bpe.encode(texts[s], clip.context_length)) for s in PROMPT_SPLITS}
    null = encoders.text(weights, bpe.encode([""], clip.context_length))[0][0]
    prompts = Prompts({s: e[0] for s, e in encoded.items()}, {s: e[1] for s, e in encoded.items()}, null)
    prompts.save(Path(snakemake.output[0]).parent)
    write_manifest(snakemake.output[0], "prompts", params["digest"], texts=texts)
