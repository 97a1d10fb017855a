"""Pictures of a text-to-image network while it trains, to see what it has learnt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldmscale.diffusion.samplers import step_table
from ldmscale.diffusion.sampling import build_sampler, device_table
from ldmscale.models.autoencoder import Autoencoder, AutoencoderConfig
from ldmscale.tasks.pretrain import PretrainTask
from ldmscale.training.sharding import fetch

# Few pictures in few steps: enough to see by, and cheap beside the training between two checkpoints.
IMAGES, STEPS, CFG = 9, 6, 4.0


def preview(task: PretrainTask, autoencoder: AutoencoderConfig, weights: Any) -> Callable[[Any], np.ndarray]:
    """``draw(params)`` -> uint8 [N,S,S,3]: what the U-Net with ``params`` makes of the first training captions.

    From the same noises every time, with DPM-Solver++ and guidance, through the ``autoencoder`` with ``weights``.
    """
    data, decoder = task.latents, Autoencoder(autoencoder)
    count = min(IMAGES, len(data.mean))
    table = device_table(step_table("dpmpp2m", task.schedule, STEPS, "linspace"))
    sample = build_sampler(lambda params, z, t, context: task.net.apply({"params": params}, z, t, context))
    keys = jax.random.split(jax.random.key(task.seed), count)

    def draw(params: Any, weights: Any, context: jax.Array, null: jax.Array) -> jax.Array:
        noise = jax.vmap(lambda key: jax.random.normal(key, data.mean.shape[1:]))(keys)
        z = sample(params, table, CFG, noise, context, null, keys)
        images = decoder.apply({"params": weights}, z / data.scale, method="decode")
        return jnp.clip(jnp.round((images + 1.0) * 127.5), 0, 255).astype(jnp.uint8)

    # Not optimised: it would compile for longer than it runs.
    program = jax.jit(draw, compiler_options={"xla_backend_optimization_level": 0})
    context = data.states[data.first[:count]]
    return lambda params: fetch(program(params, weights, context, data.null))
