"""Train the tokenizer on the training captions, or check the published one."""

from pathlib import Path

from ldmscale.data.records import read_split
from ldmscale.data.tokenizer import load_tokenizer, train_tokenizer
from ldmscale.jobs import job
from ldmscale.provenance import read_manifest, write_manifest

with job(snakemake):
    params = snakemake.params[0]
    if params.get("files"):
        file = Path(params["files"])
        load_tokenizer(file)
    else:
        data = Path(snakemake.input.data)
        read_manifest(data, "data", params["inputs"]["data"])
        captions = [text for texts in read_split(data.parent, "train").captions for text in texts]
        file = Path(snakemake.output[0]).with_name("bpe.json")
        train_tokenizer(captions, params["vocab_size"], file)
    write_manifest(snakemake.output[0], "tokenizer", params["digest"], file=str(file))
