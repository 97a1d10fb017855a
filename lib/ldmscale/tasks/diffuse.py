"""The forward process on encoded images: where every task that predicts noise begins."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ldmscale.diffusion.schedule import Schedule


def diffuse(
    schedule: Schedule, scale: float, mean: Any, std: Any, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Noisy latents z [B,h,w,C], their timesteps t [B] and their noise [B,h,w,C], all drawn from ``key``.

    z = sqrt(abar_t) z0 + sqrt(1 - abar_t) noise, with t uniform and z0 = ``scale`` times a sample of the latent, whose
    moments are ``mean`` and ``std`` [B,h,w,C] (Ho et al., arXiv 2006.11239, eq. 4).
    """
    latent_key, time_key, noise_key = jax.random.split(key, 3)
    mean = jnp.asarray(mean)
    z0 = scale * (mean + std * jax.random.normal(latent_key, mean.shape))
    t = jax.random.randint(time_key, mean.shape[:1], 0, schedule.steps)
    abar = jnp.asarray(schedule.alphas_cumprod, jnp.float32)[t][:, None, None, None]
    noise = jax.random.normal(noise_key, mean.shape)
    return jnp.sqrt(abar) * z0 + jnp.sqrt(1.0 - abar) * noise, t, noise
