"""Cells → images: every cell of a job in one warm process, each finished cell kept whatever happens next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldmscale import hosts
from ldmscale.cells.cell import Cell
from ldmscale.data.encoded import save_array
from ldmscale.diffusion.samplers import StepTable, step_table
from ldmscale.diffusion.sampling import build_sampler, device_table
from ldmscale.diffusion.schedule import Schedule
from ldmscale.errors import UserError
from ldmscale.generation.draws import Draws
from ldmscale.jobs import EVERY, Progress
from ldmscale.models.adapter import adapter
from ldmscale.models.network import NetConfig, network
from ldmscale.provenance import is_current, write_manifest
from ldmscale.runtime import forward_options
from ldmscale.training.sharding import Devices, Kept, batch_sharding, cpu_heavy, fetch, place, replicated
from ldmscale.training.weights import parameter_shapes


def image_keys(seed: int, numbers: np.ndarray | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys of each image's starting noise and of its sampler noise: from (seed, image number) alone."""
    base = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.asarray(numbers, jnp.uint32))
    both = jax.vmap(jax.random.split)(base)
    return both[:, 0], both[:, 1]


EVERYWHERE = Devices()


class Generator:
    """Samples cells of one network shape; programs compile once and serve every cell.

    The weights of an ``adapted`` network are {"unet": ..., "adapter": ...}, CoDi's. All devices of all of the job's
    hosts draw ``batch`` images together (or more, so that each has as many), or :meth:`at_once`, as ``devices`` says;
    every host asks for the same, and gets all of it. An image does not depend on its batch or its device.
    """

    def __init__(
        self, net: NetConfig, schedule: Schedule, latent_size: int, batch: int, seed: int, adapted: bool = False,
        devices: Devices = EVERYWHERE,
    ):  # fmt: skip
        self._mesh = devices.mesh()
        if self._mesh is not None and devices.fsdp == 1 and cpu_heavy(parameter_shapes(net)):
            self._mesh = None
        self.schedule, self.batch, self.seed = schedule, batch, seed
        if self._mesh is not None:
            self.batch = -(-batch // self._mesh.size) * self._mesh.size
        self.kept = Kept()
        self.shape = (latent_size, latent_size, net.out_channels)
        self._told = net.guidance_width > 0
        unet, beside = network(net), adapter(net) if adapted else None

        def apply(weights, z, t, context, *w):
            params, condition = weights
            seen = z if condition is None else jnp.concatenate([z, condition], axis=-1)
            if beside is None:
                return unet.apply({"params": params}, seen, t, context, *w)
            residuals = beside.apply({"params": params["adapter"]}, seen, t, context)
            return unet.apply({"params": params["unet"]}, seen, t, context, residuals=residuals)

        self._program = build_sampler(apply, told=self._told, options=forward_options())
        self._keys = jax.jit(lambda numbers: image_keys(seed, numbers))
        self._noise = jax.jit(jax.vmap(lambda key: jax.random.normal(key, self.shape)))

    def _here(self, tree: Any) -> Any:
        """What is the same for every image, on every device."""
        if self._mesh is None:
            return tree
        return jax.tree.map(lambda array: place(array, replicated(self._mesh)), tree)

    def _rows(self, array: np.ndarray | None) -> Any:
        """An image's row on its own device."""
        return array if self._mesh is None or array is None else place(array, batch_sharding(self._mesh))

    def latents(
        self, params: Any, cell: Cell, spacing: str, draws: Draws, tell: Callable[[int, int], None] = lambda *_: None
    ) -> np.ndarray:
        """Sampled latents float32 [N,h,w,C] of ``draws`` at the sampler, steps and guidance of ``cell``.

        ``tell(done, N)`` is called after every batch.
        """
        numbers = draws.numbers
        weights, null = self.kept(params, self._mesh), self._here(draws.null)
        table = self._here(device_table(step_table(cell.sampler, self.schedule, cell.steps, spacing)))
        cfg = cell.cfg if self._told or cell.cfg != 1.0 else None
        size, parts = self.at_once(len(numbers), cell.cfg), []
        for start in range(0, len(numbers), size):
            rows = np.arange(start, start + size).clip(max=len(numbers) - 1)  # the last batch is padded
            start_keys, step_keys = self._keys(self._rows(numbers[rows].astype(np.uint32)))
            condition = None if draws.condition is None else self._rows(draws.condition[rows])
            z = self._program((weights, condition), table, cfg, self._noise(start_keys),
                              self._rows(draws.states[rows]), null, step_keys)  # fmt: skip
            parts.append(fetch(z)[: len(numbers) - start])
            tell(min(start + size, len(numbers)), len(numbers))
        return np.concatenate(parts)

    def at_once(self, images: int, cfg: float) -> int:
        """How many of ``images`` a call draws: without guidance, where each is evaluated once, twice the batch, by the
        program that draws a batch with guidance."""
        return 2 * self.batch if cfg == 1.0 and not self._told and images > self.batch else self.batch

    def noise(self, params: Any, z: np.ndarray, t: int, states: np.ndarray) -> np.ndarray:
        """The noise that the network predicts, unguided, in latents ``z`` [N,h,w,C] at timestep ``t``, float32.

        Captions are ``states`` [N,L,D]. It is the sampling program's, at a single step that returns the noise.
        """
        one, none = np.ones(1), np.zeros(1)
        step = self._here(device_table(StepTable(np.array([t]), a=one, b=-one, c=none, s=none, alpha=one, sigma=one)))
        weights, null = self.kept(params, self._mesh), self._here(np.zeros_like(states[0]))
        size, parts = self.at_once(len(z), 1.0), []
        for start in range(0, len(z), size):
            rows = np.arange(start, start + size).clip(max=len(z) - 1)  # the last batch is padded
            keys, _ = self._keys(self._rows(rows.astype(np.uint32)))
            found = self._program((weights, None), step, None, self._rows(z[rows]), self._rows(states[rows]), null,
                                  keys)  # fmt: skip
            parts.append(fetch(found)[: len(z) - start])
        return np.concatenate(parts)


def generate(cells: list[dict[str, Any]], folder: Path, generator: Generator, draws: Callable[..., Draws],
             weights: Callable[[Cell], Any], decode: Callable[[np.ndarray], np.ndarray],
             say: Callable[[str], None]) -> None:  # fmt: skip
    """Draw each of ``cells`` (see ``Chain.cell``) into its own folder, skipping those that are there already.

    ``draws`` is from :func:`ldmscale.generation.draws.open_draws`; ``weights`` gives a cell's parameters, ``decode``
    makes images uint8 [N,S,S,3] of latents [N,h,w,C] of unit variance. A cell's folder holds an array of images for
    each split that it draws (of text-to-image, distilled or not, ``gallery.npy`` and, where it is scored,
    ``tuning.npy`` and ``heldout.npy``), and, written last, ``sample.json`` with the cell's digest.
    Of several hosts all sample, and the first alone decodes and writes.
    Raises UserError if what is sampled is not finite.
    """
    parsed = [Cell.parse(spec["path"]) for spec in cells]
    # Guidance evaluates twice; a cell that is not scored draws the gallery alone, few of the others' images.
    work = [
        cell.steps * (1 if cell.cfg == 1.0 else 2) * (1.0 if spec["draws"].get("scored", True) else 0.1)
        for spec, cell in zip(cells, parsed, strict=True)
    ]
    progress, begun = Progress(say, sum(work), every=EVERY), 0.0
    there = hosts.agreed([is_current(folder / c["path"] / "sample.json", "generate", c["digest"]) for c in cells])
    for number, (spec, cell, evaluated, done) in enumerate(zip(cells, parsed, work, there, strict=True), 1):
        target, before = folder / spec["path"], begun
        begun += evaluated
        if done:
            progress.skip(evaluated)
            continue
        if hosts.writes():
            (target / "sample.json").unlink(missing_ok=True)
        drawn = draws(cell, **spec["draws"])

        def tell(done: int, images: int, number=number, before=before, evaluated=evaluated) -> None:
            if done < images:
                text = f"cell {number}/{len(cells)}: {done}/{images} images"
                progress(before + evaluated * done / images, text)

        z = generator.latents(weights(cell), cell, spec["spacing"], drawn, tell)
        if not np.isfinite(z).all():
            # As pixels they would be black, and scored as if they had been drawn.
            raise UserError(f"{spec['path']}: latents are not finite: its weights, or the latents' scale, are broken")
        if not hosts.writes():
            continue
        images = decode(z)
        splits = {split: drawn.splits.count(split) for split in dict.fromkeys(drawn.splits)}
        for split in splits:
            save_array(target / f"{split}.npy", images[[s == split for s in drawn.splits]])
        evaluations = len(step_table(cell.sampler, generator.schedule, cell.steps, spec["spacing"]))
        write_manifest(target / "sample.json", "generate", spec["digest"], evaluations=evaluations, images=splits)
        progress(begun, f"{number}/{len(cells)}  {spec['path']}", always=True)
    hosts.barrier("generated")  # what the first still decodes, the others wait for here, where nothing times out
