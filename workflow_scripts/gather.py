"""Gather every job's scores into the tidy table."""

from ldmscale.analysis.trainings import over_trainings
from ldmscale.jobs import job
from ldmscale.metrics.gather import scores_table, with_seconds
from ldmscale.metrics.scores_file import write_scores
from ldmscale.provenance import read_manifest

with job(snakemake):
    params = snakemake.params[0]
    rows = []
    for path, digest in zip(snakemake.input.scores, params["jobs"].values(), strict=True):
        rows += read_manifest(path, "score", digest)["rows"]
    costs = read_manifest(snakemake.input.costs, "costs", params["inputs"]["costs"])["costs"]
    timing = read_manifest(snakemake.input.timing, "timing", params["inputs"]["timing"])["timing"]
    table = with_seconds(scores_table(rows, params["family"], costs), timing)
    if "trainings" in snakemake.output.keys():
        write_scores(snakemake.output.trainings, table, params["digest"])
    write_scores(snakemake.output.scores, over_trainings(table), params["digest"])
