"""Measure how long the study's networks take on this machine."""

from ldmscale.jobs import job
from ldmscale.metrics.timing import study_timing
from ldmscale.provenance import write_manifest

with job(snakemake) as say:
    params = snakemake.params[0]
    write_manifest(snakemake.output[0], "timing", params["digest"], timing=study_timing(params, snakemake.threads, say))
