"""Check the published text encoder that the config names."""

from ldmscale.jobs import job
from ldmscale.models.clip import TextTower
from ldmscale.provenance import write_manifest
from ldmscale.training.weights import check_weights

with job(snakemake):
    params = snakemake.params[0]
    weights = check_weights(params["weights"], TextTower(**params["net"]))
    write_manifest(snakemake.output[0], "text_encoder", params["digest"], weights=str(weights))
