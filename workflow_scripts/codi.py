"""Distil a model by conditional consistency, keeping its weights at the checkpoints."""

from pathlib import Path

from ldmscale.data.encoded import Latents
from ldmscale.diffusion.schedule import Schedule
from ldmscale.jobs import job
from ldmscale.models.network import net_config
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.tasks.codi import CoDiTask
from ldmscale.training.loop import TrainConfig, train
from ldmscale.training.sharding import Devices
from ldmscale.training.weights import load_weights

with job(snakemake, trains=True) as say:
    params, inputs, output = snakemake.params[0], snakemake.params[0]["inputs"], Path(snakemake.output[0])
    devices = Devices.of(snakemake.config, snakemake.wildcards.model)
    base, source = Path(snakemake.input.model), Path(snakemake.input.latents)
    latents = Latents.load(source.parent, read_manifest(source, "latents", inputs["latents"])["scale"])
    net = net_config(params["net"], devices.remat)
    teacher = read_manifest(base, base.stem, inputs["model"])["weights"][params["base"]]
    settings = dict(params["train"])
    task = CoDiTask(
        net,
        Schedule(**params["diffusion"]),
        load_weights(teacher, net),
        latents,
        settings.pop("batch"),
        params["seed"],
        trainable=params["trainable"],
        cfg=tuple(params["cfg"]),
        **params["loss"],
    )
    config = TrainConfig(**settings, steps=params["steps"], seed=params["seed"])
    kept = train(
        task, config, output.with_suffix(""), params["digest"], params["checkpoints"], say=say, devices=devices
    )
    weights = {f"codi-{step}": str(path) for step, path in kept.items()}
    # The adapter's U-Net is the teacher's; where it was trained as well, it is in the checkpoint.
    unet = teacher if params["trainable"] == "adapter" else None
    write_manifest(output, "codi", params["digest"], weights=weights, unet=unet)
