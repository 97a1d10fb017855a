"""Train CLIP, or check the weights that the config names."""

from pathlib import Path

from ldmscale.data.records import read_split
from ldmscale.data.tokenizer import load_tokenizer
from ldmscale.jobs import job
from ldmscale.models.clip import CLIPConfig
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.tasks.clip import CLIPTask, caption_rows
from ldmscale.training.encoders import train_encoder
from ldmscale.training.weights import check_weights

with job(snakemake, trains=True) as say:
    params, output = snakemake.params[0], Path(snakemake.output[0])
    config = CLIPConfig(**params["net"])
    if params["weights"]:
        weights = check_weights(params["weights"], config)
    else:
        data, tokenizer = Path(snakemake.input.data), Path(snakemake.input.tokenizer)
        read_manifest(data, "data", params["inputs"]["data"])
        file = read_manifest(tokenizer, "tokenizer", params["inputs"]["tokenizer"])["file"]
        records = read_split(data.parent, "train")
        texts, first = caption_rows(records.captions)
        tokens = load_tokenizer(file).encode(texts, config.context_length)
        task = CLIPTask(config, records.images, tokens, first, params["train"]["batch"], params["seed"])
        weights = train_encoder(task, params, output.with_suffix(""), say)
    write_manifest(output, "clip", params["digest"], weights=str(weights))
