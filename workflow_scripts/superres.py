"""Finetune a model on super-resolution, keeping its weights at the checkpoints."""

from pathlib import Path

from ldmscale.data.encoded import load_array
from ldmscale.diffusion.schedule import Schedule
from ldmscale.jobs import job
from ldmscale.models.network import net_config
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.tasks.superres import SuperresTask
from ldmscale.training.loop import TrainConfig, train
from ldmscale.training.sharding import Devices
from ldmscale.training.weights import load_weights

with job(snakemake, trains=True) as say:
    params, inputs, output = snakemake.params[0], snakemake.params[0]["inputs"], Path(snakemake.output[0])
    devices = Devices.of(snakemake.config, snakemake.wildcards.model)
    base, source = Path(snakemake.input.model), Path(snakemake.input.pairs)
    scale = read_manifest(source, "pairs", inputs["pairs"])["scale"]
    made = read_manifest(base, base.stem, inputs["model"])["weights"]
    arrays = {name: load_array(source.with_name(f"train-{name}.npy")) for name in ("mean", "std", "condition")}
    settings = dict(params["train"])
    task = SuperresTask(
        config=net_config(params["widened"], devices.remat),
        schedule=Schedule(**params["diffusion"]),
        params=load_weights(made[params["base"]], net_config(params["net"])),
        **arrays,
        null=load_array(source.with_name("null.npy")),
        scale=scale,
        batch_size=settings.pop("batch"),
        seed=params["seed"],
    )
    config = TrainConfig(**settings, steps=params["steps"], seed=params["seed"])
    kept = train(
        task, config, output.with_suffix(""), params["digest"], params["checkpoints"], say=say, devices=devices
    )
    weights = {f"superres-{step}": str(path) for step, path in kept.items()}
    write_manifest(output, "superres", params["digest"], weights=weights)
