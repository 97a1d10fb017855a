"""Train one U-Net of the family, keeping its weights at the checkpoints."""

from pathlib import Path

from ldmscale.data.encoded import Latents
from ldmscale.diffusion.schedule import Schedule
from ldmscale.jobs import job
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.network import net_config
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.tasks.pretrain import PretrainTask
from ldmscale.tasks.preview import preview
from ldmscale.training.encoders import load_encoder
from ldmscale.training.loop import TrainConfig, train
from ldmscale.training.sharding import Devices

with job(snakemake, trains=True) as say:
    params, output = snakemake.params[0], Path(snakemake.output[0])
    digest, keep = params["digest"], params["checkpoints"]
    devices = Devices.of(snakemake.config, snakemake.wildcards.model)
    source = Path(snakemake.input.latents)
    latents = Latents.load(source.parent, read_manifest(source, "latents", params["inputs"]["latents"])["scale"])
    settings = dict(params["train"])
    task = PretrainTask(
        net_config(params["net"], devices.remat),
        Schedule(**params["diffusion"]),
        latents,
        settings.pop("batch"),
        settings.pop("text_dropout"),
        params["seed"],
    )
    config = TrainConfig(**settings, steps=params["steps"], seed=params["seed"])
    ae = AutoencoderConfig(**params["pictures"]["ae"])
    ae_weights = load_encoder(snakemake.input.autoencoder, params["pictures"]["autoencoder"], ae)
    draw = preview(task, ae, ae_weights, snakemake.config["sampling"]["batch"], devices)
    kept = train(task, config, output.with_suffix(""), digest, keep, say=say, draw=draw, devices=devices)
    weights = {f"pretrain-{step}": str(path) for step, path in kept.items()}
    write_manifest(output, "pretrain", digest, weights=weights)
