"""Validation loss: how well a U-Net predicts the noise in latents of held-out images, noise level by noise level.

Every model and checkpoint sees the same latents, captions, timesteps and noises, so that losses compare pairwise.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ldmscale.data.encoded import OFFSETS
from ldmscale.diffusion.schedule import Schedule
from ldmscale.errors import UserError
from ldmscale.generation.cells import Generator, image_keys


def level_timesteps(steps: int, levels: int) -> np.ndarray:
    """The timesteps at the middles of ``levels`` equal stretches of a schedule of ``steps``: int [levels].

    Training draws timesteps uniformly, so the mean over them stands for its objective (by the midpoint rule).
    Raises UserError for more levels than timesteps.
    """
    if not 1 <= levels <= steps:
        raise UserError(f"validation.levels is {levels}, but must be from 1 to diffusion.steps ({steps})")
    return (2 * np.arange(levels) + 1) * steps // (2 * levels)


class Validator:
    """Denoising losses on ``latents`` [N,h,w,C] (of unit variance) of images captioned by ``states`` [N,L,D], at
    ``timesteps`` [levels]; the noise of an image and level follows from (seed, image, level) alone."""

    def __init__(self, schedule: Schedule, latents: np.ndarray, states: np.ndarray, timesteps: np.ndarray, seed: int):
        self.states, self.timesteps = states, timesteps
        numbers = OFFSETS["validation"] + np.arange(len(latents))
        keys, _ = image_keys(seed, numbers)
        draw = jax.jit(jax.vmap(lambda key, k: jax.random.normal(jax.random.fold_in(key, k), latents.shape[1:]),
                                (0, None)))  # fmt: skip
        self.noises = np.stack([draw(keys, k) for k in range(len(timesteps))])
        abars = schedule.alphas_cumprod[timesteps][:, None, None, None, None]
        self.noisy = (np.sqrt(abars) * latents + np.sqrt(1 - abars) * self.noises).astype(np.float32)

    def losses(self, generator: Generator, params: Any) -> np.ndarray:
        """Mean squared error of the noise that ``generator``'s network predicts, given the caption: float32 [levels, N]
        (Ho et al., arXiv 2006.11239, eq. 14). Raises UserError where it is not finite."""
        found = []
        for noisy, noise, t in zip(self.noisy, self.noises, self.timesteps, strict=True):
            error = generator.noise(params, noisy, int(t), self.states) - noise
            found.append(np.mean(error**2, axis=(1, 2, 3)))
        if not np.isfinite(found).all():
            raise UserError("the validation loss is not finite: the weights, or the latents' scale, are broken")
        return np.stack(found)
