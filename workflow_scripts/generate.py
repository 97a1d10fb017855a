"""Sample the images of a job's cells."""

import re
from functools import lru_cache
from pathlib import Path

from ldmscale.data.encoded import Prompts
from ldmscale.diffusion.schedule import Schedule
from ldmscale.generation.cells import Generator, generate, unet_shapes
from ldmscale.generation.encode import Encoders
from ldmscale.jobs import job
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.unet import UNetConfig
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.training.checkpoint import load_tree
from ldmscale.training.encoders import load_encoder

with job(snakemake.log[0], snakemake.threads) as say:
    params, inputs = snakemake.params[0], snakemake.params[0]["inputs"]
    ae, net = AutoencoderConfig(**params["ae"]), UNetConfig(**params["net"])
    checkpoints = read_manifest(snakemake.input.pretrain, "pretrain", inputs["pretrain"])["weights"]
    scale = read_manifest(snakemake.input.latents, "latents", inputs["latents"])["scale"]
    read_manifest(snakemake.input.prompts, "prompts", inputs["prompts"])
    prompts = Prompts.load(Path(snakemake.input.prompts).parent)
    generator = Generator(
        net, Schedule(**params["diffusion"]), Encoders(ae, batch=params["batch"]), params["latent_size"],
        params["batch"], params["seed"],
    )  # fmt: skip
    shapes = unet_shapes(net, params["latent_size"], prompts.null.shape)

    @lru_cache(maxsize=1)
    def weights(step):
        return load_tree(checkpoints[str(step)], shapes)[0]

    root = Path(re.sub(r"task=.*", "", snakemake.output[0]))
    generate(
        params["cells"], root, generator, prompts, lambda cell: weights(cell.train_step),
        load_encoder(snakemake.input.autoencoder, inputs["autoencoder"], ae), scale, say,
    )  # fmt: skip
    write_manifest(snakemake.output[0], "generate", params["digest"], cells=[c["path"] for c in params["cells"]])
