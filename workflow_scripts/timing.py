"""Measure how long the study's networks take on this machine."""

from ldmscale.jobs import job
from ldmscale.metrics.timing import study_timing
from ldmscale.provenance import write_manifest

# As the jobs that draw the cells, so these are their compiled programs; the others that it is given are to stand still.
THREADS = 1

with job(snakemake, threads=THREADS) as say:
    params = snakemake.params[0]
    write_manifest(snakemake.output[0], "timing", params["digest"], timing=study_timing(params, THREADS, say))
