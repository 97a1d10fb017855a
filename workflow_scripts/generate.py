"""Sample the images of a job's cells."""

import re
from functools import lru_cache
from pathlib import Path

from ldmscale.cells.cell import Cell
from ldmscale.diffusion.schedule import Schedule
from ldmscale.generation.cells import Generator, generate
from ldmscale.generation.draws import open_draws
from ldmscale.generation.encode import Encoders
from ldmscale.jobs import job
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.network import net_config
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.training.encoders import load_encoder
from ldmscale.training.sharding import Devices
from ldmscale.training.weights import load_adapted, load_weights

with job(snakemake) as say:
    params, inputs = snakemake.params[0], snakemake.params[0]["inputs"]
    devices = Devices.of(snakemake.config, Cell.parse(params["cells"][0]["path"]).model)
    ae, net = AutoencoderConfig(**params["ae"]), net_config(params["net"])
    made = read_manifest(snakemake.input.model, Path(snakemake.input.model).stem, inputs["model"])
    scale = params["scale"] or read_manifest(snakemake.input.latents, "latents", inputs["latents"])["scale"]
    source = Path(snakemake.input.draws)
    read_manifest(source, source.stem, inputs[source.stem])
    adapted = params["task"] == "codi"
    generator = Generator(
        net, Schedule(**params["diffusion"]), params["latent_size"], params["batch"], params["seed"], adapted, devices
    )
    encoders = Encoders(ae, batch=params["batch"])
    ae_weights = load_encoder(snakemake.input.autoencoder, inputs["autoencoder"], ae)

    @lru_cache(maxsize=1)
    def weights(name):
        path = made["weights"][name]
        return load_adapted(path, net, made["unet"]) if adapted else load_weights(path, net)

    root = Path(re.sub(r"task=.*", "", snakemake.output[0]))
    generate(
        params["cells"], root, generator, open_draws(params["task"], source.parent), lambda cell: weights(cell.weights),
        lambda z: encoders.decode(ae_weights, z / scale), say,
    )  # fmt: skip
    write_manifest(snakemake.output[0], "generate", params["digest"], cells=[c["path"] for c in params["cells"]])
