"""Check the published weights of a member of the family."""

from ldmscale.config.study import PUBLISHED
from ldmscale.jobs import job
from ldmscale.models.network import net_config
from ldmscale.provenance import write_manifest
from ldmscale.training.weights import check_weights

with job(snakemake):
    params = snakemake.params[0]
    weights = check_weights(params["weights"], net_config(params["net"]))
    write_manifest(snakemake.output[0], "published", params["digest"], weights={PUBLISHED: str(weights)})
