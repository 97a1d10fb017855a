"""A small training, and images drawn with what came of it, on whatever devices the process has.

python devices_run.py FOLDER LAYOUT ... trains and draws for each of :data:`LAYOUTS` named, into FOLDER/LAYOUT, as one
of the processes that LDMSCALE_HOSTS tells of; LDMSCALE_TEST_DEVICES says how many devices each has.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from ldmscale import hosts
from ldmscale.cells.cell import Cell
from ldmscale.data.encoded import Latents
from ldmscale.diffusion.schedule import Schedule
from ldmscale.generation.cells import Generator, generate
from ldmscale.generation.draws import Draws
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.dit import DiTConfig
from ldmscale.tasks.pretrain import PretrainTask
from ldmscale.tasks.preview import preview
from ldmscale.training import loop, sharding
from ldmscale.training.checkpoint import load_tree
from ldmscale.training.collectives import collectives
from ldmscale.training.loop import TrainConfig, train
from ldmscale.training.programs import sampling
from ldmscale.training.sharding import Devices
from ldmscale.training.weights import parameter_shapes

SIZE, STEPS = 4, 6
CONFIG = TrainConfig(STEPS, 1e-2, 2, 0.01, seed=5, ema=0.9)
CELL = Cell("t2i", "m", "pretrain-6", "ddpm", 3, 2.0)
NET = DiTConfig(width=16, depth=1, heads=2, context_width=8)  # compiles in a fifth of a U-Net's time
LAYOUTS = {
    "plain": Devices(),
    "fsdp": Devices(fsdp=4),
    "accumulated": Devices(accumulate=2),
    "remat": Devices(remat=True),
    "all": Devices(fsdp=4, accumulate=2, remat=True),
}


def make_task(layout="plain", batch=16):
    draw = np.random.default_rng(0)
    shape = (40, SIZE, SIZE, 4)
    mean, std, states = (draw.normal(size=s).astype(np.float32) for s in (shape, shape, (60, 3, 8)))
    latents = Latents(mean, 0.1 * abs(std), states, np.arange(41) * 60 // 40, states[0], scale=0.9)
    net = replace(NET, remat=LAYOUTS[layout].remat)
    return PretrainTask(net, Schedule(), latents, batch, text_dropout=0.3, seed=5)


def run(folder, layout, keep=(3, STEPS)):
    """Train -> lines said; losses and pictures of the steps are in the folder, and what a device holds of the state."""
    said, held, task = [], {}, make_task(layout)
    ae = AutoencoderConfig(channels=4, channel_mult=(1,), blocks_per_level=1, latent_channels=4, norm_groups=2)
    random = np.random.default_rng(2)
    weights = jax.tree.map(lambda x: random.normal(0, 0.3, x.shape).astype(np.float32), parameter_shapes(ae))
    draw = preview(task, ae, weights, 5, LAYOUTS[layout])

    class States(loop.States):
        def save(self, step, state):
            if step not in keep:
                return  # a run this short would save after every step
            leaves = jax.tree.leaves(state)
            if isinstance(leaves[-1], jax.Array):
                held["whole"] = sum(x.nbytes for x in leaves)
                held["device"] = sum(x.addressable_shards[0].data.nbytes for x in leaves)
            super().save(step, state)

    usual, loop.States = loop.States, States
    try:
        train(task, CONFIG, folder, "digest", keep, 1, said.append, draw, devices=LAYOUTS[layout])
    finally:
        loop.States = usual
    return said, held


def images(weights, folder, devices):
    """Draw a cell of 11 images, five at a time or as many as the devices need -> its latents."""
    generator = Generator(NET, Schedule(), SIZE, 5, 3, devices=devices)
    draw = np.random.default_rng(1)
    states = draw.normal(size=(11, 3, 8)).astype(np.float32)
    draws = Draws(states, states[0], 1000 + np.arange(11), ["gallery"] * 11)
    seen = []

    def decode(z):
        seen.append(z)
        return np.clip(np.round(127.5 + 20 * z[..., :3]), 0, 255).astype(np.uint8)

    spec = {"path": CELL.path, "draws": {}, "spacing": "leading", "digest": "d"}
    generate([spec], folder, generator, lambda cell: draws, lambda cell: weights, decode, lambda line: None)
    hosts.barrier("looked at")
    return {"images": np.load(folder / CELL.path / "gallery.npy"), "decoded": len(seen)}


def spread_over():
    """How many devices rows go to; what sampling sends between them in its steps, by kind."""
    program, ones = jax.jit(lambda p, x: p + x), np.ones(2**16, np.float32)
    rows = {n: np.ones((n, 2**16), np.float32) for n in (8, 12)}
    devices = {str(n): len(sharding.spread(program, ones, n)(x).sharding.device_set) for n, x in rows.items()}
    usual, sharding.HEAVY = sharding.HEAVY, ones.nbytes - 1
    devices["heavy"] = len(sharding.spread(program, ones, 8)(rows[8]).sharding.device_set)
    sharding.HEAVY = usual
    kept = sharding.Kept()
    mesh = Devices().mesh()
    assert kept(ones, mesh) is kept(ones, mesh) is not kept(ones, None)
    return {"devices": devices, "sent": list(collectives(sampling(NET, SIZE, 3, 1, mesh).compile().as_text()))}


def main(folder, *layouts):
    count = int(os.environ["LDMSCALE_TEST_DEVICES"])
    jax.config.update("jax_num_cpu_devices", count)
    hosts.connect()
    assert jax.local_device_count() == count
    sharding.LEAST_ELEMENTS = 100  # so that tensors this small are cut at all
    for layout in layouts:
        place = Path(folder) / layout
        place.mkdir(exist_ok=True)
        said, held = run(place, layout)
        weights = load_tree(place / f"step-{STEPS}.safetensors", parameter_shapes(NET))[0]
        found = images(weights, place, LAYOUTS[layout])
        np.savez(place / f"found-{hosts.index()}.npz", said=json.dumps(said), **held, **found)
    if count == 8:
        (Path(folder) / "spread.json").write_text(json.dumps(spread_over()))


if __name__ == "__main__":
    main(*sys.argv[1:])
