"""Distil a model's guidance into one evaluation, then halve its steps, keeping the weights of every student."""

from pathlib import Path

from ldmscale.data.encoded import Latents
from ldmscale.diffusion.schedule import Schedule
from ldmscale.jobs import job
from ldmscale.models.network import net_config, with_guidance
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.tasks.guided import GuidedTask
from ldmscale.training.loop import TrainConfig, train
from ldmscale.training.sharding import Devices
from ldmscale.training.weights import load_weights

with job(snakemake, trains=True) as say:
    params, inputs, output = snakemake.params[0], snakemake.params[0]["inputs"], Path(snakemake.output[0])
    devices = Devices.of(snakemake.config, snakemake.wildcards.model)
    base, source = Path(snakemake.input.model), Path(snakemake.input.latents)
    latents = Latents.load(source.parent, read_manifest(source, "latents", inputs["latents"])["scale"])
    made = read_manifest(base, base.stem, inputs["model"])["weights"][params["base"]]
    student = net_config(params["student"], devices.remat)
    teacher, weights = with_guidance(load_weights(made, net_config(params["net"])), student), {}
    programs = {}  # students differ in their batches and their teacher
    for steps in (None, *params["students"]):
        settings = dict(params["halving"] if steps else params["finetune"])
        task = GuidedTask(
            student,
            Schedule(**params["diffusion"]),
            teacher,
            latents,
            settings.pop("batch"),
            params["seed"],
            steps=steps,
            cfg=tuple(params["cfg"]),
        )
        config = TrainConfig(**settings, seed=params["seed"])
        say(f"a student of {steps} steps" if steps else "guidance in one evaluation")
        folder = output.with_suffix("") / (f"s{steps}" if steps else "guidance")
        (path,) = train(
            task, config, folder, params["digest"], [config.steps], say=say, programs=programs, devices=devices
        ).values()
        teacher = load_weights(path, student)
        if steps:
            weights[f"guided_s{steps}-{config.steps}"] = str(path)
    write_manifest(output, "guided", params["digest"], weights=weights)
