"""Pictures of a text-to-image network while it trains, to see what it has learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ldmscale.cells.cell import Cell
from ldmscale.generation.cells import Generator
from ldmscale.generation.draws import Draws
from ldmscale.generation.encode import Encoders
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.tasks.pretrain import PretrainTask
from ldmscale.training.sharding import Devices

# Few pictures in few steps: enough to see by, and cheap beside the training between two checkpoints.
IMAGES, CELL, SPACING = 9, Cell("t2i", "", "", "dpmpp2m", 6, 4.0), "linspace"


def preview(
    task: PretrainTask, autoencoder: AutoencoderConfig, weights: Any, batch: int, devices: Devices
) -> Callable[[Any], np.ndarray]:
    """``draw(params)`` -> uint8 [N,S,S,3]: what the U-Net with ``params`` makes of the first training captions.

    From the same noises every time, with DPM-Solver++ and guidance, through the ``autoencoder`` with ``weights``: by
    the programs that draw the study's cells, which with its ``batch`` are compiled already when these are drawn.
    """
    data = task.latents
    count, net = min(IMAGES, len(data.mean)), replace(task.config, remat=False)
    generator = Generator(net, task.schedule, data.mean.shape[1], batch, task.seed, devices=devices)
    encoders = Encoders(autoencoder, batch=batch)
    draws = Draws(data.states[data.first[:count]], data.null, np.arange(count), [""] * count)

    def draw(params: Any) -> np.ndarray:
        images = encoders.decode(weights, generator.latents(params, CELL, SPACING, draws) / data.scale)
        for kept in (generator.kept, encoders.kept):
            kept.release()  # training needs the memory
        return images

    return draw
