"""Conditional distillation (CoDi; Mei et al., arXiv 2310.01407) of a pretrained text-to-image U-Net to a few steps.

The defaults are the recipe of the authors' text-to-image trainer: the U-Net stays as it is and an adapter beside it is
trained, so that what the guided pair predicts of a noisy latent agrees with what its own running average predicts one
step of the pretrained U-Net later. The options lead to the paper's own losses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldmscale.data.encoded import Latents
from ldmscale.diffusion.samplers import CODI_STRIDE
from ldmscale.diffusion.schedule import Schedule
from ldmscale.errors import UserError
from ldmscale.models.adapter import adapter, adapter_parameters
from ldmscale.models.network import NetConfig, network
from ldmscale.tasks.distil import captioned, check_distillation, draw_latents, levels, per_sample
from ldmscale.training.loop import Batch

TRAINABLE = ("adapter", "full")
PREDICTIONS = ("epsilon", "v")
SIGMA_DATA = 0.5
TIMESTEP_SCALE = 10.0


def boundary_scalings(t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """c_skip and c_out at timesteps ``t`` of 0..T-1, by which x(z, 0) = z (arXiv 2310.04378, appendix; CoDi's too)."""
    square = (TIMESTEP_SCALE * t.astype(jnp.float32)) ** 2
    return SIGMA_DATA**2 / (square + SIGMA_DATA**2), jnp.sqrt(square / (square + SIGMA_DATA**2))


@dataclass(frozen=True)
class CoDiTask:
    """Batches of captioned latents and the conditional consistency loss, from the pretrained ``params``.

    trainable: "adapter" alone (parameter-efficient CoDi), or "full", the U-Net with it. stride: timesteps from t to
    s = max(t - stride, 0). cfg: the range [first, second) that each sample's guidance weight is drawn from.
    prediction: what the pretrained U-Net predicts, "epsilon" or "v" (arXiv 2202.00512). The loss is the sum of
    ``consistency`` ||x_t - x_s||^2, ``noise_consistency`` ||eps_t - eps_s||^2 and ``signal`` ||x_t - x||^2, all means,
    with nothing learnt through the target (x_s, eps_s). boundary: x = c_skip z + c_out x, and eps to match.
    shared_t: one t for the whole batch.

    Raises UserError for options that are none, weights that are negative or all 0, and latents that do not fit.
    """

    config: NetConfig
    schedule: Schedule
    params: Any
    latents: Latents
    batch_size: int
    seed: int
    trainable: str = "adapter"
    stride: int = CODI_STRIDE
    cfg: tuple[float, float] = (1.0, 11.0)
    prediction: str = "epsilon"
    consistency: float = 1.0
    noise_consistency: float = 0.0
    signal: float = 0.0
    boundary: bool = False
    shared_t: bool = False
    net: nn.Module = field(init=False)
    adapter: nn.Module = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "net", network(self.config))
        object.__setattr__(self, "adapter", adapter(self.config))
        check_distillation(self.config, self.latents, self.cfg)
        for name, known in (("trainable", TRAINABLE), ("prediction", PREDICTIONS)):
            if getattr(self, name) not in known:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be {' or '.join(known)}")
        if not 1 <= self.stride < self.schedule.steps:
            raise UserError(f"stride is {self.stride}; it must be from 1 to {self.schedule.steps - 1} timesteps")
        weights = {name: getattr(self, name) for name in ("consistency", "noise_consistency", "signal")}
        if not (all(w >= 0 for w in weights.values()) and any(weights.values())):
            said = ", ".join(f"{name} {w}" for name, w in weights.items())
            raise UserError(f"the loss's weights are {said}; none may be negative, nor all 0")

    @property
    def frozen(self) -> Any:
        """The teacher: the pretrained U-Net's parameters."""
        return self.params

    def init(self, key: jax.Array) -> Any:
        """{"adapter"} that changes nothing yet and, of "full", {"unet"}; ``key`` is not used."""
        params = {"adapter": adapter_parameters(self.params)}
        if self.trainable == "full":
            # Copies: the training step gives its state's buffers up, and the teacher keeps its own.
            params["unet"] = jax.tree.map(jnp.array, self.params)
        return params

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        return captioned(self.latents, self.batch_size, self.seed, step, rows)

    def loss(self, params: Any, batch: Batch, key: jax.Array, ema: Any, frozen: Any) -> jax.Array:
        """Consistency between t and s along the unguided probability flow of ``frozen``; ``ema`` is the target network.

        Student and target are guided, the step between them is not: to guide it too makes training diverge.
        """
        return self.losses(params, batch, key, ema, frozen)[0]

    def losses(
        self, params: Any, batch: Batch, key: jax.Array, ema: Any, frozen: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """:meth:`loss`, the timesteps t [B] and what each example adds to it [B]."""
        return self.drawn_losses(params, self.draw(batch, key), ema, frozen)

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        latent_key, time_key, noise_key, cfg_key = jax.random.split(key, 4)
        x = draw_latents(self.latents.scale, batch, latent_key)
        count = len(x)
        t = jax.random.randint(time_key, (1 if self.shared_t else count,), 0, self.schedule.steps)
        cfg = jax.random.uniform(cfg_key, (count,), minval=self.cfg[0], maxval=self.cfg[1])
        noise = jax.random.normal(noise_key, x.shape)
        return {"x": x, "t": jnp.broadcast_to(t, (count,)), "cfg": cfg, "noise": noise, "context": batch["context"]}

    def drawn_losses(self, params: Any, drawn: Batch, ema: Any, frozen: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        ema, frozen = jax.lax.stop_gradient((ema, frozen))
        x, t, cfg, context = drawn["x"], drawn["t"], drawn["cfg"], jnp.asarray(drawn["context"])
        s = jnp.maximum(t - self.stride, 0)
        (alpha, sigma), (alpha_s, sigma_s) = levels(self.schedule, t), levels(self.schedule, s)
        z = alpha * x + sigma * drawn["noise"]
        teacher_x, teacher_eps = self._read(self.net.apply({"params": frozen}, z, t, context), z, t)
        z_s = alpha_s * teacher_x + sigma_s * teacher_eps
        x_t, eps_t = self._student(params, frozen, z, t, context, cfg)
        x_s, eps_s = self._student(ema, frozen, z_s, s, context, cfg)
        terms = (self.consistency, x_t - x_s), (self.noise_consistency, eps_t - eps_s), (self.signal, x_t - x)
        squares = [(weight, jnp.square(error)) for weight, error in terms if weight]
        each = sum(weight * square.mean((1, 2, 3)) for weight, square in squares)
        return sum(weight * square.mean() for weight, square in squares), t, each

    def _read(self, output: jax.Array, z: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The clean latents and the noise that ``output`` [B,h,w,C], the prediction of ``z`` at ``t``, stands for."""
        alpha, sigma = levels(self.schedule, t)
        if self.prediction == "v":
            return alpha * z - sigma * output, sigma * z + alpha * output
        return (z - sigma * output) / alpha, output

    def _student(
        self, params: Any, frozen: Any, z: jax.Array, t: jax.Array, context: jax.Array, cfg: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Clean latents and noise [B,h,w,C] by the adapted U-Net, guided by ``cfg`` [B]: both halves in one batch."""
        empty = jnp.broadcast_to(jnp.asarray(self.latents.null), context.shape)
        seen = jnp.concatenate([z, z]), jnp.concatenate([t, t]), jnp.concatenate([context, empty])
        residuals = self.adapter.apply({"params": params["adapter"]}, *seen)
        output = self.net.apply({"params": params.get("unet", frozen)}, *seen, residuals=residuals)
        cond, null = jnp.split(output, 2)
        x, eps = self._read(null + per_sample(cfg) * (cond - null), z, t)
        if not self.boundary:
            return x, eps
        alpha, sigma = levels(self.schedule, t)
        c_skip, c_out = map(per_sample, boundary_scalings(t))
        x = c_skip * z + c_out * x
        return x, (z - alpha * x) / sigma
