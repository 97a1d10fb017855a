"""The KL autoencoder's task: reconstruction and a small KL term (Rombach et al., arXiv 2112.10752, appendix G)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldmscale.data.order import epoch_batch
from ldmscale.models.autoencoder import Autoencoder, AutoencoderConfig
from ldmscale.training.loop import Batch


def to_unit(images: np.ndarray | jax.Array) -> jax.Array:
    """uint8 [..., 3] -> float32 in [-1, 1]."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1.0


@dataclass(frozen=True)
class AutoencoderTask:
    """Batches of ``images`` (uint8 [N,S,S,3]) and the loss."""

    config: AutoencoderConfig
    images: np.ndarray
    batch_size: int
    kl_weight: float
    seed: int
    net: Autoencoder = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "net", Autoencoder(self.config))

    def init(self, key: jax.Array) -> Any:
        shape = (1, *self.images.shape[1:])
        return self.net.init(key, jnp.zeros(shape))["params"]

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        return {"images": self.images[epoch_batch(len(self.images), self.batch_size, self.seed, step, rows)]}

    def loss(self, params: Any, batch: Batch, key: jax.Array) -> jax.Array:
        """Squared plus a fifth of absolute error, and ``kl_weight`` times the KL divergence from N(0, 1) of a latent.

        The squared error alone leaves flat areas noisy, the absolute alone is slow to find rare colours.
        """
        images = to_unit(batch["images"])
        mean, logvar = self.net.apply({"params": params}, images, method="encode")
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        difference = self.net.apply({"params": params}, z, method="decode") - images
        error = jnp.square(difference).mean() + 0.2 * jnp.abs(difference).mean()
        kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1.0 - logvar).sum((1, 2, 3)).mean()
        return error + self.kl_weight * kl
