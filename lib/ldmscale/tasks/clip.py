"""CLIP's task: the symmetric contrastive loss over a batch of image-caption pairs (arXiv 2103.00020)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldmscale.data.order import epoch_batch
from ldmscale.models.clip import CLIP, CLIPConfig
from ldmscale.tasks.autoencoder import to_unit
from ldmscale.training.loop import Batch

MAX_LOGIT_SCALE = 100.0


def pick_captions(first: np.ndarray, chosen: np.ndarray, seed: int, step: int) -> np.ndarray:
    """One caption of each chosen image: captions of image i are rows first[i] up to first[i + 1]."""
    low, high = first[chosen], first[chosen + 1]
    return low + (np.random.default_rng((seed, step, 1)).random(len(chosen)) * (high - low)).astype(np.int64)


@dataclass(frozen=True)
class CLIPTask:
    """Batches of ``images`` (uint8 [N,S,S,3]) with one of their captions each (``tokens`` int32 [captions,L])."""

    config: CLIPConfig
    images: np.ndarray
    tokens: np.ndarray
    first: np.ndarray
    batch_size: int
    seed: int
    net: CLIP = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "net", CLIP(self.config))

    def init(self, key: jax.Array) -> Any:
        images = jnp.zeros((1, *self.images.shape[1:]))
        return self.net.init(key, images, jnp.zeros((1, self.tokens.shape[1]), jnp.int32))["params"]

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        chosen = epoch_batch(len(self.images), self.batch_size, self.seed, step)
        captions = pick_captions(self.first, chosen, self.seed, step)
        return {"images": self.images[chosen[rows]], "tokens": self.tokens[captions[rows]]}

    def loss(self, params: Any, batch: Batch, key: jax.Array) -> jax.Array:
        image, text, scale = self.net.apply({"params": params}, to_unit(batch["images"]), batch["tokens"])
        logits = jnp.minimum(scale, MAX_LOGIT_SCALE) * image @ text.T
        # Pairs that share a caption are all right answers, not one right and the rest wrong.
        same = (batch["tokens"][:, None] == batch["tokens"][None]).all(-1).astype(jnp.float32)
        target = same / same.sum(-1, keepdims=True)
        both = optax.softmax_cross_entropy(logits, target) + optax.softmax_cross_entropy(logits.T, target)
        return 0.5 * both.mean()


def caption_rows(captions: list[tuple[str, ...]]) -> tuple[list[str], np.ndarray]:
    """All captions in one list, and int64 [N+1] where each image's begin."""
    first = np.concatenate([[0], np.cumsum([len(texts) for texts in captions])])
    return [text for texts in captions for text in texts], first
