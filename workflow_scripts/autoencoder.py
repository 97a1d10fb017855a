"""Train the KL autoencoder, or check the weights that the config names."""

from pathlib import Path

import numpy as np

from ldmscale.data.patches import crops
from ldmscale.data.records import read_split
from ldmscale.jobs import job
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.tasks.autoencoder import AutoencoderTask
from ldmscale.training.encoders import train_encoder
from ldmscale.training.weights import check_weights

with job(snakemake, trains=True) as say:
    params, output = snakemake.params[0], Path(snakemake.output[0])
    config = AutoencoderConfig(**params["net"])
    if params["weights"]:
        weights = check_weights(params["weights"], config)
    else:
        data = Path(snakemake.input.data)
        read_manifest(data, "data", params["inputs"]["data"])
        images = read_split(data.parent, "train").images
        if "photos" in params:
            say(f"half of the images are crops of {params['photos']}")
            images = np.concatenate([images, crops(params["photos"], images.shape[1], len(images), params["seed"])])
        task = AutoencoderTask(config, images, params["train"]["batch"], params["kl_weight"], params["seed"])
        weights = train_encoder(task, params, output.with_suffix(""), say)
    write_manifest(output, "autoencoder", params["digest"], weights=str(weights))
