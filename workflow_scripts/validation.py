"""The validation loss of every model's checkpoints, per noise level and image, skipping models that have it."""

from pathlib import Path

import numpy as np

from ldmscale.data.encoded import load_array, save_array
from ldmscale.data.records import read_split
from ldmscale.diffusion.schedule import Schedule
from ldmscale.generation.cells import Generator
from ldmscale.generation.encode import Encoders
from ldmscale.jobs import job
from ldmscale.metrics.validation import Validator, level_timesteps
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.network import net_config
from ldmscale.provenance import is_current, read_manifest, write_manifest
from ldmscale.training.encoders import load_encoder
from ldmscale.training.weights import load_weights

with job(snakemake) as say:
    params, inputs, paths = snakemake.params[0], snakemake.params[0]["inputs"], snakemake.input
    data, prompts = Path(paths.data), Path(paths.prompts)
    read_manifest(data, "data", inputs["data"])
    read_manifest(prompts, "prompts", inputs["prompts"])
    scale = params["scale"] or read_manifest(paths.latents, "latents", inputs["latents"])["scale"]
    images = read_split(data.parent, "heldout").images[: params["images"]]
    ae, schedule = AutoencoderConfig(**params["ae"]), Schedule(**params["diffusion"])
    encoders = Encoders(ae, batch=params["batch"])
    latents = scale * encoders.moments(load_encoder(paths.autoencoder, inputs["autoencoder"], ae), images)[0]
    states = load_array(prompts.parent / "heldout-states.npy")[: len(images)]
    timesteps = level_timesteps(schedule.steps, params["levels"])
    validator = Validator(schedule, latents, states, timesteps, params["seed"])
    say(f"{len(images)} held-out images encoded")

    for manifest, (model, spec) in zip(paths.models, params["models"].items(), strict=True):
        folder = Path(manifest).parent
        if is_current(folder / "validation.json", "validation", spec["digest"]):
            continue
        weights = read_manifest(manifest, Path(manifest).stem, spec["model"])["weights"]
        net = net_config(spec["net"])
        generator = Generator(net, schedule, params["latent_size"], params["batch"], params["seed"])
        losses = [validator.losses(generator, load_weights(weights[name], net)) for name in spec["weights"]]
        save_array(folder / "validation.npy", np.stack(losses))
        write_manifest(folder / "validation.json", "validation", spec["digest"], weights=spec["weights"],
                       timesteps=timesteps.tolist())  # fmt: skip
        say(f"{model}: " + ", ".join(f"{x.mean():.4f} ({n})" for n, x in zip(spec["weights"], losses, strict=True)))
    write_manifest(snakemake.output[0], "validation", params["digest"], models=list(params["models"]))
