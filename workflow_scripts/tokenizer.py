"""Train the tokenizer on the training captions."""

from pathlib import Path

from ldmscale.data.records import read_split
from ldmscale.data.tokenizer import train_tokenizer
from ldmscale.jobs import job
from ldmscale.provenance import read_manifest, write_manifest

with job(snakemake.log[0], snakemake.threads):
    params = snakemake.params[0]
    data = Path(snakemake.input.data)
    read_manifest(data, "data", params["inputs"]["data"])
    captions = [text for texts in read_split(data.parent, "train").captions for text in texts]
    train_tokenizer(captions, params["vocab_size"], Path(snakemake.output[0]).with_name("bpe.json"))
    write_manifest(snakemake.output[0], "tokenizer", params["digest"])
