"""Finetune a model on each DreamBooth subject, keeping its weights at the checkpoints."""

from pathlib import Path

import numpy as np

from ldmscale.data.encoded import load_array
from ldmscale.diffusion.schedule import Schedule
from ldmscale.jobs import job
from ldmscale.models.network import net_config
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.tasks.dreambooth import Concept, DreamBoothTask
from ldmscale.training.loop import TrainConfig, train
from ldmscale.training.sharding import Devices
from ldmscale.training.weights import load_weights

with job(snakemake, trains=True) as say:
    params, inputs, output = snakemake.params[0], snakemake.params[0]["inputs"], Path(snakemake.output[0])
    devices = Devices.of(snakemake.config, snakemake.wildcards.model)
    base, source = Path(snakemake.input.model), Path(snakemake.input.subjects)
    made = read_manifest(source, "subjects", inputs["subjects"])
    net, scale = net_config(params["net"], devices.remat), made["scale"]
    pretrained = load_weights(read_manifest(base, base.stem, inputs["model"])["weights"][params["base"]], net)
    prior_files = {}
    if params["prior_weight"]:
        manifest = read_manifest(snakemake.input.class_images, "class_images", inputs["class_images"])
        prior_files = manifest["latents"]
    settings = dict(params["train"])
    batch = settings.pop("batch")
    config = TrainConfig(**settings, steps=params["steps"], seed=params["seed"])
    weights, programs = {}, {}  # subjects differ in their batches
    for subject, about in made["subjects"].items():
        folder = source.parent / subject
        mean, std, name, kind = (load_array(folder / f"{part}.npy") for part in ("mean", "std", "name", "class"))
        prior = None
        if prior_files:
            drawn = load_array(prior_files[about["class_name"]]) / np.float32(scale)
            prior = Concept(drawn, np.zeros_like(drawn), kind)
        task = DreamBoothTask(
            net, Schedule(**params["diffusion"]), pretrained, Concept(mean, std, name), prior, scale, params["seed"],
            batch, params["prior_weight"],
        )  # fmt: skip
        say(f"{subject}, a {about['class_name']}")
        folder = output.with_suffix("") / subject
        kept = train(
            task, config, folder, params["digest"], params["checkpoints"], say=say, programs=programs, devices=devices
        )
        weights |= {f"dreambooth_{subject}-{step}": str(path) for step, path in kept.items()}
    write_manifest(output, "dreambooth", params["digest"], weights=weights)
