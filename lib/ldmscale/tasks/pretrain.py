"""Text-to-image pretraining: epsilon prediction on the autoencoder's latents, captions dropped for guidance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldmscale.data.encoded import Latents
from ldmscale.data.order import epoch_batch
from ldmscale.diffusion.schedule import Schedule
from ldmscale.models.network import NetConfig, network
from ldmscale.tasks.clip import pick_captions
from ldmscale.tasks.diffuse import diffuse
from ldmscale.training.loop import Batch


@dataclass(frozen=True)
class PretrainTask:
    """Batches of latents with text states, and the denoising loss (Ho et al., arXiv 2006.11239, eq. 14)."""

    config: NetConfig
    schedule: Schedule
    latents: Latents
    batch_size: int
    text_dropout: float
    seed: int
    net: nn.Module = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "net", network(self.config))

    def init(self, key: jax.Array) -> Any:
        z, context = self.latents.mean[:1], self.latents.null[None]
        return self.net.init(key, jnp.zeros(z.shape), jnp.zeros(1, jnp.int32), jnp.zeros(context.shape))["params"]

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        data = self.latents
        chosen = epoch_batch(len(data.mean), self.batch_size, self.seed, step)
        context = data.states[pick_captions(data.first, chosen, self.seed, step)[rows]]
        dropped = np.random.default_rng((self.seed, step, 2)).random(len(chosen))[rows] < self.text_dropout
        context[dropped] = data.null  # of a copy
        chosen = chosen[rows]
        return {"mean": data.mean[chosen], "std": data.std[chosen], "context": context}

    def loss(self, params: Any, batch: Batch, key: jax.Array) -> jax.Array:
        """Mean squared error of the predicted noise at uniformly drawn timesteps."""
        return self.losses(params, batch, key)[0]

    def losses(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """:meth:`loss`, the timesteps [B] and the error [B] of each example."""
        return self.drawn_losses(params, self.draw(batch, key))

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        z, t, noise = diffuse(self.schedule, self.latents.scale, batch["mean"], batch["std"], key)
        return {"z": z, "t": t, "noise": noise, "context": batch["context"]}

    def drawn_losses(self, params: Any, drawn: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        z, t, noise = (drawn[name] for name in ("z", "t", "noise"))
        error = (self.net.apply({"params": params}, z, t, drawn["context"]) - noise) ** 2
        return jnp.mean(error), t, error.mean((1, 2, 3))
