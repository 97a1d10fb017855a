"""DreamBooth: a pretrained U-Net learns one subject from a few images (Ruiz et al., arXiv 2208.12242).

The subject's images train under "a <identifier> <class>", and images of the class that the same network made beforehand
under "a <class>", so that it forgets neither (prior preservation, eq. 2). The text encoder stays frozen.
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
from ldmscale.models.network import NetConfig, network
from ldmscale.tasks.diffuse import diffuse
from ldmscale.training.loop import Batch

# The settings of the public trainers: TrainConfig(**RECIPE, seed=...) with the task's own defaults.
RECIPE = {"steps": 800, "learning_rate": 5e-6, "warmup": 0, "weight_decay": 1e-2}


@dataclass(frozen=True)
class Concept:
    """Images of one thing and what they are called.

    mean, std: moments of their latents, float32 [N,h,w,C], in the autoencoder's own scale (std is 0 for latents that
    were sampled rather than encoded); states: the text encoder's states of the one prompt, float32 [L,D].
    """

    mean: np.ndarray
    std: np.ndarray
    states: np.ndarray

    def rows(self, chosen: np.ndarray) -> Batch:
        """Moments and states of the images ``chosen`` [B]."""
        context = np.broadcast_to(self.states, (len(chosen), *self.states.shape))
        return {"mean": self.mean[chosen], "std": self.std[chosen], "context": context}


@dataclass(frozen=True)
class DreamBoothTask:
    """``batch_size`` instance and as many prior images a step, from the pretrained ``params``.

    scale: the factor that brings latents to unit variance. With a ``prior_weight`` of 0 there is no prior, and
    ``prior`` may be None.

    Raises UserError for no images, moments of different shapes, a negative ``prior_weight`` and a missing ``prior``.
    """

    config: NetConfig
    schedule: Schedule
    params: Any
    instance: Concept
    prior: Concept | None
    scale: float
    seed: int
    batch_size: int = 1
    prior_weight: float = 1.0
    net: nn.Module = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "net", network(self.config))
        if not self.prior_weight >= 0:
            raise UserError(f"prior_weight is {self.prior_weight}; it must be 0 (no prior preservation) or more")
        if self.prior_weight and self.prior is None:
            raise UserError(f"prior_weight is {self.prior_weight}, which needs class images; set it to 0 without them")
        for name, concept in self._concepts().items():
            shape, wanted = concept.mean.shape, self.instance.mean.shape[1:]
            if not len(concept.mean) or concept.std.shape != shape or shape[1:] != wanted:
                raise UserError(
                    f"the {name} latents have shape {list(shape)} and deviations {list(concept.std.shape)}; both must "
                    f"be of at least one image and [N,h,w,C], with the instance's {list(wanted)}"
                )

    def _concepts(self) -> dict[str, Concept]:
        return {"instance": self.instance} | ({"prior": self.prior} if self.prior_weight else {})

    def init(self, key: jax.Array) -> Any:
        """The pretrained parameters; ``key`` is not used."""
        return jax.tree.map(jnp.asarray, self.params)

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        found = {}
        for number, (name, concept) in enumerate(self._concepts().items()):
            # Seeds far apart: as many prior as instance images would otherwise be shuffled alike, in fixed pairs.
            chosen = epoch_batch(len(concept.mean), self.batch_size, self.seed + (number << 32), step, rows)
            found |= {f"{name}_{part}": array for part, array in concept.rows(chosen).items()}
        return found

    def loss(self, params: Any, batch: Batch, key: jax.Array) -> jax.Array:
        """Mean squared error of the noise on the instance, and ``prior_weight`` times that on the prior.

        Both go through the network in one pass. Their random numbers are separate, so the instance's are the same with
        a prior and without.
        """
        return self.losses(params, batch, key)[0]

    def losses(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """:meth:`loss`, and of instance and prior examples alike the timesteps [N] and the error [N], not weighted."""
        return self.drawn_losses(params, self.draw(batch, key))

    def draw(self, batch: Batch, key: jax.Array) -> dict[str, tuple[jax.Array, ...]]:
        return {name: self._diffuse(batch, name, jax.random.fold_in(key, i)) for i, name in enumerate(self._concepts())}

    def drawn_losses(self, params: Any, drawn: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        names = list(self._concepts())
        parts = zip(*(drawn[name] for name in names), strict=True)
        z, t, context, noise = (jnp.concatenate(arrays) for arrays in parts)
        error = jnp.square(self.net.apply({"params": params}, z, t, context) - noise)
        instance, *prior = jnp.split(error, len(names))
        return instance.mean() + sum(self.prior_weight * part.mean() for part in prior), t, error.mean((1, 2, 3))

    def _diffuse(self, batch: Batch, name: str, key: jax.Array) -> tuple[jax.Array, ...]:
        """Noisy latents [B,h,w,C], timesteps [B], states [B,L,D] and the noise [B,h,w,C] of one concept."""
        z, t, noise = diffuse(self.schedule, self.scale, batch[f"{name}_mean"], batch[f"{name}_std"], key)
        return z, t, jnp.asarray(batch[f"{name}_context"]), noise
