"""Distillation of guided diffusion (Meng et al., arXiv 2210.03142): a student takes the guidance weight as an input.

Stage 1 teaches it to predict in one evaluation what guidance needs two for; each stage after it halves the sampling
steps (progressive distillation; Salimans and Ho, arXiv 2202.00512). All stages are one loss, and one compiled program:

    x1 = teacher(z, t),   x2 = teacher(a z + b x1, t2),   target = x2 + (q + guide w) (x1 - x2)

with numbers per sample that the batch brings. In stage 1 the second evaluation is of the same z without the caption,
and the target x1 + w (x1 - x2). In a halving it is half a step further down, and the target is the x from which one
step of the student arrives where these two steps of its teacher do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldmscale.data.encoded import Latents
from ldmscale.diffusion.samplers import step_table
from ldmscale.diffusion.schedule import Schedule
from ldmscale.errors import UserError
from ldmscale.models.network import NetConfig, network
from ldmscale.tasks.distil import captioned, check_distillation, draw_latents, levels, per_sample
from ldmscale.training.loop import Batch


class Targets(NamedTuple):
    """Of each timestep that a stage trains at: what its loss is made of (see the module).

    t, t2: int32 [R]. a, b, q, guide, weight: float64 [R]; ``weight`` is max(SNR, 1) at t (arXiv 2202.00512, eq. 9).
    """

    t: np.ndarray
    t2: np.ndarray
    a: np.ndarray
    b: np.ndarray
    q: np.ndarray
    guide: np.ndarray
    weight: np.ndarray


def stage_one(schedule: Schedule) -> Targets:
    """Guidance into one evaluation: at every timestep of the schedule."""
    t = np.arange(schedule.steps, dtype=np.int32)
    ones, zeros = np.ones(len(t)), np.zeros(len(t))
    return Targets(t, t, a=ones, b=zeros, q=ones, guide=ones, weight=_weight(schedule, t))


def halving(schedule: Schedule, steps: int) -> Targets:
    """From 2 ``steps`` to ``steps``, with "trailing" spacing: the student's timesteps are every other of its teacher's.

    From t the teacher steps to the timestep t2 between and then to s, the student's next (after the last, to abar_0, as
    :func:`ldmscale.diffusion.samplers.ddim`). With r = sigma_s / sigma_t the target (z_s - r z) / (alpha_s - r alpha_t)
    (arXiv 2202.00512, algorithm 2) is a mean of x1 and x2 in which z cancels; q is the weight of x1.

    Raises UserError unless 1 <= steps <= T / 2.
    """
    if not 1 <= steps <= schedule.steps // 2:
        raise UserError(f"steps is {steps}; a student of halved steps takes from 1 to {schedule.steps // 2}")
    t, taught = (step_table("ddim", schedule, count, "trailing").timesteps for count in (steps, 2 * steps))
    t2, s = taught[1::2], np.append(t[1:], 0)
    alphas, sigmas = np.sqrt(schedule.alphas_cumprod), np.sqrt(1 - schedule.alphas_cumprod)
    (alpha, alpha2, alpha_s), (sigma, sigma2, sigma_s) = (
        [column[i] for i in (t, t2, s)] for column in (alphas, sigmas)
    )
    a = sigma2 / sigma
    b = alpha2 - a * alpha
    ratio = sigma_s / sigma
    q = sigma_s / sigma2 * b / (alpha_s - ratio * alpha)
    return Targets(t, t2, a, b, q, guide=np.zeros(steps), weight=_weight(schedule, t))


def _weight(schedule: Schedule, t: np.ndarray) -> np.ndarray:
    abar = schedule.alphas_cumprod[t]
    return np.maximum(abar / (1 - abar), 1.0)


@dataclass(frozen=True)
class GuidedTask:
    """Batches of captioned latents with their targets' numbers, and the loss of one stage of guided distillation.

    ``config`` has a ``guidance_width``; ``params`` are the teacher's, in that form, and what the student begins as: of
    stage 1 the pretrained ones through :func:`ldmscale.models.network.with_guidance`, then those of the stage before.
    steps: None for stage 1, else the student's sampling steps, half of its teacher's. cfg: the range [first, second)
    that each sample's guidance weight is drawn from; the network is told w = cfg - 1, the paper's.

    Raises UserError for a network or parameters that take no w, steps that cannot be, and latents that do not fit.
    """

    config: NetConfig
    schedule: Schedule
    params: Any
    latents: Latents
    batch_size: int
    seed: int
    steps: int | None
    cfg: tuple[float, float] = (1.0, 11.0)
    net: nn.Module = field(init=False)
    targets: Targets = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "net", network(self.config))
        stage = stage_one(self.schedule) if self.steps is None else halving(self.schedule, self.steps)
        object.__setattr__(self, "targets", stage)
        check_distillation(self.config, self.latents, self.cfg)
        if not self.config.guidance_width:
            raise UserError("guidance_width is 0; a student of guided distillation needs one, for example 256")
        if "cond_proj" not in self.params["time_embedding"]:
            raise UserError("the parameters have no time_embedding/cond_proj; they must be of a network that takes w")

    @property
    def frozen(self) -> Any:
        """The teacher's parameters."""
        return self.params

    def init(self, key: jax.Array) -> Any:
        """A copy of the teacher's parameters; ``key`` is not used."""
        # The training step gives its state's buffers up, and the teacher keeps its own.
        return jax.tree.map(jnp.array, self.params)

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Captioned latents, and one uniformly drawn row of the stage's targets for each."""
        drawn = np.random.default_rng((self.seed, step, 2)).integers(len(self.targets.t), size=self.batch_size)[rows]
        chosen = {name: column[drawn] for name, column in self.targets._asdict().items()}
        # On the device float32, and in every stage: another type would be another program.
        numbers = {n: column if n in ("t", "t2") else column.astype(np.float32) for n, column in chosen.items()}
        return captioned(self.latents, self.batch_size, self.seed, step, rows) | numbers

    def loss(self, params: Any, batch: Batch, key: jax.Array, ema: Any, frozen: Any) -> jax.Array:
        """Mean of max(SNR, 1) ||student(z, t, w) - target||^2 with the teacher ``frozen``; ``ema`` is not used."""
        return self.losses(params, batch, key, ema, frozen)[0]

    def losses(
        self, params: Any, batch: Batch, key: jax.Array, ema: Any, frozen: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """:meth:`loss`, the timesteps [B] and the weighted error [B] of each example."""
        return self.drawn_losses(params, self.draw(batch, key), ema, frozen)

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        latent_key, noise_key, w_key = jax.random.split(key, 3)
        x = draw_latents(self.latents.scale, batch, latent_key)
        w = jax.random.uniform(w_key, x.shape[:1], minval=self.cfg[0] - 1, maxval=self.cfg[1] - 1)
        numbers = {name: batch[name] for name in (*Targets._fields, "context")}
        return {"x": x, "w": w, "noise": jax.random.normal(noise_key, x.shape), **numbers}

    def drawn_losses(self, params: Any, drawn: Batch, ema: Any, frozen: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        frozen = jax.lax.stop_gradient(frozen)
        x, w, t, t2, context = (jnp.asarray(drawn[name]) for name in ("x", "w", "t", "t2", "context"))
        a, b, q, guide, weight = (per_sample(drawn[name]) for name in ("a", "b", "q", "guide", "weight"))
        alpha, sigma = levels(self.schedule, t)
        z = alpha * x + sigma * drawn["noise"]
        context2 = jnp.where(guide[..., 0] > 0, jnp.asarray(self.latents.null), context)

        def taught(z: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x = self._clean(frozen, z, *at, w)
            return a * z + b * x, x

        # A loop: the teacher is compiled once.
        _, (x1, x2) = jax.lax.scan(taught, z, (jnp.stack([t, t2]), jnp.stack([context, context2])))
        target = x2 + (q + guide * per_sample(w)) * (x1 - x2)
        error = weight * jnp.square(self._clean(params, z, t, context, w) - target)
        return jnp.mean(error), t, error.mean((1, 2, 3))

    def _clean(self, params: Any, z: jax.Array, t: jax.Array, context: jax.Array, w: jax.Array) -> jax.Array:
        """The clean latents [B,h,w,C] that the noise predicted of ``z`` stands for."""
        alpha, sigma = levels(self.schedule, t)
        return (z - sigma * self.net.apply({"params": params}, z, t, context, w)) / alpha
