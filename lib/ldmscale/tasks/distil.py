"""What the distillations share: batches of captioned latents, noise levels on the device, checks."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from ldmscale.data.encoded import Latents
from ldmscale.data.order import epoch_batch
from ldmscale.diffusion.schedule import Schedule
from ldmscale.errors import UserError
from ldmscale.models.network import NetConfig
from ldmscale.tasks.clip import pick_captions
from ldmscale.training.loop import Batch


def check_distillation(config: NetConfig, latents: Latents, cfg: tuple[float, float]) -> None:
    """Raises UserError for guidance weights that are no range from 1 on, and latents that ``config`` cannot take."""
    if len(cfg) != 2 or not 1 <= cfg[0] <= cfg[1] or math.isinf(cfg[1]):
        raise UserError(f"cfg is {list(cfg)}; it must be two guidance weights, 1 (none) or more, the smaller one first")
    found = (config.in_channels, config.out_channels, config.context_width)
    wanted = (latents.mean.shape[-1],) * 2 + (latents.null.shape[-1],)
    if found != wanted:
        raise UserError(
            f"the network takes and predicts {found[0]} and {found[1]} channels and attends to states of width "
            f"{found[2]}; the latents have {wanted[0]} channels and their captions' states width {wanted[2]}"
        )


def captioned(latents: Latents, batch_size: int, seed: int, step: int, rows: slice = slice(None)) -> Batch:
    """Moments "mean" and "std" [B,h,w,C] and states "context" [B,L,D] of a batch's ``rows``; no caption is dropped."""
    chosen = epoch_batch(len(latents.mean), batch_size, seed, step)
    context = latents.states[pick_captions(latents.first, chosen, seed, step)[rows]]
    chosen = chosen[rows]
    return {"mean": latents.mean[chosen], "std": latents.std[chosen], "context": context}


def draw_latents(scale: float, batch: Batch, key: jax.Array) -> jax.Array:
    """Samples [B,h,w,C] of the batch's latents, of unit variance through ``scale``."""
    mean = jnp.asarray(batch["mean"])
    return scale * (mean + batch["std"] * jax.random.normal(key, mean.shape))


def levels(schedule: Schedule, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """alpha = sqrt(abar_t) and sigma = sqrt(1 - abar_t) of timesteps ``t`` [B], each [B,1,1,1]."""
    abar = schedule.alphas_cumprod
    alpha, sigma = (jnp.asarray(column, jnp.float32)[t] for column in (np.sqrt(abar), np.sqrt(1 - abar)))
    return per_sample(alpha), per_sample(sigma)


def per_sample(values: jax.Array) -> jax.Array:
    """[B] -> [B,1,1,1], to multiply latents by."""
    return jnp.asarray(values)[:, None, None, None]
