"""Gather every job's scores into the tidy table."""

from ldmscale.jobs import job
from ldmscale.metrics.gather import scores_table
from ldmscale.metrics.scores_file import write_scores
from ldmscale.provenance import read_manifest

with job(snakemake.log[0], snakemake.threads):
    params = snakemake.params[0]
    rows = []
    for path, digest in zip(snakemake.input.scores, params["jobs"].values(), strict=True):
        rows += read_manifest(path, "score", digest)["rows"]
    costs = read_manifest(snakemake.input.costs, "costs", params["inputs"]["costs"])["costs"]
    write_scores(snakemake.output[0], scores_table(rows, params["family"], costs), params["digest"])
