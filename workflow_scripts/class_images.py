"""Have a model draw images of each subject's class, as latents: what DreamBooth is to preserve."""

from pathlib import Path

import numpy as np

from ldmscale.cells.cell import Cell
from ldmscale.data.encoded import OFFSETS, load_array, save_array
from ldmscale.diffusion.schedule import Schedule
from ldmscale.errors import UserError
from ldmscale.generation.cells import Generator
from ldmscale.generation.draws import Draws
from ldmscale.jobs import job
from ldmscale.models.network import net_config
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.training.sharding import Devices
from ldmscale.training.weights import load_weights

with job(snakemake) as say:
    params, inputs, output = snakemake.params[0], snakemake.params[0]["inputs"], Path(snakemake.output[0])
    devices = Devices.of(snakemake.config, snakemake.wildcards.model)
    base, source = Path(snakemake.input.model), Path(snakemake.input.subjects)
    subjects = read_manifest(source, "subjects", inputs["subjects"])["subjects"]
    net = net_config(params["net"])
    weights = load_weights(read_manifest(base, base.stem, inputs["model"])["weights"][params["base"]], net)
    generator = Generator(
        net, Schedule(**params["diffusion"]), params["latent_size"], params["batch"], params["seed"], devices=devices
    )
    cell = Cell("t2i", snakemake.wildcards.model, params["base"], params["sampler"], params["steps"], params["cfg"])
    numbers = OFFSETS["prior"] + np.arange(params["images"])
    null, files = load_array(source.parent / "null.npy"), {}
    for name, about in subjects.items():
        kind = about["class_name"]
        if kind in files:
            continue
        state = load_array(source.parent / name / "class.npy")
        draws = Draws(np.broadcast_to(state, (len(numbers), *state.shape)), null, numbers, ["prior"] * len(numbers))
        z = generator.latents(weights, cell, params["spacing"], draws)
        if not np.isfinite(z).all():
            raise UserError(f"the latents that {cell.model} drew for '{kind}' are not finite: its weights are broken")
        files[kind] = str(output.with_suffix("") / f"{len(files)}.npy")
        save_array(files[kind], z)
        say(f"{len(z)} images of a {kind}")
    write_manifest(output, "class_images", params["digest"], latents=files)
