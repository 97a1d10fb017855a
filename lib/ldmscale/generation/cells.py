"""Cells → images: every cell of a job in one warm process, each finished cell kept whatever happens next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldmscale.cells.cell import Cell
from ldmscale.data.encoded import Prompts, save_array
from ldmscale.diffusion.samplers import step_table
from ldmscale.diffusion.sampling import build_sampler, device_table
from ldmscale.diffusion.schedule import Schedule
from ldmscale.errors import UserError
from ldmscale.generation.encode import Encoders
from ldmscale.models.unet import UNet, UNetConfig
from ldmscale.provenance import is_current, write_manifest


def image_keys(seed: int, numbers: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Keys of each image's starting noise and of its sampler noise: from (seed, image number) alone."""
    base = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), np.asarray(numbers, np.uint32))
    both = jax.vmap(jax.random.split)(base)
    return both[:, 0], both[:, 1]


class Generator:
    """Samples cells of one network shape; programs compile once and serve every cell."""

    def __init__(
        self, net: UNetConfig, schedule: Schedule, encoders: Encoders, latent_size: int, batch: int, seed: int
    ):
        self.schedule, self.encoders, self.batch, self.seed = schedule, encoders, batch, seed
        self.shape = (latent_size, latent_size, net.in_channels)
        unet = UNet(net)

        def apply(params, z, t, context):
            return unet.apply({"params": params}, z, t, context)

        self._programs = {guided: build_sampler(apply, guided=guided) for guided in (True, False)}
        self._noise = jax.jit(jax.vmap(lambda key: jax.random.normal(key, self.shape)))

    def latents(self, params: Any, cell: Cell, spacing: str, states: np.ndarray, null: np.ndarray,
                numbers: np.ndarray) -> np.ndarray:  # fmt: skip
        """Sampled latents float32 [N,h,w,C] of ``cell`` for prompts ``states`` [N,L,D], images ``numbers`` [N]."""
        table = device_table(step_table(cell.sampler, self.schedule, cell.steps, spacing))
        program = self._programs[cell.cfg != 1.0]
        parts = []
        for start in range(0, len(numbers), self.batch):
            rows = np.arange(start, start + self.batch).clip(max=len(numbers) - 1)  # the last batch is padded
            start_keys, step_keys = image_keys(self.seed, numbers[rows])
            z = program(params, table, cell.cfg, self._noise(start_keys), states[rows], null, step_keys)
            parts.append(np.asarray(z)[: len(numbers) - start])
        return np.concatenate(parts)


def generate(cells: list[dict[str, Any]], folder: Path, generator: Generator, prompts: Prompts,
             weights: Callable[[Cell], Any], ae_params: Any, scale: float,
             say: Callable[[str], None]) -> None:  # fmt: skip
    """Draw each of ``cells`` (see ``Chain.cell``) into its own folder, skipping those that are there already.

    A cell's folder holds ``gallery.npy``, for a scored cell ``tuning.npy`` and ``heldout.npy`` (uint8 [N,S,S,3]), or,
    in a cell of interpolation, ``interpolation.npy`` alone; and, written last, ``sample.json`` with the cell's digest.
    Raises UserError if what is sampled is not finite.
    """
    for number, spec in enumerate(cells, 1):
        cell, target = Cell.parse(spec["path"]), folder / spec["path"]
        if is_current(target / "sample.json", "generate", spec["digest"]):
            continue
        (target / "sample.json").unlink(missing_ok=True)
        noises = spec["noises"]
        states, numbers, splits = prompts.interpolated(noises) if noises else prompts.drawn(spec["scored"])
        z = generator.latents(weights(cell), cell, spec["spacing"], states, prompts.null, numbers)
        if not np.isfinite(z).all():
            # As pixels they would be black, and scored as if they had been drawn.
            raise UserError(f"{spec['path']}: latents are not finite: its weights, or the latents' scale, are broken")
        images = generator.encoders.decode(ae_params, z / scale)
        for split in dict.fromkeys(splits):
            save_array(target / f"{split}.npy", images[[s == split for s in splits]])
        evaluations = len(step_table(cell.sampler, generator.schedule, cell.steps, spec["spacing"]))
        write_manifest(target / "sample.json", "generate", spec["digest"], evaluations=evaluations,
                       images={s: splits.count(s) for s in dict.fromkeys(splits)})  # fmt: skip
        say(f"{number}/{len(cells)}  {spec['path']}")
