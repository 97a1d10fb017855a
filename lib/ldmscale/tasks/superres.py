"""Super-resolution: a pretrained U-Net learns to paint what a poor, small version of an image lacks.

The small image, upsampled and encoded, is concatenated with the noisy latent on channels (arXiv 2404.01367, Fig. 2).
The first convolution is widened for it by kernels of zeros, as InstructPix2Pix's (Brooks et al., arXiv 2211.09800), so
that finetuning begins at the pretrained network. The caption is the empty one throughout, so there is no guidance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldmscale.data.order import epoch_batch
from ldmscale.diffusion.schedule import Schedule
from ldmscale.errors import UserError
from ldmscale.models.network import NetConfig, first_kernel, network, widen
from ldmscale.tasks.diffuse import diffuse
from ldmscale.training.loop import Batch


@dataclass(frozen=True)
class SuperresTask:
    """Batches of latents with their conditions, from the pretrained ``params`` (of C input channels, not widened).

    ``config``: the finetuned network's, of 2C input channels. ``mean``, ``std`` float32 [N,h,w,C]: moments of the
    high-resolution images' latents in the autoencoder's own scale; ``condition`` float32 [N,h,w,C]: the latents (mode)
    of the upsampled low-resolution images, times ``scale`` already. ``null`` [L,D]: text states of the empty caption.
    ``scale``: the factor that brings latents to unit variance.

    Raises UserError for arrays, parameters or a config that do not fit each other.
    """

    config: NetConfig
    schedule: Schedule
    params: Any
    mean: np.ndarray
    std: np.ndarray
    condition: np.ndarray
    null: np.ndarray
    scale: float
    batch_size: int
    seed: int
    net: nn.Module = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "net", network(self.config))
        shape = np.shape(self.mean)
        if len(shape) != 4 or not shape[0] or {np.shape(self.std), np.shape(self.condition)} != {shape}:
            raise UserError(
                f"super-resolution's latents have shape {list(shape)}, their deviations {list(np.shape(self.std))} and "
                f"their conditions {list(np.shape(self.condition))}; all must be [N,h,w,C], one shape, N at least 1"
            )
        channels, pretrained = shape[-1], first_kernel(self.params, self.config).shape[2]
        found = (pretrained, self.config.in_channels, self.config.out_channels)
        if found != (channels, 2 * channels, channels):
            raise UserError(
                f"the latents have {channels} channels; the pretrained network takes {found[0]}, the finetuned one "
                f"{found[1]} and predicts {found[2]}; these must be {channels}, {2 * channels} and {channels}"
            )
        width = self.config.context_width
        if np.ndim(self.null) != 2 or np.shape(self.null)[1] != width:
            raise UserError(
                f"the empty caption's states have shape {list(np.shape(self.null))}; they must be [L,{width}]"
            )

    def init(self, key: jax.Array) -> Any:
        """The pretrained parameters, widened; ``key`` is not used."""
        return widen(self.params, self.config, np.shape(self.condition)[-1])

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        chosen = epoch_batch(len(self.mean), self.batch_size, self.seed, step, rows)
        return {"mean": self.mean[chosen], "std": self.std[chosen], "condition": self.condition[chosen]}

    def loss(self, params: Any, batch: Batch, key: jax.Array) -> jax.Array:
        """Mean squared error of the predicted noise at uniformly drawn timesteps."""
        return self.losses(params, batch, key)[0]

    def losses(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """:meth:`loss`, the timesteps [B] and the error [B] of each example."""
        return self.drawn_losses(params, self.draw(batch, key))

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        z, t, noise = diffuse(self.schedule, self.scale, batch["mean"], batch["std"], key)
        return {"z": z, "t": t, "noise": noise, "condition": batch["condition"]}

    def drawn_losses(self, params: Any, drawn: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        z, t, noise = (drawn[name] for name in ("z", "t", "noise"))
        context = jnp.broadcast_to(jnp.asarray(self.null), (len(z), *np.shape(self.null)))
        seen = jnp.concatenate([z, drawn["condition"]], axis=-1)
        error = (self.net.apply({"params": params}, seen, t, context) - noise) ** 2
        return jnp.mean(error), t, error.mean((1, 2, 3))
