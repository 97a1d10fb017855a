"""Count what every network of the study costs."""

from ldmscale.jobs import job
from ldmscale.metrics.costs import study_costs
from ldmscale.provenance import write_manifest

with job(snakemake):
    params = snakemake.params[0]
    write_manifest(snakemake.output[0], "costs", params["digest"], costs=study_costs(params))
