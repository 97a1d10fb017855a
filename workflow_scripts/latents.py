"""Encode the training images and captions once; of a part of the job, every so many shards of them."""

from pathlib import Path

from ldmscale.generation.latents import encode_shards, finish
from ldmscale.jobs import job
from ldmscale.provenance import write_manifest

with job(snakemake) as say:
    params, output = snakemake.params[0], Path(snakemake.output[0])
    part = range(int(snakemake.wildcards.part), 10**5, int(snakemake.wildcards.parts)) if snakemake.wildcards else None
    shards = encode_shards(output.parent, params, snakemake.input, part, say)
    about = {}
    if part is None:
        about["scale"], about["shape"] = finish(output.parent, shards, params)
    write_manifest(output, "latents", params["digest"], **about)
